"""Custom images: a folder of image files, or arrays in an .npz file; ground truth is optional."""

import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor
from tqdm import tqdm
from tyro.conf import Suppress

from air.data.arrays import read_arrays
from air.data.boxes import check_boxes
from air.data.dataset import Dataset
from air.data.ground import Grounds, grounds_of
from air.data.images import MAX_MEGAPIXELS, Picture, find_images, listed, padded, read_files, shares, square
from air.data.intensity import (
    ENOUGH,
    UPPER_BITS,
    Range,
    extremes,
    kind_of,
    measure,
    of_less_depth,
    to_bytes,
    to_share,
)
from air.data.labels import check_counts, read_counts, warn_of_outliers
from air.data.masks import check_masks
from air.data.scenes import IMAGE_SIZE, MIN_SIDE, DataError, ImageSize, Scenes
from air.files import memory_limit
from air.models.settings import Positive, Side, Text, check_memory, settings

COUNTS_FILE = "counts.csv"
HELD_OUT_EVERY = 10  # every tenth image, in the order of names, is held out
LOOKED_AT = 500  # training images whose ground is judged
MIXED = 1 / 20  # share of images with another depth that is no chance
COPIES = 2  # of large pictures in memory while they are split into training and held-out ones
LARGEST = 1e30  # intensity, beyond which 32-bit floats overflow


def _ascending(given: Range) -> Range:
    if not given[0] < given[1]:
        raise ValueError(f"the lower intensity must come first, got {given[0]:g} and {given[1]:g}")
    return given


Intensity = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
IntensityRange = Annotated[tuple[Intensity, Intensity], AfterValidator(_ascending)]


@settings
class CustomImages:
    """Settings that a folder of images and an .npz file share."""

    invert: bool = False
    """The objects are dark on a bright background."""
    intensity_range: IntensityRange | None = None
    """The intensities that are black and white (None: measured over the training images)."""
    ranges: Suppress[dict[str, IntensityRange]] = field(default_factory=dict)

    def range_of(self, kind: str, lowest_and_highest: NDArray[np.float64]) -> Range:
        """The range of images of one kind: the one given, the run's, or measured over the training images.

        Args:
            kind: of their numbers, see `intensity.KINDS`.
            lowest_and_highest: (M, 2) of the training images, see `intensity.extremes`.
        """
        return self.intensity_range or self.ranges.get(kind) or measure(lowest_and_highest, kind)


@settings
class Folder(CustomImages):
    """Custom images: a folder of image files, optionally with counts.csv."""

    name: Suppress[Literal["folder"]] = "folder"
    root: Text = ""
    """The folder of images: PNG, JPEG, TIFF, BMP, WebP and GIF files."""
    recursive: bool = False
    """Read sub-folders as well."""
    image_size: ImageSize = IMAGE_SIZE
    """Side in pixels of the square that each image is fitted into; without --crop."""
    pixels_per_image: Side | None = None
    """With --crop: the longer side in pixels that each picture is brought to (None: it keeps its own size)."""
    max_megapixels: Positive = MAX_MEGAPIXELS
    """Larger pictures are left out before they are unpacked."""

    def load(self, crop: int = 0) -> Dataset:
        """Every tenth image, in the order of names, is held out; for crops, all of fewer than ten train and evaluate.

        Args:
            crop: side in pixels of the crops that a model is trained on. Pictures are then not fitted into squares;
                they keep their sizes, or are brought to `pixels_per_image`. 0: on whole images.
        Raises:
            DataError: no folder is named, or it cannot be read as `load_folder` says.
        """
        if not self.root:
            raise DataError("--dataset folder: name the folder of images with --data.root")
        return _dataset(self.name, load_folder(self, crop), crop)


@settings
class Npz(CustomImages):
    """Custom arrays: an .npz file with images and, optionally, counts, boxes and masks."""

    name: Suppress[Literal["npz"]] = "npz"
    file: Text = ""
    """The .npz file."""

    def load(self, crop: int = 0) -> Dataset:
        """Every tenth image is held out; for crops, all of fewer than ten train and evaluate.

        Args:
            crop: side in pixels of the crops that a model is trained on; pictures then need not be squares. 0: on whole
                images.
        Raises:
            DataError: no file is named, or it cannot be read as `load_arrays` says.
        """
        if not self.file:
            raise DataError("--dataset npz: name the file with --data.file")
        return _dataset(self.name, load_arrays(self, crop), crop)


class Loaded(NamedTuple):
    """Custom images, training and held-out ones together."""

    names: Sequence[str]  # of the images
    scenes: Scenes
    ranges: Mapping[str, Range]  # of intensities, by kind
    grounds: Grounds  # of the training images


