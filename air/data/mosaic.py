"""One large picture full of digits, to try a model on far more objects than it has seen."""

from pathlib import Path

import numpy as np

from air.data.dataset import data_root
from air.data.layout import Layout, compose
from air.data.multi_mnist import draw_ink, load_mnist
from air.data.scenes import Scenes


def mosaic(digits: int = 500, image_size: int = 1024, sides: tuple[int, int] = (20, 40), seed: int = 0,
           train: bool = False, root: str | Path | None = None) -> Scenes:
    """A picture of MNIST digits, anywhere on black but apart: tight boxes grown by one pixel do not overlap.

    Args:
        digits: their number.
        image_size: H = W in pixels.
        sides: the smallest and the largest longer side of a digit's ink in pixels; uniform, both ends included.
        seed: the same seed gives the same picture.
        train: from MNIST's training digits, else from its test digits.
        root: the folder that holds MNIST/raw; None: `data_root()`.
    Returns:
        One scene, whose labels are the digits.
    Raises:
        DataError: MNIST is missing, or the digits do not fit.
        ValueError: sides are not ascending, or not within the picture.
    """
    if not 1 <= sides[0] <= sides[1] <= image_size:
        raise ValueError(f"expected 1 <= smallest <= largest side <= {image_size}, the picture's side, got {sides}")
    mnist = load_mnist(data_root() if root is None else root, train)
    layout = Layout(image_size, placement="tight", in_turn=True)
    return compose(np.random.default_rng((seed, train)), lambda rng, size: draw_ink(rng, mnist.data, mnist.targets,
                                                                                    size, *sides),
                   np.array([digits]), layout)
