"""Multi-MNIST: scenes of MNIST digits, by default 50 x 50 pixels (Eslami et al., 2016, section 3.1)."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import MNIST
from torchvision.transforms.v2.functional import resize

from air.data.cache import cached
from air.data.scenes import (
    IMAGE_SIZE,
    OBJECT_SIZE,
    DataError,
    Objects,
    Scenes,
    add_backdrop,
    add_noise,
    compose,
    draw_counts,
)

DIGIT_SIZE = 28
# A digit's image, whose side it fills to 20/28, has 28/s pixels a side, s ~ Normal(1.3, 0.1), as the reference's
# generator: that is for the usual object's side, in pixels, and in proportion for any other.
SCALE_MEAN, SCALE_SD = 1.3, 0.1
USUAL_SIDE = IMAGE_SIZE * OBJECT_SIZE
OVERLAPS = ("none", "loose")


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
        return MNIST(str(root), train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(f"MNIST is not under {Path(root).resolve()} and cannot be downloaded "
                        f"({' '.join(str(error).split())}). Put its four idx files into "
                        f"{Path(root) / 'MNIST' / 'raw'}, name the folder that holds MNIST/raw with --data-root or "
                        "AIR_DATA_ROOT, or use --dataset sprites") from error


def multi_mnist(root: str | Path, train: bool, size: int, counts: Sequence[int] = (0, 1, 2), overlap: str = "none",
                seed: int = 0, image_size: int = IMAGE_SIZE, object_size: float = OBJECT_SIZE, noise: float = 0.0,
                backdrop: str = "black") -> Scenes:
    """Scenes of digits, each count with equal probability; labels are the digits.

    Args:
        root: where torchvision's MNIST lies or is to be downloaded to.
        train: compose from MNIST's training digits, else from its test digits.
        size: how many scenes.
        counts: the numbers of digits that occur.
        overlap: see `compose`.
        seed: the same scenes for the same seed and arguments; training and held-out scenes differ for any seed.
        image_size: H = W in pixels.
        object_size: a digit's side as a share of the canvas's.
        noise: see `add_noise`.
        backdrop: see `add_backdrop`.
    Raises:
        DataError: MNIST cannot be had, or the digits do not fit.
    """
    mnist = load_mnist(root, train)
    digits, labels = mnist.data, mnist.targets
    settings = {"version": 2, "train": train, "size": size, "counts": list(counts), "overlap": overlap, "seed": seed,
                "image_size": image_size, "object_size": object_size, "noise": noise,
                "digits": zlib.crc32(digits.numpy()), **({} if backdrop == "black" else {"backdrop": backdrop})}

    def build() -> Scenes:
        rng = np.random.default_rng((seed, train))
        drawn = draw_counts(rng, counts, size)
        patches = _draw_digits(rng, digits, labels, int(drawn.sum()), image_size * object_size, image_size)
        scenes = add_backdrop(rng, compose(rng, patches, drawn, image_size, overlap), backdrop)
        return add_noise(rng, scenes, noise)

    return cached("multi-mnist", settings, build)


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
