"""Custom images: a folder of PNG and JPEG files, or arrays in an .npz file; ground truth is optional."""

import csv
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tyro.conf import Suppress

from air.data.dataset import Dataset
from air.data.scenes import IMAGE_SIZE, OBJECT_SIZE, DataError, ImageSize, Scenes
from air.models.settings import PositiveFraction, Text, settings

SUFFIXES = (".png", ".jpg", ".jpeg")
COUNTS_FILE = "counts.csv"
HELD_OUT_EVERY = 10  # every tenth image, in the order of names, is held out
NAMED = 5  # unreadable files named in a message; the others are counted


@settings
class CustomImages:
    """Settings that a folder of images and an .npz file share."""

    object_size: PositiveFraction = OBJECT_SIZE
    """An object's side as a share of the image's."""
    invert: bool = False
    """The objects are dark on a bright background."""


@settings
class Folder(CustomImages):
    """Custom images: a folder of PNG and JPEG files, optionally with counts.csv."""

    name: Suppress[Literal["folder"]] = "folder"
    root: Text = ""
    """The folder of images."""
    image_size: ImageSize = IMAGE_SIZE
    """Side in pixels of the square that each image is fitted into."""

    def load(self) -> Dataset:
        """Every tenth image, in the order of names, is held out.

        Raises:
            DataError: no folder is named, or it cannot be read as `load_folder` says.
        """
        if not self.root:
            raise DataError("--dataset folder: name the folder of images with --data.root")
        return Dataset(self.name, *split(load_folder(Path(self.root), self.image_size, self.invert)[1]))


@settings
class Npz(CustomImages):
    """Custom arrays: an .npz file with images and, optionally, counts and boxes."""

    name: Suppress[Literal["npz"]] = "npz"
    file: Text = ""
    """The .npz file."""

    def load(self) -> Dataset:
        """Every tenth image is held out.

        Raises:
            DataError: no file is named, or it cannot be read as `load_arrays` says.
        """
        if not self.file:
            raise DataError("--dataset npz: name the file with --data.file")
        return Dataset(self.name, *split(load_arrays(Path(self.file), self.invert)))


