"""Records of what a model finds in image files: counts, and boxes in each image's own pixels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from air.data.images import MAX_MEGAPIXELS, Picture, listed, placement, read_files, read_full, shares, square
from air.data.intensity import ENOUGH, UPPER_BITS, Range, describe, to_bytes, usual_top
from air.data.scenes import DataError
from air.evaluation.pictures import STEP_COLOURS
from air.inference.refine import refine
from air.inference.tiles import infer_pictures
from air.models.air import AIR

DARK = 8  # images that stay below this part of training's range all look black
HELD = 2**25  # numbers in the pictures of a batch, after which no more are added
NATIVE: Literal["native"] = "native"
Pixels = int | Literal["native"] | None  # of a picture's longer side, or its own; None: fitted into training's square


@dataclass(frozen=True)
class Record:
    """What the model found in one image."""

    file: str  # its name as given; a page's or frame's number in brackets where the file has several
    count: int  # the most probable one
    at_limit: bool  # the count is the model's largest: there are at least so many objects
    probability: float  # of that count
    boxes: list[list[float]]  # (x0, y0, x1, y1) of each object, in the image's own pixels
    z_what: list[list[float]]  # each object's code


class Found(NamedTuple):
    """An image with its record."""

    picture: Picture
    used: Range  # the intensities that were black and white
    record: Record


class Intensities:
    """Which intensities are black and white in each image, and what the user should know about them."""

    def __init__(self, ranges: Mapping[str, Range], given: Range | None) -> None:
        """Args: ranges: of the images that the run was trained on, by kind; given: for all images instead."""
        self.ranges, self.given = ranges, given
        self.highest: dict[str, tuple[float, Range]] = {}  # intensity of each kind, and the range of that image
        self.beyond: list[str] = []
        self.other: dict[str, list[str]] = {}

    def of(self, picture: Picture) -> Range:
        """The range of one image: the one given, the training images' of that kind, or its kind's usual one."""
        if self.given:
            return self.given
        low, high = picture.extremes[0].tolist()
        if picture.kind not in self.ranges:
            self.other.setdefault(picture.kind, []).append(picture.name)
            used = min(0.0, low), usual_top(high, picture.kind)
        else:
            used = self.ranges[picture.kind]
            if high > used[1] + (used[1] - used[0]) / 2:
                self.beyond.append(picture.name)
        known = self.highest.setdefault(picture.kind, (high, used))
        self.highest[picture.kind] = max(known, (high, used))
        return used

    def remarks(self) -> list[str]:
        """Sentences about the images so far."""
        trained = f"training had {describe(self.ranges)}"
        said = [f"{listed(names)}: {kind} images, {trained}; each was taken at the usual range that holds it"
                for kind, names in self.other.items()]
        if self.beyond:
            said.append(f"{listed(self.beyond)}: brighter than the range of training and clipped; {trained}")
        for kind, (high, (low, top)) in self.highest.items():
            least = {"8-bit": 1, UPPER_BITS: ENOUGH}.get(kind, low + (top - low) / DARK)
            if 0 < high <= least < top:
                said.append(f"no {kind} image exceeds {high:g}, so all are black; {trained}")
        return [f"{each}; --intensity-range LOW HIGH sets another" for each in said]


def infer_files(model: AIR, files: Sequence[tuple[str, Path]], intensities: Intensities, invert: bool = False,
                refined: bool = False, batch_size: int = 64, max_megapixels: float = MAX_MEGAPIXELS,
                pixels: Pixels = None, most: int | None = None) -> Iterator[Found | DataError]:
    """Infer the objects of image files, one after the other; yields the error for a file that cannot be read.

    Args:
        model: on its device.
        files: what to call each, and where it is.
        intensities: of the run.
        invert: see `images.square`.
        refined: use `air.refine`, which takes nine times as long; for pictures that are fitted.
        batch_size: how many images, or tiles of images, are inferred at a time.
        max_megapixels: see `read_files`.
        pixels: of the longer side of each picture, which is then read by `air.infer_tiles` in its own shape; "native":
            as many as it has; None: pictures are fitted into squares of training's size.
        most: see `AIR.infer` and `air.infer_tiles`.
    """
    side = model.x_size if pixels is None else None if pixels == NATIVE else pixels
    for batch in in_batches(read_files(files, side, max_megapixels), batch_size):
        pictures = [each for each in batch if isinstance(each, Picture)]
        ranges = [intensities.of(picture) for picture in pictures]
        if pixels is None:
            found = _infer_fitted(model, pictures, ranges, invert, refined, most)
        else:
            found = _infer_tiles(model, pictures, ranges, invert, most, batch_size)
        records = iter([Found(*each) for each in zip(pictures, ranges, found)])
        for each in batch:
            yield each if isinstance(each, DataError) else next(records)


def _infer_fitted(model: AIR, pictures: Sequence[Picture], ranges: Sequence[Range], invert: bool, refined: bool,
                  most: int | None) -> list[Record]:
    """Records of pictures that were read for the model's size."""
    if not pictures:
        return []
    device = next(model.parameters()).device
    images = torch.stack([square(picture, model.x_size, model.channels, used, invert)
                          for picture, used in zip(pictures, ranges)]).to(device)
    seen = refine(model, images) if refined else model.infer(images, most)
    found = zip(pictures, seen.count.tolist(), seen.at_limit.tolist(), seen.count_probs.amax(-1).tolist(),
                seen.boxes.cpu(), seen.z_what.cpu())
    return [Record(picture.name, count, at_limit, probability,
                   to_image_pixels(boxes[:count], picture.size, model.x_size).tolist(), z_what[:count].tolist())
            for picture, count, at_limit, probability, boxes, z_what in found]


