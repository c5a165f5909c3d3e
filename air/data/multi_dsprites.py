"""Multi-dSprites: opaque squares, ellipses and hearts that cover one another, generated in process.

Made after the description of the published sets, which exist as files only. What differs: sizes and outlines of the
shapes are ours, any angle occurs rather than 40, sprites lie at whole pixels, and sprites whose boxes overlap differ in
colour, as do all from the ground.

Source: Kabra et al. (2019), "Multi-Object Datasets"; Matthey et al. (2017), "dSprites", for the shapes.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Suppress

from air.data.cache import cached
from air.data.dataset import Generated
from air.data.layout import Ground, Layout, Objects, check_scenes, compose
from air.data.scenes import Scenes, draw_counts
from air.models.settings import SomeCounts, settings, short

IMAGE_SIZE = 64  # pixels
SHAPES = ("square", "ellipse", "heart")
SQUARE, ELLIPSE, HEART = 9.0, (12.0, 7.0), 9.0  # pixels, half of the side, half of the axes and the unit, at scale 1
SCALES = np.linspace(0.5, 1, 6)
PATCH = 27  # pixels: room for the largest sprite, however it is turned
LEVELS = np.array((0, 64, 128, 191, 255), np.uint8)  # of each channel: 125 colours
CONTRAST = 60  # of 255, by which these colours differ in a channel at least
DRAWN_TOGETHER = 4096  # sprites
GroundName = Literal["black", "grey", "colour"]


@settings
class MultiDSprites(Generated):
    """Squares, ellipses and hearts that cover one another; needs no data."""

    name: Suppress[Literal["multi-dsprites"]] = "multi-dsprites"
    counts: SomeCounts = (1, 2, 3, 4)
    """Numbers of sprites that occur; 2 to 5 in the published scenes on grey."""
    ground: Annotated[GroundName, short("--ground")] = "colour"
    """black; grey: of any level, with sprites of any hue; colour: one of 125, as the sprites'."""

    object_size: ClassVar[tuple[float, float]] = (9 / IMAGE_SIZE, 26 / IMAGE_SIZE)  # of sprites, at any angle
    objects_hide = True

    @property
    def black_ground(self) -> bool:
        return self.ground == "black"

    def generate(self, train: bool, size: int, counts: Sequence[int], seed: int = 0) -> Scenes:
        """Generate scenes; their labels are indices into SHAPES."""
        layout = Layout(IMAGE_SIZE, "over", placement="tight", in_turn=True, contrast=CONTRAST)

        def draw(rng: np.random.Generator, size: int) -> Objects:
            return draw_sprites(rng, size, saturated if self.ground == "grey" else one_of_125)

        def build() -> Scenes:
            check_scenes(draw, counts, size, layout, GROUNDS[self.ground])
            rng = np.random.default_rng((seed, train))
            return compose(rng, draw, draw_counts(rng, counts, size), layout, ground=GROUNDS[self.ground])

        key = {"version": 1, "train": train, "size": size, "counts": list(counts), "seed": seed, **self.appearance()}
        return cached(self.name, key, build, (size, 3, IMAGE_SIZE), further=("masks", "colours"))


def one_of_125(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Colours with each channel at one of five levels, (size, 3)."""
    return LEVELS[rng.integers(0, len(LEVELS), (size, 3))]


def saturated(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Colours of any hue, with saturation and value uniform between a half and one, (size, 3)."""
    hue, saturation, value = rng.uniform((0, 0.5, 0.5), 1, (size, 3)).T[..., None]
    sector = (np.array((5, 3, 1)) + 6 * hue) % 6
    less = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return np.rint(255 * value * (1 - saturation * less)).astype(np.uint8)


def grey(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Greys of any level, (size, 3)."""
    return np.repeat(rng.integers(0, 256, (size, 1), np.uint8), 3, -1)


GROUNDS = {"black": None, "grey": grey, "colour": one_of_125}


def draw_sprites(rng: np.random.Generator, size: int, colour_of: Ground) -> Objects:
    """Draw sprites of any shape, scale and angle, in the middle of their patches.

    Args:
        size: number of sprites.
        colour_of: draws their colours.
    """
    shape, angle = rng.integers(0, len(SHAPES), size), rng.uniform(0, 2 * math.pi, size)
    scale, colours = rng.choice(SCALES, size), colour_of(rng, size)
    patches, alpha = np.zeros((size, 3, PATCH, PATCH), np.uint8), np.zeros((size, PATCH, PATCH), np.uint8)
    for start in range(0, size, DRAWN_TOGETHER):
        some = slice(start, start + DRAWN_TOGETHER)
        inside = outlines(shape[some], scale[some], angle[some])
        alpha[some] = 255 * inside
        patches[some] = inside[:, None] * colours[some, :, None, None]
    return Objects(patches, np.full(size, PATCH), shape, alpha=alpha, colours=colours)


def outlines(shape: NDArray[np.int64], scale: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pixels of their patches sprites cover.

    Args:
        shape: (P,), indices into SHAPES.
        scale: (P,), 1 for the largest.
        angle: (P,), in radians.
    Returns:
        (P, PATCH, PATCH).
    """
    along = np.arange(PATCH) - (PATCH - 1) / 2
    across, down = along / scale[:, None, None], along[:, None] / scale[:, None, None]  # of a sprite of scale 1
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    x, y = cosine * across + sine * down, cosine * down - sine * across
    inside = np.zeros(x.shape, bool)
    for index, name in enumerate(SHAPES):
        own = shape == index
        u, v = x[own], y[own]
        if name == "square":
            inside[own] = np.maximum(abs(u), abs(v)) <= SQUARE
        elif name == "ellipse":
            inside[own] = (u / ELLIPSE[0])**2 + (v / ELLIPSE[1])**2 <= 1
        else:  # the heart curve (u² + v² - 1)³ = u² v³
            u, v = u / HEART, -v / HEART
            inside[own] = (u**2 + v**2 - 1)**3 <= u**2 * v**3
    return inside
