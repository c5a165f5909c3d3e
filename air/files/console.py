"""What a program prints: it goes on where nobody listens, shows every name, and no text controls the terminal."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Console:
    """A text stream that never fails. After the first error (a closed pipe, a full disk) nothing more is written.

    Each line is written at once. What the stream's encoding does not have becomes \\x, \\u or \\U escapes.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """Args: stream: None where the process was started without it."""
        self._stream = stream
        self.error: Exception | None = None  # the first one

    def write(self, text: str) -> int:
        """Write a text, if that is still possible."""
        if self._stream is not None and self.error is None:
            encoding = self.encoding
            try:
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
                if "\n" in text:
                    self._stream.flush()
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Pass on what has been written, if that is still possible."""
        if self._stream is not None and self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        """Whether a person may be watching."""
        with suppress(ValueError):
            return self._stream is not None and self.error is None and self._stream.isatty()
        return False

    @property
    def encoding(self) -> str:
        """The stream's."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: Exception) -> None:
        """Write no more, and let what the stream still holds go nowhere: the interpreter flushes it when it ends."""
        self.error = error
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, cast(TextIO, self._stream).fileno())
            os.close(nowhere)


@contextmanager
def console(program: str) -> Iterator[None]:
    """Make standard output and error `Console`s, and warnings one line each, in a program's main function.

    Args:
        program: its name, which warnings begin with.
    """
    streams, formatwarning = (sys.stdout, sys.stderr), warnings.formatwarning
    sys.stdout, sys.stderr = cast(TextIO, Console(sys.stdout)), cast(TextIO, Console(sys.stderr))
    # Without the line of code.
    warnings.formatwarning = lambda message, *_: f"{program}: WARNING: {printable(message)}\n"
    try:
        yield
    finally:
        (sys.stdout, sys.stderr), warnings.formatwarning = streams, formatwarning


def printable(text: object) -> str:
    """The text on one line, with control characters and what cannot be shown escaped: it may come from a file or an
    argument, and could otherwise move the cursor or forge lines.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def say(text: object, error: bool = False) -> None:
    """Print one line, to standard error if it is about a fault."""
    print(printable(text), file=sys.stderr if error else sys.stdout)


def open_standard_descriptors() -> None:
    """Open those of descriptors 0 to 2 that are closed on the null device, or the next file opened would become one."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free descriptor: this one
