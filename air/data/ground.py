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


class Grounds(NamedTuple):
    """The ground of the same images, depending on the size of their objects, which is known later."""

    of_image: Ground  # what most of an image shows
    of_border: Ground  # what most of its border shows

    def behind(self, object_size: float) -> Ground:
        """The ground behind objects whose side is this share of the image's."""
        return self.of_image if object_size <= SMALL else self.of_border


def grounds_of(images: Iterable[NDArray[np.float32]]) -> Grounds:
    """Judge the ground of images, (h, w, C) each, without padding, as shares of their range."""
    rows = []
    for image in images:
        grey = image.mean(-1)
        width = max(1, round(RING * min(grey.shape)))
        inside = np.zeros(grey.shape, bool)
        inside[width:-width, width:-width] = True
        border = grey[~inside]
        low, high = np.percentile(border, PARTS)
        darkest, brightest = extremes(grey.reshape(1, -1))[0]
        levels = np.array((np.median(grey), np.median(border)))
        below, above = np.maximum(0, levels - darkest), np.maximum(0, brightest - levels)
        rows.append((levels, np.full(2, high - low), below, above))
    table = np.array(rows)  # (images, 4, 2)
    return Grounds(*(Ground(float(np.median(each[:, 0])), float(np.percentile(each[:, 1], IMAGES)),
                            *each[:, 2:].mean(0).tolist()) for each in np.moveaxis(table, -1, 0)))
