"""Masks that people give with their images: which object each pixel belongs to."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from air.data.scenes import DataError

MOST_MASKED = 255  # objects of an image, which the bytes of `Scenes.masks` can number


def check_masks(given: np.ndarray, images: Tensor, counts: Tensor, file: Path) -> tuple[Tensor, Tensor]:
    """Masks from the array of a file, and the counts that follow where none are known.

    Args:
        given: (M, H, W) integers, 0 the ground's pixels; all others are objects' numbers, which may differ from image
            to image and need not be consecutive. Where the count is known and no number exceeds it, object t is that of
            the t-th box.
        images: (M, C, H, W).
        counts: (M,) int64, -1 where unknown.
        file: for messages.
    Returns:
        (M, H, W) uint8, and counts, (M,) int64. Objects are numbered anew, 1, 2, ... in the order of their numbers,
        unless the count is known and no number exceeds it: then some may be hidden.
    Raises:
        DataError: the masks are not as above, or show more objects than MOST_MASKED or than the image's count.
    """
    shape = (len(images), *images.shape[-2:])
    if given.shape != shape or given.dtype.kind not in "iu":
        raise DataError(f"{file}: expected masks of shape {shape}, whole numbers, 0 where no object is; "
                        f"got {given.dtype} {given.shape}")
    masks, found = np.empty(shape, np.uint8), np.zeros(len(images), np.int64)
    for number, (own, mask) in enumerate(zip(masks, given)):
        if mask.min() < 0:
            raise DataError(f"{file}: masks[{number}] has a negative number, expected 0 where no object is and above "
                            "0 elsewhere")
        numbers, place = np.unique(np.append(mask, mask.dtype.type(0)), return_inverse=True)
        found[number] = len(numbers) - 1
        if found[number] > MOST_MASKED:
            raise DataError(f"{file}: masks[{number}] shows {found[number]} objects, at most {MOST_MASKED} can be "
                            "told apart")
        if 0 <= counts[number] < found[number]:
            raise DataError(f"{file}: masks[{number}] shows {found[number]} objects, but counts[{number}] is "
                            f"{counts[number]}")
        fits = mask.max() <= min(int(counts[number]), MOST_MASKED)
        own[:] = mask if fits else place[:-1].reshape(mask.shape)
    return torch.from_numpy(masks), torch.where(counts < 0, torch.from_numpy(found), counts)
