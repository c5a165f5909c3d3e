"""Boxes that people give with their images, checked before a run depends on them.

Boxes come in several conventions. A wrong one is told by the numbers (a box that ends before it begins, or leaves its
image) or, where every box could be right, by the images: boxes in another convention miss the objects.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from air.data.scenes import DataError

TOLERANCE = 1  # pixels by which a box may leave its image
MAX_SAMPLE, SAMPLE_PIXELS = 200, 1 << 24  # images that are looked at, and their pixels
LEAST_SAMPLE = 12  # images; fewer are no evidence
# Boxes are taken for another reading's if, read so, they stand out more: in so large a share of the images,
ALMOST_ALL = 0.9
LESS = 0.5  # as they are by less than this share of what they would otherwise,
STANDARD_ERRORS = 5  # and on average by so many standard errors.

Boxes = NDArray[np.float64]  # (..., 4)


@np.errstate(over="ignore")  # of boxes that are refused
def check_boxes(given: np.ndarray, images: Tensor, counts: Tensor, file: Path) -> Tensor:
    """Boxes (M, L, 4) float32 from the array of a file.

    Args:
        given: (M, L, 4) real numbers, (x0, y0, x1, y1) in pixels, x1 and y1 one past the last; all 0 where absent.
        images: (M, C, H, W) uint8.
        counts: (M,) int64, -1 where unknown.
        file: for messages.
    Raises:
        DataError: a box is not as above, leaves its image by more than TOLERANCE, or an image has more boxes than
            objects. The message has the image's number, from 0, and what the boxes look like.
    """
    size, (height, width) = len(images), images.shape[-2:]
    edges = np.array((width, height) * 2)
    if given.ndim != 3 or given.shape[0] != size or given.shape[2] != 4 or given.dtype.kind not in "iuf":
        raise DataError(f"{file}: expected boxes of shape ({size}, L, 4), finite, got {given.dtype} {given.shape}")
    boxes: Boxes = given.astype(np.float64)
    present = (boxes != 0).any(-1)  # (M, L)
    expected = "expected (x0, y0, x1, y1) in pixels with x0 < x1 and y0 < y1, all 0 where absent"
    if (wrong := ~np.isfinite(boxes)).any():
        raise DataError(f"{file}: {_named(boxes, wrong)} is not finite: {expected}")
    there = boxes[present]  # (P, 4)
    if len(there) and -0.01 <= there.min() and there.max() <= 1.01 and (there % 1 != 0).any():
        sides = f"side, {width}" if width == height else f"width and height, {width} and {height}"
        raise DataError(f"{file}: the boxes look normalised to [0, 1]: multiply them by the image's {sides}")
    for broken, what in ((_inverted(boxes), "ends before it begins"),
                         (_outside(boxes, edges), f"leaves its image of {width} x {height} pixels")):
        if (wrong := broken & present[..., None]).any():
            hint = _looks_like(_likeliest_reading(boxes, present, images))
            raise DataError(f"{file}: {_named(boxes, wrong)} {what}: {expected}{hint}")
    if other := _better_reading(boxes, present, images):
        raise DataError(f"{file}: the boxes miss what stands out in the images: {expected}{_looks_like(other)}")
    found = present.sum(-1)
    if (more := (found > counts.numpy()) & (counts.numpy() >= 0)).any():
        image = int(more.argmax())
        raise DataError(f"{file}: boxes[{image}] has {found[image]} boxes, but counts[{image}] is {counts[image]}")
    return torch.from_numpy(boxes.astype(np.float32))


# ---- conventions -----------------------------------------------------------------------------------------------------

def _from_sides(boxes: Boxes) -> Boxes:
    return np.concatenate((boxes[..., :2], boxes[..., :2] + boxes[..., 2:]), -1)


def _from_centres(boxes: Boxes) -> Boxes:
    return np.concatenate((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), -1)


def _from_rows_first(boxes: Boxes) -> Boxes:
    return boxes[..., [1, 0, 3, 2]]


READINGS = {"(x, y, width, height)": _from_sides, "(centre x, centre y, width, height)": _from_centres,
            "(y0, x0, y1, x1)": _from_rows_first}


def _inverted(boxes: Boxes) -> NDArray[np.bool_]:
    """Along which axis a box ends before it begins, (..., 2)."""
    wrong: NDArray[np.bool_] = boxes[..., 2:] <= boxes[..., :2]
    return wrong


def _outside(boxes: Boxes, edges: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which edges lie outside the image, whose own are at most (width, height, width, height): (..., 4)."""
    wrong: NDArray[np.bool_] = (boxes < -TOLERANCE) | (boxes > edges + TOLERANCE)
    return wrong


