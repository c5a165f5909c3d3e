"""What a process shares with the system it runs on: files, locks, signals, and the streams it prints to.

Here: which files may be written, and reading what torch saved without running code from it.
"""

import pickle
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from air.files.atomic import atomic_write, clear_stale
from air.files.locks import FolderLock

__all__ = ["CheckpointError", "FolderLock", "atomic_write", "check_outputs", "clear_stale", "load_tensors"]


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


def load_tensors(path: Path) -> Any:
    """Read plain containers and tensors that torch.save wrote, onto the CPU; code in the file is not run.

    Raises:
        CheckpointError: the file is not there, damaged, or holds something else.
    """
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")  # reading a FIFO would wait for ever
    import torch  # here, because the programs import this module before they are ready for what takes seconds

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error
