"""Which of an image's numbers are black and white: measured over the training images, not taken from their type.

Cameras store 12 bits in files of 16, other programs floats in 0..1 or 0..65535, or masks of 0 and 1 in bytes. Taken at
their type's nominal range such images are black. So the range is measured, for each kind of number on its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Range = tuple[float, float]  # the intensities that become 0 and 1

UPPER_BITS = "16-bit colour"  # of which only the upper eight bits are read
KINDS = ("8-bit", "16-bit", UPPER_BITS, "integer", "float")
# What images of each kind usually reach: bit depths, and 1 for floats.
TOPS: Mapping[str, Sequence[float]] = {
    "8-bit": (255,), "16-bit": (255, 1023, 4095, 16383, 65535), UPPER_BITS: (16383, 65535),
    "integer": (255, 1023, 4095, 16383, 65535), "float": (1, 255, 1023, 4095, 16383, 65535)}
NOMINAL = {"8-bit": 255.0, "16-bit": 65535.0, UPPER_BITS: 65535.0, "integer": 65535.0,
           "float": 1.0}  # where there is nothing to measure
ENOUGH = 2**13  # the least largest intensity of 16 bits of which the upper eight are enough
ROUNDING = 1e-3  # by which floats may exceed their top, as a share of it
IGNORED_PIXELS = 1 / 500  # of an image, at either end: hot and dead pixels; at least IGNORED_AT_LEAST
IGNORED_AT_LEAST = 2
IGNORED_IMAGES = 1 / 100  # at either end: overexposed ones; at least one of MANY images
MANY = 10
FAR = 4  # times, between depths: 10, 12, 14 and 16 bits
CHUNK = 1000  # images converted at a time


def kind_of(dtype: np.dtype[Any]) -> str:
    """The kind of number of an array of intensities, one of KINDS. Raises ValueError: it holds no real numbers."""
    if dtype == np.uint8:
        return "8-bit"
    if np.issubdtype(dtype, np.integer):
        return "16-bit" if dtype.itemsize == 2 else "integer"
    if np.issubdtype(dtype, np.floating):
        return "float"
    raise ValueError(f"images must be integers or floats, got {dtype}")


def extremes(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """The lowest and the highest intensity of each image, single hot or dead pixels left out: (M, P) -> (M, 2)."""
    last = pixels.shape[1] - 1
    ignored = min(max(IGNORED_AT_LEAST, int(IGNORED_PIXELS * len(pixels[0]))), last // 4)
    ordered = np.partition(pixels, (ignored, last - ignored), axis=1)
    return ordered[:, [ignored, last - ignored]].astype(np.float64)


def measure(lowest_and_highest: NDArray[np.float64], kind: str) -> Range:
    """The range of a set of images.

    Args:
        lowest_and_highest: (M, 2), see `extremes`.
        kind: of their numbers.
    Returns:
        0 and the kind's usual top where the images use half of that range; otherwise what they do use. A few images at
        either end are left out.
    """
    count = len(lowest_and_highest)
    ignored = max(1, int(IGNORED_IMAGES * count)) if count >= MANY else 0
    low = float(np.sort(lowest_and_highest[:, 0])[ignored])
    high = float(np.sort(lowest_and_highest[:, 1])[count - 1 - ignored])
    if high <= low:  # the others at least
        low, high = float(lowest_and_highest[:, 0].min()), float(lowest_and_highest[:, 1].max())
    if high <= low:
        return 0.0, max(NOMINAL[kind], high)
    top = usual_top(high, kind)
    return (0.0, top) if low >= 0 and high - low >= top / 2 else (low, high)


def usual_top(high: float, kind: str) -> float:
    """The smallest usual top of a kind that holds an intensity; the intensity itself beyond all of them."""
    return next((float(top) for top in TOPS[kind] if high <= top * (1 + ROUNDING)), high)


def of_less_depth(lowest_and_highest: NDArray[np.float64], kind: str, of: Range) -> NDArray[np.bool_]:
    """Which images use a smaller depth than the set, such as 12 bits among 16, and are nearly black in its range.

    Args:
        lowest_and_highest: (M, 2), see `extremes`.
        kind: of their numbers.
        of: the range of the set.
    Returns:
        (M,); True where an image uses half of a usual top, or of the 1 of a mask, that is far below the range's.
    """
    low, high = lowest_and_highest.T
    tops = np.array([1.0 if kind == "8-bit" and each <= 1 else usual_top(each, kind) for each in high])
    less: NDArray[np.bool_] = (tops <= of[1] / FAR) & (high - low >= tops / 2)
    return less


def to_share(values: NDArray[Any], of: Range) -> NDArray[np.float32]:
    """Intensities as a share of a range, 0 to 1; those beyond it are clipped."""
    low, high = of
    values = values.astype(np.result_type(values.dtype, np.float32))  # 32-bit integers need more
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)


def to_bytes(values: NDArray[Any], of: Range) -> NDArray[np.uint8]:
    """Intensities in a range as 0 to 255, chunk by chunk of the first axis."""
    if values.dtype == np.uint8 and of == (0, 255):
        return values
    converted = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), CHUNK):
        converted[start:start + CHUNK] = np.rint(255 * to_share(values[start:start + CHUNK], of))
    return converted


def describe(ranges: Mapping[str, Range]) -> str:
    """Ranges in words, such as "16-bit images: 0 to 4095"."""
    return "; ".join(f"{kind} images: {low:g} to {high:g}" for kind, (low, high) in ranges.items())
