"""Sprites: RGB scenes of coloured shapes, generated in process, for machines without MNIST."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from air.data.cache import cached
from air.data.scenes import IMAGE_SIZE, Objects, Scenes, compose, draw_counts

SIDES = (12, 16)  # pixels, both ends included
SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue")  # one channel each
_OVERSAMPLING = 8


def sprites(train: bool, size: int, counts: Sequence[int] = (0, 1, 2), seed: int = 0) -> Scenes:
    """Scenes of shapes that do not overlap, each count with equal probability.

    Labels are 3 * shape + colour, indices into SHAPES and COLOURS.

    Args:
        train: training and held-out scenes differ for any seed.
        size: how many scenes.
        counts: the numbers of shapes that occur.
        seed: the same scenes for the same seed and arguments.
    Raises:
        DataError: the shapes do not fit.
    """
    def build() -> Scenes:
        rng = np.random.default_rng((seed, train))
        drawn = draw_counts(rng, counts, size)
        return compose(rng, _draw_sprites(rng, int(drawn.sum())), drawn, IMAGE_SIZE, "none")

    settings = {"version": 1, "train": train, "size": size, "counts": list(counts), "seed": seed}
    return cached("sprites", settings, build)


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
