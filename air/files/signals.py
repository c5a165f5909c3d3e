"""Ctrl-C, SIGTERM and SIGHUP, all treated alike: what a process finishes, says and removes before it ends.

A program's signals end it with a sentence and code 130, whatever it is doing (`exit_at_signals`). Within that, a loop
may ask for the first signal as a flag (`interrupt_flag`), and a write may hold signals back until it is done
(`deferred_signals`). Handlers are the main thread's; in other threads all three do nothing. Where SIGHUP is ignored, as
nohup asks, it stays ignored. This module imports nothing slow: it is at work before torch is imported.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
INTERRUPTED = 130  # the exit code

temporary_files: set[str] = set()  # of writes under way, which an interrupted program removes


class Flag:
    """What a handler may set at any moment. A `threading.Event` has a lock, for which two handlers at once would wait
    for ever.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Set the flag."""
        self._is_set = True

    def clear(self) -> None:
        """Take the flag back."""
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set


announced = Flag()  # that the program has said that it was interrupted: further signals say nothing


class Handlers:
    """Replaces the signals' handlers for a while."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    def set(self, handler: Callable[[int, Any], None]) -> None:
        """Give the signals to a handler, which may call `restore` itself: it is ready before the first one comes."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            action = signal.getsignal(number)
            under_nohup = action == signal.SIG_IGN and number == getattr(signal, "SIGHUP", None)
            if action is not None and not under_nohup:  # None: one that Python knows nothing of
                self._previous[number] = signal.signal(number, handler)

    def restore(self) -> None:
        """Put the handlers back that there were; once that is done, do nothing."""
        for number in SIGNALS:
            action = self._previous.pop(number, None)
            if action is not None:
                signal.signal(number, action)


def exit_handler(sentence: Callable[[], str]) -> Callable[[int, Any], None]:
    """A handler that removes the temporary files of writes under way, prints a sentence and ends with code 130.

    It raises no exception, since that might surface anywhere: in a callback of C++, in `__del__`, in an import.

    Args:
        sentence: gives what to print, without the newline.
    """
    process = os.getpid()

    def handler(number: int, frame: object) -> None:
        ignore_signals()  # one sentence is enough
        if os.getpid() == process:  # not in a fork, which has a copy of the handler and of the set
            for path in tuple(temporary_files):
                with suppress(OSError):
                    os.unlink(path)
            if is_first_process() and not announced.is_set():
                start = "\n" if os.isatty(2) else ""  # after the terminal's ^C, or a progress bar
                with suppress(OSError):
                    os.write(2, f"{start}{sentence()}\n".encode(errors="backslashreplace"))
        os._exit(INTERRUPTED)
    return handler


@contextmanager
def exit_at_signals(sentence: Callable[[], str]) -> Iterator[None]:
    """Let signals end the process, see `exit_handler`, until the block ends."""
    handlers = Handlers()
    handlers.set(exit_handler(sentence))
    try:
        yield
    finally:
        handlers.restore()


@contextmanager
def interrupt_flag(several: Callable[[], bool] = lambda: False) -> Iterator[Flag]:
    """Set the flag at a signal, so that the current step finishes; a second signal acts as it did before.

    A signal that comes too late for the block to look at its flag again acts when the block ends.

    Args:
        several: whether this is one of several processes, where every signal sets the flag: torchrun forwards what the
            terminal has already sent to all.
    """
    flag, handlers = Flag(), Handlers()
    arrived: list[int] = []

    def handler(number: int, frame: object) -> None:
        arrived.append(number)
        flag.set()
        if not several():
            handlers.restore()

    handlers.set(handler)
    try:
        yield flag
    finally:
        handlers.restore()
    if arrived:  # and the block has not ended with an exception because of it
        signal.raise_signal(arrived[0])


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Hold signals back until the block ends; then the first of them acts."""
    arrived: list[int] = []
    handlers = Handlers()
    handlers.set(lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        handlers.restore()
        if arrived:
            signal.raise_signal(arrived[0])


def ignore_signals() -> None:
    """Let the interpreter shut down undisturbed: Python's handlers no longer run then, and the work is done."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def is_first_process() -> bool:
    """Whether this is the run's first or only process, which prints and writes; known before the processes have met."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"
