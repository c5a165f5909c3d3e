"""Files that are whole or absent, and what remains of writers that were killed."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from air.files.locks import LOCKS, is_at, lock
from air.files.signals import temporary_files

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.air-tmp")  # names of files that are being written


@contextmanager
def atomic_write(path: Path, regular: bool = False) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` once it has been written whole; until then `path` stays as it was.

    Of a symbolic link the target is replaced. An existing file keeps its permissions, a new one gets those that the
    umask allows. A device or a FIFO is written to directly.

    Args:
        path: the file.
        regular: refuse devices and FIFOs, for files that are read again.
    Raises:
        OSError: the folder cannot be written, the disk is full, or the path is not a file of the kind required.
    """
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode) or path.parts[:2] == ("/", "dev"):  # such as /dev/stdout
        if regular:
            raise OSError(f"{path} is not a regular file")
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path.parent) as (temporary, file):
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask() if mode is None else stat.S_IMODE(mode))
        if not LOCKS:
            file.close()  # Windows does not rename open files
        os.replace(temporary, path)


@contextmanager
def _temporary(folder: Path) -> Iterator[tuple[str, BinaryIO]]:
    """A new file, removed in the end unless it has been renamed; locked until then, see `clear_stale`."""
    while True:
        path = str(folder / f".{os.urandom(8).hex()}.air-tmp")
        temporary_files.add(path)  # first, so that an interrupt cannot come between
        try:
            with open(_create(path), "wb") as file:
                if lock(file.fileno()) is not False and is_at(file.fileno(), path):  # else just taken for stale
                    yield path, file
                    return
        finally:
            with suppress(OSError):
                os.unlink(path)
            temporary_files.discard(path)


def _create(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.path.dirname(path)) from None  # nobody has heard of the file


def clear_stale(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; those of writers at work are locked, and stay."""
    with suppress(OSError):  # this tidies up, and is no reason to fail
        for name in filter(TEMPORARY.fullmatch, os.listdir(folder) if LOCKS else ()):
            with suppress(OSError):
                _remove_if_stale(folder / name)


def _remove_if_stale(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid == os.getuid() and lock(descriptor) and is_at(descriptor, path):
            path.unlink()
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