def placement(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Where `fit` puts an image of width x height pixels in its square: (left, top, new width, new height)."""
    scale = size / max(width, height)
    new_width, new_height = (max(1, round(side * scale)) for side in (width, height))
    return (size - new_width) // 2, (size - new_height) // 2, new_width, new_height


def fit(image: Image.Image, size: int, grey: bool, invert: bool) -> Tensor:
    """Scale an image to fit a square, centred, its aspect ratio kept: (C, size, size) uint8.

    Args:
        size: side of the square in pixels; padding and transparent pixels are black.
        grey: convert to one channel, else to three.
        invert: dark objects on a bright background become bright ones on a dark background.
    """
    opaque = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    image = image.convert("L" if grey else "RGB")
    if invert:
        image = ImageOps.invert(image)
    if opaque is not None:
        image = Image.composite(image, Image.new(image.mode, image.size), opaque)
    left, top, width, height = placement(*image.size, size)
    square = Image.new(image.mode, (size, size))
    square.paste(image.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    pixels = torch.from_numpy(np.array(square))  # (size, size), or with channels last
    return pixels[None] if grey else pixels.movedim(-1, 0)


def read(file: Path) -> Image.Image:
    """Read an image, rotated upright, with eight bits a channel. Raises DataError: it cannot be read."""
    try:
        with Image.open(file) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file.name} ({' '.join(str(error).split())})") from error
    if upright.mode.startswith("I"):  # 16 bits, which Pillow itself would clip at 255
        return Image.fromarray((np.asarray(upright) // 257).clip(0, 255).astype(np.uint8))
    return upright


def image_files(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder, by name."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def load_folder(folder: Path, image_size: int, invert: bool) -> tuple[list[str], Scenes]:
    """Read the images of a folder, in the order of their names; unreadable ones are skipped with a warning.

    Args:
        folder: holds PNG and JPEG files and, optionally, counts.csv with the columns file and count.
        image_size: H = W in pixels, see `fit`.
        invert: see `fit`.
    Returns:
        The files' names, and scenes with one channel if all images are grey, else three.
    Raises:
        DataError: the folder is missing or holds no readable image, or counts.csv is malformed.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name one that holds PNG or JPEG files with --data.root")
    files = image_files(folder)
    images, bad = {}, []
    for file in files:
        try:
            images[file.name] = read(file)
        except DataError as error:
            bad.append(str(error))
    told = "; ".join(bad[:NAMED]) + (f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else "")
    if not images:
        raise DataError(f"{folder} holds no PNG or JPEG file that can be read{': ' + told if bad else ''}")
    if bad:
        warnings.warn(f"{len(bad)} of {len(files)} images cannot be read and are skipped: {told}", stacklevel=2)
    grey = all(image.mode in ("1", "L", "LA", "F") for image in images.values())
    pixels = torch.stack([fit(image, image_size, grey, invert) for image in images.values()])
    counts = _read_counts(folder / COUNTS_FILE, {file.name for file in files})
    return list(images), _scenes(pixels, torch.tensor([counts.get(name, -1) for name in images]))


def load_arrays(file: Path, invert: bool) -> Scenes:
    """Read the scenes of an .npz file.

    Args:
        file: holds `images`, (M, H, H), (M, H, H, C) or (M, C, H, H) with C of 1 or 3, uint8 or floats in [0, 1]; and
            optionally `counts`, (M,), -1 where unknown, and `boxes`, (M, L, 4), (x0, y0, x1, y1) in pixels, 0 where
            absent.
        invert: dark objects on a bright background become bright ones on a dark background.
    Raises:
        DataError: the file cannot be read, or an array is not as above.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = dict(arrays)
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{file} cannot be read as an .npz file ({' '.join(str(error).split())})") from error
    if "images" not in found:
        raise DataError(f"{file} holds no array named images, only {', '.join(found) or 'none'}")
    images = _as_uint8(found["images"], file)
    images = 255 - images if invert else images
    counts, boxes = _truth(found, len(images), file)
    return _scenes(images, counts, boxes)


def split(scenes: Scenes) -> tuple[Scenes, Scenes]:
    """Split into training and held-out scenes. Raises DataError: there are too few to hold some out."""
    held_out = torch.arange(len(scenes)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if not held_out.any():
        raise DataError(f"too few images, {len(scenes)}: every {HELD_OUT_EVERY}th is held out")
    return scenes[~held_out], scenes[held_out]


def _scenes(images: Tensor, counts: Tensor, boxes: Tensor | None = None) -> Scenes:
    if boxes is None:
        boxes = torch.zeros(len(images), 0, 4)
    return Scenes(images, counts, boxes, torch.full(boxes.shape[:2], -1))


def _read_counts(file: Path, names: set[str]) -> Mapping[str, int]:
    """Map file names to counts; empty if there is no such file."""
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if rows.fieldnames is None or not {"file", "count"} <= set(rows.fieldnames):
            raise DataError(f"{file}: expected the columns file and count, found {rows.fieldnames}")
        counts = {}
        for row in rows:
            where = f"{file}, line {rows.line_num}"
            try:
                counts[row["file"]] = int(row["count"])
            except (TypeError, ValueError):
                raise DataError(f"{where}: {row['count']!r} is not a whole number") from None
            if counts[row["file"]] < 0:
                raise DataError(f"{where}: a count cannot be {row['count']}")
            if row["file"] not in names:
                raise DataError(f"{where}: there is no image named {row['file']!r} beside it")
    return counts


def _as_uint8(images: np.ndarray, file: Path) -> Tensor:
    """(M, H, H), (M, H, H, C) or (M, C, H, H) -> (M, C, H, H) uint8."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3] or not images.size:
        raise DataError(f"{file}: expected images of shape (M, H, H), (M, H, H, C) or (M, C, H, H) with C of 1 or 3, "
                        f"got {images.shape}")
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise DataError(f"{file}: images must be uint8 or floats in [0, 1], got {images.dtype}")
        if not np.isfinite(images).all() or images.min() < 0 or images.max() > 1:
            raise DataError(f"{file}: images of floats must lie in [0, 1], got {images.min()} to {images.max()}")
        images = np.rint(255 * images).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(images))


def _truth(found: Mapping[str, np.ndarray], size: int, file: Path) -> tuple[Tensor, Tensor | None]:
    """Counts (M,), -1 where unknown, and boxes (M, L, 4), if given."""
    counts, boxes = torch.full((size,), -1), None
    if "counts" in found:
        given = found["counts"]
        if given.shape != (size,) or not np.issubdtype(given.dtype, np.integer) or given.min() < -1:
            raise DataError(f"{file}: expected counts of shape ({size},), whole numbers, -1 where unknown; "
                            f"got {given.dtype} {given.shape}")
        counts = torch.from_numpy(given.astype(np.int64))
    if "boxes" in found:
        given = found["boxes"]
        if given.ndim != 3 or given.shape[0] != size or given.shape[2] != 4 or not np.isfinite(given).all():
            raise DataError(f"{file}: expected boxes of shape ({size}, L, 4), finite, got {given.dtype} {given.shape}")
        boxes = torch.from_numpy(given.astype(np.float32))
    return counts, boxes