def load_folder(own: Folder, crop: int = 0) -> Loaded:
    """Read the images of a folder, in the order of their names. What is left out is said in a warning.

    Args:
        own: the folder, which may hold counts.csv with the columns file and count.
        crop: see `Folder.load`.
    Returns:
        Names relative to the folder, and scenes with one channel if all images are grey, else three.
    Raises:
        DataError: the folder is missing or holds no readable image, or counts.csv is malformed.
        SettingsError: pictures for crops need more memory than there is.
    """
    folder = Path(own.root)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name one that holds image files with --data.root")
    found = find_images(folder, own.recursive, known=[COUNTS_FILE])
    files = [(str(file.relative_to(folder)), file) for file in found.files]
    side = own.pixels_per_image if crop else own.image_size
    reading = tqdm(read_files(files, side, own.max_megapixels), "reading", len(files), unit="image", disable=None)
    read = list(_checked(reading, len(files)) if crop else reading)
    pictures = [each for each in read if isinstance(each, Picture)]
    bad = [str(each) for each in read if isinstance(each, DataError)]
    if found.left_out:
        deeper = "" if own.recursive else "; --data.recursive reads folders"
        warnings.warn(f"left out of {folder}: {found.left_out}{deeper}", stacklevel=2)
    if not pictures:
        raise DataError(f"{folder} holds no image file that can be read" + (f": {listed(bad, '; ')}" if bad else ""))
    if bad:
        warnings.warn(f"{len(bad)} of {len(read)} images cannot be read and are skipped: {listed(bad, '; ')}",
                      stacklevel=2)
    training = [picture for place, picture in enumerate(pictures) if not is_held_out(place)]
    ranges = {}
    for kind in sorted({picture.kind for picture in pictures}):
        of_kind = [picture.extremes for picture in training if picture.kind == kind]
        of_kind = of_kind or [picture.extremes for picture in pictures if picture.kind == kind]
        ranges[kind] = own.range_of(kind, np.concatenate(of_kind))
        _check_range(kind, ranges[kind], [picture for picture in pictures if picture.kind == kind],
                     given=own.intensity_range is not None)
    channels = max(picture.pixels.shape[-1] for picture in pictures)
    extents = None
    if crop:
        images, extents = padded(pictures, channels, ranges, own.invert)
    else:
        images = torch.stack([square(picture, own.image_size, channels, ranges[picture.kind], own.invert)
                              for picture in pictures])
    grounds = grounds_of(shares(picture, channels, ranges[picture.kind], own.invert)
                         for picture in training[:LOOKED_AT])
    names = [picture.name for picture in pictures]
    seen = {picture.file for picture in pictures}
    counts = read_counts(folder / COUNTS_FILE, [*names, *(name for name, file in files if file not in seen)])
    scenes = _scenes(images, torch.tensor([counts.get(name, -1) for name in names]), extents=extents)
    return Loaded(names, scenes, ranges, grounds)


def _checked(read: Iterable[Picture | DataError], files: int) -> Iterator[Picture | DataError]:
    """Pictures as they are read, as long as all files fit into the memory as large as the largest picture so far.

    Raises:
        SettingsError: they do not.
    """
    held, largest = 0, (0, 0, 0)
    for number, each in enumerate(read, 1):
        if isinstance(each, Picture):
            held += each.pixels.nbytes
            largest = tuple(map(max, zip(largest, each.pixels.shape)))
            height, width, channels = largest
            check_memory(f"the pictures, as images of {width} x {height} pixels,",
                         held + COPIES * max(files, number) * height * width * channels, memory_limit(),
                         "lower --data.pixels-per-image, or take fewer pictures or none so large")
        yield each


def _check_range(kind: str, used: Range, pictures: Sequence[Picture], given: bool) -> None:
    """Warn of images that are nearly black in their kind's range, unless that is given by hand.

    Raises:
        DataError: too little of the images' intensities is read.
    """
    all_extremes = np.concatenate([picture.extremes for picture in pictures])
    if kind == UPPER_BITS and all_extremes[:, 1].max() < ENOUGH:
        raise DataError(f"{listed([picture.name for picture in pictures])}: colour images of 16 bits that use fewer "
                        "than 13 of them, of which only the upper eight are read: save them with 8 bits")
    less = [picture.name for picture, is_less in zip(pictures, of_less_depth(all_extremes, kind, used)) if is_less]
    if len(less) > MIXED * len(pictures) and not given:
        warnings.warn(f"{len(less)} {kind} images are nearly black from {used[0]:g} to {used[1]:g}, the range of the "
                      f"others, and seem to have another depth: {listed(less)}; convert them, or train without them",
                      stacklevel=3)


