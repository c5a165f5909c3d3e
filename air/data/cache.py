"""Generated scenes kept on disk: no pickle, written atomically, rebuilt with a warning where damaged."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from air.data.arrays import read_arrays
from air.data.scenes import DataError, Scenes
from air.files import atomic_write, clear_stale


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/air`, by default `~/.cache/air`: data roots are often read-only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "air"


def cached(name: str, settings: Mapping[str, object], build: Callable[[], Scenes], shape: tuple[int, int, int],
           further: Sequence[str] = ()) -> Scenes:
    """The scenes that `build` gives, read from the cache where they were built before with the same settings.

    Args:
        name: how the file's name begins.
        settings: all that the scenes depend on, as JSON values.
        build: generates them.
        shape: M, C and H = W of the images; a file of another shape is damaged.
        further: the fields of the scenes besides images, counts, boxes and labels.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir() / f"{name}-{digest}.npz"
    try:
        if path.is_file():
            return _read(path, shape, further)
    except (DataError, OSError) as error:
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


def _read(path: Path, shape: tuple[int, int, int], further: Sequence[str]) -> Scenes:
    """Read the scenes of a cache file. Raises DataError: the file is not what `cached` writes."""
    size, channels, side = shape
    arrays = read_arrays(path, ["images", "counts", "boxes", "labels", *further])
    most = arrays["labels"].shape[-1]
    expected = {"images": ((size, channels, side, side), "uint8"), "counts": ((size,), "int64"),
                "boxes": ((size, most, 4), "float32"), "labels": ((size, most), "int64"),
                "poses": ((size, most, 4), "float32"), "masks": ((size, side, side), "uint8"),
                "colours": ((size, most, channels), "uint8")}
    for name, array in arrays.items():
        if (array.shape, array.dtype) != expected[name]:
            kind = "{1} {0}".format(*expected[name])
            raise DataError(f"expected {name} to be {kind}, got {array.dtype} {array.shape}")
    scenes = Scenes(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    boxes = scenes.boxes
    if not (((scenes.counts >= -1) & (scenes.counts <= most)).all() and (scenes.labels >= -1).all()
            and boxes.isfinite().all() and (boxes[..., 2:] >= boxes[..., :2]).all()
            and (scenes.poses is None or scenes.poses.isfinite().all())
            and (scenes.masks is None or (scenes.masks <= most).all())):
        raise DataError("impossible counts, labels, boxes, poses or masks")
    return scenes
