"""Generated scenes kept on disk: no pickle, written atomically, rebuilt with a warning where damaged."""

import hashlib
import json
import math
import os
import struct
import tokenize
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from air.data.scenes import Scenes
from air.files import atomic_write
from air.models.archive import printable


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/air`, by default `~/.cache/air`: data roots are often read-only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "air"


def cached(name: str, settings: Mapping[str, object], build: Callable[[], Scenes], shape: tuple[int, int, int],
           posed: bool = False) -> Scenes:
    """The scenes that `build` gives, read from the cache where they were built before with the same settings.

    Args:
        name: how the file's name begins.
        settings: all that the scenes depend on, as JSON values.
        build: generates them.
        shape: M, C and H = W of the images; a file of another shape is damaged.
        posed: whether the scenes have poses.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir() / f"{name}-{digest}.npz"
    try:
        if path.is_file():
            return _read(path, shape, posed)
    except (OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, struct.error, tokenize.TokenError,
            zipfile.BadZipFile) as error:
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        warnings.warn(f"the cached scenes {path} are damaged ({reason}); building them again", stacklevel=2)
    scenes = build()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in scenes.arrays().items()}
    try:
        with atomic_write(path, regular=True) as file:
            np.savez(file, **arrays)
    except OSError as error:
        warnings.warn(f"the scenes are not cached: {path} cannot be written ({error})", stacklevel=2)
    return scenes


def _read(path: Path, shape: tuple[int, int, int], posed: bool) -> Scenes:
    """Read the scenes of a cache file.

    Raises:
        ValueError, or another of the errors that `cached` catches: the file is not what `cached` writes.
    """
    size, channels, side = shape
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
        names = {"images", "counts", "boxes", "labels"} | ({"poses"} if posed else set())
        unpacked = sum(each.file_size for each in members.values())
        if members.keys() != names or unpacked > os.fstat(file.fileno()).st_size:
            raise ValueError(f"expected the arrays {', '.join(sorted(names))}")
        most = _header(archive, members["labels"])[0][1]
        expected = {"images": ((size, channels, side, side), "uint8"), "counts": ((size,), "int64"),
                    "boxes": ((size, most, 4), "float32"), "labels": ((size, most), "int64"),
                    "poses": ((size, most, 4), "float32")}
        arrays = {name: _array(archive, members[name], *expected[name]) for name in names}
    scenes = Scenes(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    boxes = scenes.boxes
    if not (((scenes.counts >= -1) & (scenes.counts <= most)).all() and (scenes.labels >= -1).all()
            and boxes.isfinite().all() and (boxes[..., 2:] >= boxes[..., :2]).all()
            and (scenes.poses is None or scenes.poses.isfinite().all())):
        raise ValueError("impossible counts, labels, boxes or poses")
    return scenes


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and the header's size in bytes of an array as np.savez writes it."""
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"another version of {member.filename}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return shape, dtype, file.tell()


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Read an array once its header and its size in bytes are those expected."""
    found, kind, header = _header(archive, member)
    if found != shape or kind != dtype or member.file_size != header + np.dtype(dtype).itemsize * math.prod(shape):
        raise ValueError(f"expected {member.filename} to be {dtype} {shape}, got {kind} {found}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
