"""Ctrl-C and SIGTERM as a flag, so that a run stops between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from air.distributed import world_size


@contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """Set the flag at Ctrl-C or SIGTERM, so that the current step finishes; a second signal acts at once.

    With several processes every signal sets the flag: torchrun forwards what the terminal has already sent to all.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # signals reach the main thread only
        return

    def handler(number: int, frame: object) -> None:
        flag.set()
        if world_size() == 1:
            restore()

    def restore() -> None:
        for number, action in previous.items():
            signal.signal(number, action)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        restore()
