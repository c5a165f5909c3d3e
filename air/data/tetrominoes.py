"""Tetrominoes: three pieces of four cells each that do not overlap, generated in process.

Made after the description of the published set, which exists as files only; here pieces lie at any pixel.

Source: Kabra et al. (2019), "Multi-Object Datasets".
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Suppress

from air.data.cache import cached
from air.data.dataset import Generated
from air.data.layout import Layout, Objects, check_scenes, compose
from air.data.scenes import Scenes, draw_counts
from air.models.settings import SomeCounts, settings

IMAGE_SIZE = 35  # pixels
CELL = 5  # pixels
PIECES = {"I": ("####",), "O": ("##", "##"), "T": ("###", ".#."), "S": (".##", "##."), "Z": ("##.", ".##"),
          "J": ("#..", "###"), "L": ("..#", "###")}
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)], np.uint8)


def orientations() -> list[NDArray[np.bool_]]:
    """The 19 pieces that turning those of PIECES by right angles gives: cells, up to (4, 4)."""
    found: list[NDArray[np.bool_]] = []
    for rows in PIECES.values():
        piece = np.array([[cell == "#" for cell in row] for row in rows])
        for turns in range(4):
            turned = np.rot90(piece, turns)
            if not any(np.array_equal(turned, known) for known in found):
                found.append(turned)
    return found


@settings
class Tetrominoes(Generated):
    """Pieces of four square cells, in six colours, that do not overlap; those of one colour may touch. Needs no data.
    """

    name: Suppress[Literal["tetrominoes"]] = "tetrominoes"
    counts: SomeCounts = (3,)
    """Numbers of pieces that occur."""

    object_size: ClassVar[tuple[float, float]] = (2 * CELL / IMAGE_SIZE, 4 * CELL / IMAGE_SIZE)

    def generate(self, train: bool, size: int, counts: Sequence[int], seed: int = 0) -> Scenes:
        """Generate scenes; their labels are indices into `orientations()`."""
        layout = Layout(IMAGE_SIZE, "over", placement="tight", in_turn=True, visible=1)

        def build() -> Scenes:
            check_scenes(draw_pieces, counts, size, layout)
            rng = np.random.default_rng((seed, train))
            return compose(rng, draw_pieces, draw_counts(rng, counts, size), layout)

        key = {"version": 1, "train": train, "size": size, "counts": list(counts), "seed": seed, **self.appearance()}
        return cached(self.name, key, build, (size, 3, IMAGE_SIZE), further=("masks", "colours"))


def draw_pieces(rng: np.random.Generator, size: int) -> Objects:
    """Draw pieces of any kind and colour, in the upper left corners of their patches."""
    pieces = orientations()
    alpha = np.zeros((len(pieces), 4 * CELL, 4 * CELL), np.uint8)
    for own, piece in zip(alpha, pieces):
        pixels = np.kron(piece, np.ones((CELL, CELL), bool))
        own[:pixels.shape[0], :pixels.shape[1]] = 255 * pixels
    kind, colours = rng.integers(0, len(pieces), size), COLOURS[rng.integers(0, len(COLOURS), size)]
    patches = np.minimum(alpha[kind][:, None], colours[:, :, None, None])
    return Objects(patches, np.full(size, 4 * CELL), kind, alpha=alpha[kind], colours=colours)
