"""What lies behind the objects of custom images: black, grey, textured, or brighter than they are."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from air.data.intensity import extremes

RING = 1 / 20  # width of the border, as a share of the image's shorter side
# Noise with an sd of 0.2 around black, clipped at 0, stays below both; a dark grey and a faint grid do not.
LEVEL, SPREAD = 0.1, 0.2
CONTRAST = 0.1  # the least between ground and objects that says which of them is darker
BLANK = 0.02  # contrast below which there is nothing to see
SMALL = 1 / 2  # objects up to this share of the image's side leave most of it to the ground
# Percentiles: of a border, between which it varies (objects at the border cover less of it than a grid's lines), and of
# the images (in some, objects cover more of the border).
PARTS, IMAGES = (10, 80), 40


class Ground(NamedTuple):
    """What images show as the model sees them, 0 to 1."""

    level: float  # of the ground, median over images
    spread: float  # along the border
    below: float  # from the ground to the darkest of the image
    above: float  # and to the brightest, both averaged over images

    @property
    def is_brighter(self) -> bool:
        """Whether the objects are darker than the ground."""
        return self.below > CONTRAST and self.below > 2 * self.above

    @property
    def is_black(self) -> bool:
        """Whether there is nothing behind the objects that a model without a background would have to paint."""
        return self.level <= LEVEL and self.spread <= SPREAD

    @property
    def is_all(self) -> bool:
        """Whether the images show nothing else."""
        return max(self.below, self.above) < BLANK


def ground_of(images: Iterable[NDArray[np.float32]], object_size: float) -> Ground:
    """Judge the ground of images.

    Args:
        images: (h, w, C) each, without padding, as shares of their range.
        object_size: an object's side as a share of the image's. The ground is what most of an image shows or, where
            objects are large, most of its border.
    """
    rows = []
    for image in images:
        grey = image.mean(-1)
        width = max(1, round(RING * min(grey.shape)))
        inside = np.zeros(grey.shape, bool)
        inside[width:-width, width:-width] = True
        border = grey[~inside]
        level = np.median(grey if object_size <= SMALL else border)
        low, high = np.percentile(border, PARTS)
        darkest, brightest = extremes(grey.reshape(1, -1))[0]
        rows.append((level, high - low, max(0, level - darkest), max(0, brightest - level)))
    table = np.array(rows)
    return Ground(float(np.median(table[:, 0])), float(np.percentile(table[:, 1], IMAGES)),
                  *table[:, 2:].mean(0).tolist())
