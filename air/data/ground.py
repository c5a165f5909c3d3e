"""What lies behind the objects of custom images, judged from their borders: black, grey, textured, or brighter."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RING = 1 / 20  # width of the border, as a share of the image's shorter side
DARK, BRIGHT = 2, 98  # percentiles of an image that count as its darkest and brightest
# Noise with an sd of 0.1 around black, clipped at 0, stays below both; a dark grey and a faint grid do not.
LEVEL, SPREAD = 0.1, 0.2
CONTRAST = 0.1  # the least between ground and objects that says which of them is darker


class Ground(NamedTuple):
    """Medians over images of their intensities as the model sees them, 0 to 1."""

    level: float  # at the border
    spread: float  # between the border's 10th and 90th percentile
    below: float  # from the border's level to the darkest of the image
    above: float  # and to the brightest, both averaged over images

    @property
    def is_brighter(self) -> bool:
        """Whether the objects are darker than the ground."""
        return self.below > CONTRAST and self.below > 2 * self.above

    @property
    def is_black(self) -> bool:
        """Whether there is nothing behind the objects that a model without a background would have to paint."""
        return self.level <= LEVEL and self.spread <= SPREAD


def ground_of(images: Iterable[NDArray[np.float32]]) -> Ground:
    """Judge the ground of images, (h, w, C) each, without padding, as shares of their range."""
    rows = []
    for image in images:
        grey = image.mean(-1)
        width = max(1, round(RING * min(grey.shape)))
        inside = np.zeros(grey.shape, bool)
        inside[width:-width, width:-width] = True
        low, level, high = np.percentile(grey[~inside], (10, 50, 90))
        darkest, brightest = np.percentile(grey, (DARK, BRIGHT))
        rows.append((level, high - low, max(0, level - darkest), max(0, brightest - level)))
    table = np.array(rows)
    return Ground(*np.median(table[:, :2], 0).tolist(), *table[:, 2:].mean(0).tolist())
