"""What a program does before its imports, which take seconds, and while its main function runs.

    if __name__ == "__main__":
        begin("train.py")
"""

import atexit
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from air.files.console import console, open_standard_descriptors, say
from air.files.signals import (
    INTERRUPTED,
    Handlers,
    announced,
    deferred_signals,
    exit_at_signals,
    exit_handler,
    ignore_signals,
)


def begin(program: str) -> None:
    """Take over signals and streams for good, then import torch; ends with code 2 where that is not possible."""
    open_standard_descriptors()
    atexit.register(ignore_signals)  # registered first, so called last
    Handlers().set(exit_handler(lambda: f"{program}: interrupted"))
    with console(program):
        try:
            check_torch()
        except ImportError as error:
            say(f"{program}: {error}", error=True)
            sys.exit(2)


@contextmanager
def running(program: str, advice: Callable[[], str] = lambda: "") -> Iterator[None]:
    """For a main function: signals end the process with a sentence, and printing never fails; as before afterwards.

    Args:
        program: its name, which the sentence and warnings begin with.
        advice: gives how to continue, for the end of the sentence.
    """
    announced.clear()
    with exit_at_signals(lambda: f"{program}: interrupted{advice()}"), console(program):
        yield


def end_interrupted(sentence: str, error: bool = False) -> NoReturn:
    """End a program with code 130 after it has finished what it was at.

    Args:
        sentence: what is done and how to continue.
        error: whether it goes to standard error.
    """
    with deferred_signals():
        say(sentence, error)
        announced.set()
    sys.exit(INTERRUPTED)


def check_torch() -> None:
    """Import torch and torchvision. Raises ImportError: they do not match, which would fail later and obscurely."""
    import torch
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(
            f"torch {torch.__version__} and the installed torchvision are not a matching pair ({error}). Install one "
            "with: pip install --upgrade torch torchvision (both in one command, neither pinned)") from error
