"""What a process shares with the system it runs on: files, locks, signals, memory, and the streams it prints to.

Here: which files may be written, and how much memory there is.
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from air.files.atomic import atomic_write, clear_stale
from air.files.locks import FolderLock

__all__ = ["CheckpointError", "FolderLock", "atomic_write", "check_outputs", "clear_stale", "memory_limit"]


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or of another kind or version; the message says which."""


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
