"""Multi-MNIST: scenes of MNIST digits, by default 50 x 50 pixels (Eslami et al., 2016, section 3.1)."""

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torchvision.datasets import MNIST
from torchvision.transforms.v2.functional import resize
from tyro.conf import Suppress

from air.data.cache import cached
from air.data.dataset import Generated, RootField, download
from air.data.scenes import (
    IMAGE_SIZE,
    OBJECT_SIZE,
    Backdrop,
    DataError,
    ImageSize,
    Objects,
    Scenes,
    add_backdrop,
    add_noise,
    check_scenes,
    compose,
    draw_counts,
)
from air.models.settings import NonNegative, PositiveFraction, PositiveInt, Text, settings

DIGIT_SIZE = 28
# MNIST draws a digit 20 pixels high in an image of 28. A scene scales that image to 28/s pixels, s ~ Normal(1.3, 0.1)
# as the reference's generator, for the default object size and in proportion to it for others.
SCALE_MEAN, SCALE_SD = 1.3, 0.1
USUAL_SIDE = IMAGE_SIZE * OBJECT_SIZE


def load_mnist(root: str | Path, train: bool) -> MNIST:
    """MNIST's training or test digits, downloaded where `root` does not hold them.

    Raises:
        DataError: they are damaged, or neither there nor can they be downloaded.
    """
    try:
        return MNIST(str(root), train=train)
    except (RuntimeError, ValueError, AssertionError, OSError, EOFError) as error:
        if "not found" not in str(error):  # torchvision's word for "not there"
            raise DataError(f"the MNIST files under {Path(root) / 'MNIST' / 'raw'} cannot be read "
                            f"({' '.join(str(error).split())}): replace them") from error
    try:
        download(partial(MNIST, download=True), root)
        return MNIST(str(root), train=train)
    except (RuntimeError, OSError) as error:
        raise DataError(f"MNIST is not under {Path(root).resolve()} and cannot be downloaded "
                        f"({' '.join(str(error).split())}). Put its four idx files into "
                        f"{Path(root) / 'MNIST' / 'raw'}, name the folder that holds MNIST/raw with --data.root or "
                        "AIR_DATA_ROOT, or use --dataset sprites") from error


@settings
class MultiMNIST(Generated):
    """MNIST digits on a black or textured background (Eslami et al., 2016, section 3.1)."""

    name: Suppress[Literal["multi-mnist"]] = "multi-mnist"
    train_scenes: PositiveInt = 60_000
    """Number of training scenes."""
    root: Text = RootField
    """Folder that holds MNIST/raw, or to download MNIST to ($AIR_DATA_ROOT sets the default)."""
    overlap: Literal["none", "loose"] = "none"
    """none: the digits' boxes do not touch; loose: digits may touch."""
    image_size: ImageSize = IMAGE_SIZE
    """Side of the image in pixels."""
    object_size: PositiveFraction = OBJECT_SIZE
    """A digit's side as a share of the image's."""
    noise: NonNegative = 0.0
    """Standard deviation of Gaussian pixel noise, in intensities; pixels are clipped to [0, 1]."""
    backdrop: Backdrop = "black"
    """What lies behind the digits."""

    def generate(self, train: bool, size: int, counts: Sequence[int], seed: int = 0) -> Scenes:
        """Generate scenes from MNIST's training or test digits; their labels are the digits."""
        mnist = load_mnist(self.root, train)
        digits, labels = mnist.data, mnist.targets

        def build() -> Scenes:
            def draw(rng: np.random.Generator, size: int) -> Objects:
                return _draw_digits(rng, digits, labels, size, self.image_size * self.object_size, self.image_size)

            check_scenes(draw, counts, size, self.image_size, self.overlap)
            rng = np.random.default_rng((seed, train))
            drawn = draw_counts(rng, counts, size)
            scenes = compose(rng, draw(rng, int(drawn.sum())), drawn, self.image_size, self.overlap)
            return add_noise(rng, add_backdrop(rng, scenes, self.backdrop), self.noise)

        key = {"version": 3, "train": train, "size": size, "counts": list(counts), "seed": seed,
               "digits": zlib.crc32(digits.numpy()), **self.appearance()}
        return cached("multi-mnist", key, build, (size, 1, self.image_size))


def _draw_digits(rng: np.random.Generator, digits: torch.Tensor, labels: torch.Tensor, size: int, side: float,
                 largest_side: int) -> Objects:
    chosen = rng.integers(0, len(digits), size)
    scale = rng.normal(SCALE_MEAN, SCALE_SD, size) * (USUAL_SIDE / side)
    sides = np.clip(np.rint(DIGIT_SIZE / scale), 1, largest_side).astype(np.int64)
    largest = int(sides.max(initial=1))
    patches = np.zeros((size, 1, largest, largest), np.uint8)
    for side in np.unique(sides):
        same = np.flatnonzero(sides == side)
        patches[same, 0, :side, :side] = resize(digits[chosen[same]], [side, side], antialias=True).numpy()
    return Objects(patches, sides, labels.numpy()[chosen])