def load_arrays(own: Npz, crop: int = 0) -> Loaded:
    """Read the scenes of an .npz file.

    Args:
        own: the file, which holds `images`, (M, H, H), (M, H, H, C) or (M, C, H, H) with C of 1 or 3, integers or
            floats; and optionally `counts`, see `check_counts`, `boxes`, see `check_boxes`, and `masks`, see
            `check_masks`. Other arrays are not read.
        crop: see `Npz.load`; if it is not 0, height and width may differ.
    Raises:
        DataError: the file cannot be read, or an array is not as above.
    """
    file = Path(own.file)
    found = read_arrays(file, required=("images",), optional=("counts", "boxes", "masks"))
    images, ranges = _as_bytes(_channels_first(found["images"], file, any_size=crop > 0), own, file)
    size, (height, width) = len(images), images.shape[2:]
    if min(height, width) < MIN_SIDE:
        raise DataError(f"{file}: images of {width} x {height} pixels are too small, expected {MIN_SIDE} x {MIN_SIDE} "
                        "at least")
    counts = check_counts(found["counts"], size, file) if "counts" in found else torch.full((size,), -1)
    masks = None
    if "masks" in found:
        masks, counts = check_masks(found["masks"], images, counts, file)
    boxes = check_boxes(found["boxes"], images, counts, file) if "boxes" in found else None
    training = (image.numpy() for place, image in enumerate(images[:LOOKED_AT]) if not is_held_out(place))
    grounds = grounds_of(to_share(image.transpose(1, 2, 0), (0, 255)) for image in training)
    scenes = _scenes(images, counts, boxes, masks=masks)
    return Loaded([f"images[{place}]" for place in range(size)], scenes, ranges, grounds)


def changed_images(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """What has become of the images of a run, in words; empty if they are the same.

    Args:
        before, now: `Dataset.digests`.
    """
    kinds = (("new", [name for name in now if name not in before]),
             ("missing", [name for name in before if name not in now]),
             ("changed", [name for name in before if now.get(name, before[name]) != before[name]]))
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names)


def is_held_out(place: int) -> bool:
    """Whether the image at this place, from 0, is held out."""
    return place % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def split(scenes: Scenes, cropped: bool = False) -> tuple[Scenes, Scenes]:
    """Split into training and held-out scenes.

    Args:
        scenes: all.
        cropped: a model is trained on crops: if there are too few pictures to hold some out, both are all of them.
    Raises:
        DataError: there are too few, and they are not cropped.
    """
    held_out = torch.tensor([is_held_out(place) for place in range(len(scenes))])
    if not held_out.any() and cropped:
        warnings.warn(f"fewer than {HELD_OUT_EVERY} pictures, {len(scenes)}: none is held out, so the run is evaluated "
                      "on crops of the pictures that it is trained on", stacklevel=2)
        return scenes, scenes
    if not held_out.any():
        raise DataError(f"too few images, {len(scenes)}: every {HELD_OUT_EVERY}th is held out")
    return scenes[~held_out], scenes[held_out]


def _dataset(kind: str, loaded: Loaded, crop: int) -> Dataset:
    """Split images, and warn of outliers among their counts."""
    names, scenes, ranges, grounds = loaded
    train, held_out = split(scenes, crop > 0)
    warn_of_outliers(scenes.counts, train.counts, names.__getitem__)
    digests = {name: zlib.crc32(image[:, :height, :width].numpy().tobytes())
               for name, image, (height, width) in zip(names, scenes.images, scenes.sizes.tolist())}
    return Dataset(kind, train, held_out, None, ranges, digests, grounds)


def _scenes(images: Tensor, counts: Tensor, boxes: Tensor | None = None, extents: Tensor | None = None,
            masks: Tensor | None = None) -> Scenes:
    if boxes is None:
        boxes = torch.zeros(len(images), 0, 4)
    return Scenes(images, counts, boxes, torch.full(boxes.shape[:2], -1), extents=extents, masks=masks)


def _channels_first(images: NDArray[Any], file: Path, any_size: bool) -> NDArray[Any]:
    """(M, H, W), (M, H, W, C) or (M, C, H, W) -> (M, C, H, W), where H = W unless `any_size`."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    wrong = images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size
    if wrong or not any_size and images.shape[2] != images.shape[3]:
        width = "W" if any_size else "H"
        hint = "" if wrong or any_size else "; --crop trains on squares out of other images"
        raise DataError(f"{file}: expected images of shape (M, H, {width}), (M, H, {width}, C) or (M, C, H, {width}) "
                        f"with C of 1 or 3, got {images.shape}{hint}")
    return images


def _as_bytes(images: NDArray[Any], own: Npz, file: Path) -> tuple[Tensor, dict[str, Range]]:
    """Intensities (M, C, H, W) of any kind as uint8, and the range that was used."""
    if images.dtype == bool:
        images = images.astype(np.uint8) * np.uint8(255)
    kind = kind_of(images.dtype)
    pixels = images.reshape(len(images), -1)
    if kind == "float":
        beyond = ~(np.maximum(pixels.max(-1), -pixels.min(-1)).astype(float) < LARGEST)  # nan compares as false
        if beyond.any():
            raise DataError(f"{file}: image {beyond.argmax()} has intensities that are nan, infinite or above "
                            f"{LARGEST:g}")
    training = np.array([not is_held_out(place) for place in range(len(images))])
    used = own.range_of(kind, extremes(pixels[training]))
    made = to_bytes(images, used)
    return torch.from_numpy(np.ascontiguousarray(255 - made if own.invert else made)), {kind: used}