def _fitting(boxes: Boxes, images: Tensor) -> list[str]:
    """The readings in which every box (P, 4) is one, inside its image."""
    edges = np.array(tuple(images.shape[:-3:-1]) * 2)
    read = {name: reading(boxes) for name, reading in READINGS.items()}
    return [name for name, each in read.items() if not (_inverted(each).any() or _outside(each, edges).any())]


def _looks_like(reading: str | None) -> str:
    return f"; these look like {reading}" if reading else ""


def _named(boxes: Boxes, wrong: NDArray[np.bool_]) -> str:
    """The first box with a wrong edge."""
    image, slot = (int(index) for index in np.argwhere(wrong)[0, :2])
    return f"boxes[{image}, {slot}] = ({', '.join(f'{edge:g}' for edge in boxes[image, slot])})"


# ---- what stands out in the images -----------------------------------------------------------------------------------

def _likeliest_reading(boxes: Boxes, present: NDArray[np.bool_], images: Tensor) -> str | None:
    """Of the readings in which every box fits its image, that whose boxes stand out most, if there is one."""
    pixels, shown, member = _sample(boxes, present, images)
    return max(_fitting(boxes[present], images), default=None,
               key=lambda name: _contrast(pixels, READINGS[name](shown), member).mean())


def _better_reading(boxes: Boxes, present: NDArray[np.bool_], images: Tensor) -> str | None:
    """The reading whose boxes stand out clearly more than as (x0, y0, x1, y1), if there is one."""
    pixels, shown, member = _sample(boxes, present, images)
    if len(pixels) < LEAST_SAMPLE:
        return None
    contrast = _contrast(pixels, shown, member)
    better: dict[str, float] = {}
    for name in _fitting(boxes[present], images):
        other = _contrast(pixels, READINGS[name](shown), member)
        gain = (other - contrast)[other != contrast]  # a box on the diagonal is the same with its axes swapped
        if (len(gain) >= LEAST_SAMPLE and contrast.mean() < LESS * other.mean() and (gain > 0).mean() >= ALMOST_ALL
                and gain.mean() > STANDARD_ERRORS * gain.std(ddof=1) / len(gain)**0.5):
            better[name] = other.mean()
    return max(better, key=better.__getitem__, default=None)


def _sample(boxes: Boxes, present: NDArray[np.bool_], images: Tensor
            ) -> tuple[NDArray[np.float32], Boxes, NDArray[np.int64]]:
    """Images that have boxes, (S, H, W), less their mean; their boxes, (P, 4); and the image of each, (P,)."""
    candidates = np.flatnonzero(present.any(-1))
    most = min(len(candidates), MAX_SAMPLE, max(LEAST_SAMPLE, SAMPLE_PIXELS // images[0, 0].numel()))
    sample = candidates[np.linspace(0, len(candidates) - 1, most).astype(int)]
    pixels = images[torch.from_numpy(sample)].float().mean(1).numpy()
    pixels -= pixels.mean(0) if most >= LEAST_SAMPLE else 0  # what all show, such as a table's edge, is no object
    member, slot = np.nonzero(present[sample])
    return pixels, boxes[sample][member, slot], member


def _contrast(pixels: NDArray[np.float32], boxes: Boxes, member: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far boxes stand out from what surrounds them, in multiples of the image's variance.

    Objects may be bright or dark, so the difference between the mean inside and the mean around is squared. Light that
    changes slowly across the image has none.

    Args:
        pixels: (S, H, W).
        boxes: (P, 4), (x0, y0, x1, y1).
        member: (P,), the image of each.
    Returns:
        (S,), the mean over each image's boxes.
    """
    sums = np.pad(pixels.astype(np.float64).cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))

    def within(edges: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The sum of the pixels, and their number."""
        x0, y0, x1, y1 = edges.T
        return (sums[member, y1, x1] - sums[member, y0, x1] - sums[member, y1, x0] + sums[member, y0, x0],
                (x1 - x0) * (y1 - y0))

    around = np.tile((boxes[:, 2:] - boxes[:, :2]) / 2, 2) * (-1, -1, 1, 1)
    inner, outer = (np.rint(each).astype(int).clip(0, pixels.shape[:0:-1] * 2) for each in (boxes, boxes + around))
    (total, area), (all_total, all_area) = within(inner), within(outer)
    difference = total / np.maximum(area, 1) - (all_total - total) / np.maximum(all_area - area, 1)
    difference *= (area > 0) & (all_area > area)
    squares = np.bincount(member, difference**2, len(pixels)) / np.bincount(member, minlength=len(pixels))
    contrast: NDArray[np.float64] = squares / np.maximum(pixels.var((1, 2)), 1e-9)
    return contrast