def _infer_tiles(model: AIR, pictures: Sequence[Picture], ranges: Sequence[Range], invert: bool, most: int | None,
                 batch_size: int) -> list[Record]:
    """Records of pictures in their own shapes."""
    read = [np.rint(255 * shares(picture, model.channels, used, invert)).astype(np.uint8).transpose(2, 0, 1)
            for picture, used in zip(pictures, ranges)]
    seen = infer_pictures(model, read, most, batch_size=batch_size)
    return [Record(picture.name, each.count, each.at_limit, each.count_probs.max().item(),
                   _rescaled(each.boxes.cpu(), (0, 0), pixels.shape[:0:-1], picture.size).tolist(),
                   each.z_what.tolist())
            for picture, pixels, each in zip(pictures, read, seen)]


def in_batches(items: Iterator[Picture | DataError], size: int) -> Iterator[list[Picture | DataError]]:
    """Lists of so many items, or of fewer where their pictures are large."""
    batch: list[Picture | DataError] = []
    held = 0
    for item in items:
        batch.append(item)
        held += item.pixels.size if isinstance(item, Picture) else 0
        if len(batch) == size or held > HELD:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def to_image_pixels(boxes: Tensor, size: tuple[int, int], square: int) -> Tensor:
    """Map boxes from the square that `fit` made of an image to the image's own pixels.

    Args:
        boxes: (N, 4), (x0, y0, x1, y1) in the square's pixels.
        size: width and height of the image.
        square: side of the square in pixels.
    Returns:
        (N, 4), clipped to the image.
    """
    left, top, width, height = placement(*size, square)
    return _rescaled(boxes, (left, top), (width, height), size)


def _rescaled(boxes: Tensor, corner: Sequence[int], fitted: Sequence[int], size: Sequence[int]) -> Tensor:
    """Boxes on an image of `fitted` width and height at this corner, in pixels of `size`; clipped to the image."""
    corners, before, full = (torch.tensor(pair, dtype=boxes.dtype).repeat(2) for pair in (corner, fitted, size))
    return ((boxes - corners) * full / before).clamp(min=0).minimum(full)


def overlay(picture: Picture, used: Range, record: Record) -> Image.Image:
    """Draw the boxes on a copy of the original, coloured by step.

    Raises:
        OSError: the original cannot be read again.
    """
    image = read_full(picture)
    if image.mode[0] in "IF":
        image = Image.fromarray(to_bytes(np.asarray(image), used))
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)
    if record.boxes:
        colours = [STEP_COLOURS[step % len(STEP_COLOURS)] for step in range(record.count)]
        edges = torch.tensor(record.boxes).round()
        edges[:, 2:] = edges[:, 2:].sub(1).maximum(edges[:, :2])  # the outline lies on the outermost pixels
        pixels = draw_bounding_boxes(pixels, edges, colors=colours, width=max(1, max(image.size) // 200))
    return to_pil_image(pixels)
