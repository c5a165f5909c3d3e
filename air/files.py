"""Files that are whole or absent, what torch saved read without running code, and the memory that there is."""

import os
import pickle
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or of another kind or version; the message says which."""


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
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask() if mode is None else stat.S_IMODE(mode))  # mkstemp's are 0600
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def check_outputs(outputs: Mapping[str, Path], inputs: Iterable[Path]) -> None:
    """Refuse outputs that would replace an input or one another.

    Args:
        outputs: files to be written, by what to call each in a message.
        inputs: files to be read.
    Raises:
        ValueError: two of them are one file, also through links or names that differ in case only.
    """
    taken = {key: f"the input {path}" for path in inputs for key in _identities(path)}
    for name, path in outputs.items():
        for key in _identities(path):
            if key in taken:
                raise ValueError(f"{name} would overwrite {taken[key]}: name another file")
        taken |= {key: f"the output of {name}" for key in _identities(path)}


def _identities(path: Path) -> set[object]:
    """What a file is known by: its resolved name without case, and its inode if it exists (a hard link shares it)."""
    known: set[object] = {str(path.resolve()).casefold()}
    if path.exists() and stat.S_ISREG(path.stat().st_mode):
        known.add((path.stat().st_dev, path.stat().st_ino))
    return known


def load_tensors(path: Path) -> Any:
    """Read plain containers and tensors that torch.save wrote, onto the CPU; code in the file is not run.

    Raises:
        CheckpointError: the file is not there, damaged, or holds something else.
    """
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")  # reading a FIFO would wait for ever
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error


def memory_limit() -> int:
    """Bytes of memory that this process can have: the machine's, or less where a cgroup (a container's) says so.

    The value is sys.maxsize where the system does not tell.
    """
    limits = [sys.maxsize, *_cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits)


def _cgroup_limits(groups: Path, mount: Path) -> Iterator[int]:
    """The limits of the process's cgroup and of those that it lies in, in both versions of cgroups."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, limit = (mount / "memory", "memory.limit_in_bytes") if controllers else (mount, "memory.max")
        folder = root / name.lstrip("/")
        for each in (folder, *folder.parents):  # a container sees its own group as the root, under a name from outside
            if each.is_relative_to(root):
                try:
                    yield int((each / limit).read_text())
                except (OSError, ValueError):  # there is none, or it is "max"
                    pass
