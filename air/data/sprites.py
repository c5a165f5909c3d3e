"""Sprites: RGB scenes of coloured shapes, generated in process, for machines without MNIST."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tyro.conf import Suppress

from air.data.cache import cached
from air.data.dataset import Generated
from air.data.layout import Layout, Objects, check_scenes, compose
from air.data.scenes import IMAGE_SIZE, OBJECT_SIZE, Scenes, draw_counts
from air.models.settings import ObjectSize, settings

USUAL_SIDES = (12, 16)  # pixels, both ends included, for the usual object size and in proportion to it for others
SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue")  # one channel each
_OVERSAMPLING = 8


@settings
class Sprites(Generated):
    """Circles, squares and triangles in red, green or blue; needs no data."""

    name: Suppress[Literal["sprites"]] = "sprites"
    object_size: ObjectSize = (OBJECT_SIZE,)
    """A sprite's side as a share of the image's: 72 to 96% of one share, or uniform between two."""
    overlap: Literal["none", "over"] = "none"
    """none: the sprites' boxes do not touch; over: sprites cover others of another colour, and at least a quarter of
    each is seen."""
    placement: Literal["tight", "cut"] = "tight"
    """tight: sprites lie within the image; cut: their middles do, so that the border cuts sprites."""
    LATER: ClassVar[frozenset[str]] = frozenset({"object_size", "placement", "overlap"})

    @property
    def objects_hide(self) -> bool:
        return self.overlap == "over"

    def generate(self, train: bool, size: int, counts: Sequence[int], seed: int = 0) -> Scenes:
        """Generate scenes; their labels are 3 * shape + colour, indices into SHAPES and COLOURS."""
        over = self.overlap == "over"
        layout = Layout(IMAGE_SIZE, self.overlap, placement=self.placement, in_turn=over or len(self.object_size) == 2,
                        contrast=255)

        def draw(rng: np.random.Generator, size: int) -> Objects:
            return _draw_sprites(rng, size, *self._sides())

        def build() -> Scenes:
            check_scenes(draw, counts, size, layout)
            rng = np.random.default_rng((seed, train))
            return compose(rng, draw, draw_counts(rng, counts, size), layout)

        key = {"version": 1, "train": train, "size": size, "counts": list(counts), "seed": seed, **self.appearance()}
        return cached("sprites", key, build, (size, len(COLOURS), IMAGE_SIZE), ("masks", "colours") if over else ())

    def _sides(self) -> tuple[int, int]:
        """The smallest and the largest side in pixels."""
        if len(self.object_size) == 1:
            low, high = (side * self.object_size[0] / OBJECT_SIZE for side in USUAL_SIDES)
        else:
            low, high = (share * IMAGE_SIZE for share in self.object_size)
        return max(1, round(low)), max(1, round(high))


def _draw_sprites(rng: np.random.Generator, size: int, smallest: int, largest: int) -> Objects:
    shape, colour = rng.integers(0, len(SHAPES), size), rng.integers(0, len(COLOURS), size)
    sides = rng.integers(smallest, largest + 1, size)
    masks = np.stack([[_mask(name, side, largest) for side in range(smallest, largest + 1)] for name in SHAPES])
    patches = np.zeros((size, len(COLOURS), largest, largest), np.uint8)
    patches[np.arange(size), colour] = masks[shape, sides - smallest]
    colours = 255 * np.eye(len(COLOURS), dtype=np.uint8)[colour]
    return Objects(patches, sides, len(COLOURS) * shape + colour, colours=colours)


def _mask(shape: str, side: int, largest: int) -> NDArray[np.uint8]:
    """(largest, largest), an antialiased shape in the top left side x side corner."""
    fine = side * _OVERSAMPLING
    image = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((0, 0, fine - 1, fine - 1), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, fine - 1, fine - 1), fill=255)
    else:
        draw.polygon(((fine // 2, 0), (fine - 1, fine - 1), (0, fine - 1)), fill=255)
    small = image.resize((side, side), Image.Resampling.BOX)
    return np.pad(np.asarray(small), (0, largest - side))
