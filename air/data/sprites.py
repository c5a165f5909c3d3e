"""Sprites: RGB scenes of coloured shapes, generated in process, for machines without MNIST."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tyro.conf import Suppress

from air.data.cache import cached
from air.data.dataset import Generated
from air.data.scenes import IMAGE_SIZE, OBJECT_SIZE, Objects, Scenes, check_scenes, compose, draw_counts
from air.models.settings import settings

SIDES = (12, 16)  # pixels, both ends included
SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue")  # one channel each
_OVERSAMPLING = 8


@settings
class Sprites(Generated):
    """Circles, squares and triangles in red, green or blue that do not overlap; needs no data."""

    name: Suppress[Literal["sprites"]] = "sprites"
    object_size: ClassVar[float] = OBJECT_SIZE

    def generate(self, train: bool, size: int, counts: Sequence[int], seed: int = 0) -> Scenes:
        """Generate scenes; their labels are 3 * shape + colour, indices into SHAPES and COLOURS."""
        def build() -> Scenes:
            check_scenes(_draw_sprites, counts, size, IMAGE_SIZE, "none")
            rng = np.random.default_rng((seed, train))
            drawn = draw_counts(rng, counts, size)
            return compose(rng, _draw_sprites(rng, int(drawn.sum())), drawn, IMAGE_SIZE, "none")

        key = {"version": 1, "train": train, "size": size, "counts": list(counts), "seed": seed, **self.appearance()}
        return cached("sprites", key, build, (size, len(COLOURS), IMAGE_SIZE))


def _draw_sprites(rng: np.random.Generator, size: int) -> Objects:
    shape, colour = rng.integers(0, len(SHAPES), size), rng.integers(0, len(COLOURS), size)
    sides = rng.integers(SIDES[0], SIDES[1] + 1, size)
    masks = np.stack([[_mask(name, side) for side in range(SIDES[0], SIDES[1] + 1)] for name in SHAPES])
    patches = np.zeros((size, len(COLOURS), SIDES[1], SIDES[1]), np.uint8)
    patches[np.arange(size), colour] = masks[shape, sides - SIDES[0]]
    return Objects(patches, sides, len(COLOURS) * shape + colour)


def _mask(shape: str, side: int) -> NDArray[np.uint8]:
    """(SIDES[1], SIDES[1]), an antialiased shape in the top left side x side corner."""
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
    return np.pad(np.asarray(small), (0, SIDES[1] - side))
