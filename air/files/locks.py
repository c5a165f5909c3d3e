"""Locks on files and folders, which the system lets go of when their owner dies."""

import errno
import os
from pathlib import Path

try:
    import fcntl
    LOCKS = True
except ImportError:  # Windows: nothing is locked
    LOCKS = False


class FolderLock:
    """Keeps a folder to one process, from `take` until the block ends; a process that dies lets go of it.

    The folder itself is locked, so nothing is left behind in it. File systems without locks keep nobody out.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None  # the one taken
        self._descriptor: int | None = None

    def take(self, folder: Path) -> None:
        """Lock a folder, unless this is the one taken already. Raises ValueError: another process has it."""
        if folder == self.folder:
            return
        if LOCKS:
            self._descriptor = os.open(folder, os.O_RDONLY)
            if lock(self._descriptor) is False:
                raise ValueError(f"another process is at work in {folder}: wait until it ends, or name another folder")
        self.folder = folder

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def lock(descriptor: int) -> bool | None:
    """Lock a file for as long as it is open: whether that succeeded, None where locks are not supported."""
    if not LOCKS:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None


def is_at(descriptor: int, path: str | Path) -> bool:
    """Whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
