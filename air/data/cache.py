"""Generated scenes kept on disk: no pickle, written atomically, rebuilt with a warning where damaged."""

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from air.data.scenes import Scenes
from air.files import atomic_write, clear_stale


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/air`, by default `~/.cache/air`: data roots are often read-only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "air"


def cached(name: str, settings: Mapping[str, object], build: Callable[[], Scenes]) -> Scenes:
    """The scenes that `build` gives, read from the cache where they were built before with the same settings.

    Args:
        name: how the file's name begins.
        settings: all that the scenes depend on, as JSON values.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir() / f"{name}-{digest}.npz"
    if path.is_file():
        try:
            return _read(path)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(f"the cached scenes {path} are damaged ({error}); building them again", stacklevel=2)
    clear_stale(path.parent)
    scenes = build()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in scenes.arrays().items()}
    try:
        with atomic_write(path, regular=True) as file:
            np.savez(file, **arrays)
    except OSError as error:
        warnings.warn(f"the scenes are not cached: {path} cannot be written ({error})", stacklevel=2)
    return scenes


def _read(path: Path) -> Scenes:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return Scenes(**{name: torch.from_numpy(arrays[name]) for name in arrays.files})
