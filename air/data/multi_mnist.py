"""Multi-MNIST: scenes of MNIST digits, by default 50 x 50 pixels (Eslami et al., 2016, section 3.1)."""

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torchvision.datasets import MNIST
from torchvision.transforms.v2.functional import resize
from tyro.conf import Suppress

from air.data.cache import cached
from air.data.dataset import Generated, RootField, download
from air.data.layout import Layout, Objects, Placement, check_scenes, compose, tight_boxes
from air.data.scenes import (
    IMAGE_SIZE,
    OBJECT_SIZE,
    Backdrop,
    DataError,
    ImageSize,
    Scenes,
    add_backdrop,
    add_noise,
    draw_counts,
)
from air.models.settings import NonNegative, NonNegativeInt, ObjectSize, PositiveInt, Text, settings

DIGIT_SIZE = 28
# MNIST draws a digit 20 pixels high in an image of 28. A scene scales that image to 28/s pixels, s ~ Normal(1.3, 0.1)
# as the reference's generator, for the default object size and in proportion to it for others.
SCALE_MEAN, SCALE_SD = 1.3, 0.1
USUAL_SIDE = IMAGE_SIZE * OBJECT_SIZE
RESIZED_TOGETHER = 1 << 16  # digits


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
    overlap: Literal["none", "loose", "limited"] = "none"
    """none: the digits' boxes do not touch; loose: digits may touch; limited: boxes overlap by at most max_overlap."""
    max_overlap: NonNegativeInt = 98
    """With limited overlap, the square pixels that the boxes of any two digits share at most; a box is MNIST's whole
    image, reduced, or with two shares a square around the digit's ink."""
    placement: Placement = "margin"
    """margin: MNIST's whole image, reduced, lies within the scene; tight: a digit's ink does; cut: the middle of a
    digit's box does, so that the border cuts digits."""
    image_size: ImageSize = IMAGE_SIZE
    """Side of the image in pixels."""
    object_size: ObjectSize = (OBJECT_SIZE,)
    """A digit's side as a share of the image's; of two shares, the longer side of its ink is uniform between them."""
    size_jitter: Annotated[NonNegative, Field(le=0.3)] = SCALE_SD
    """With one share, standard deviation of the scale of a digit, whose mean is 1.3; with 0 all are equally large."""
    noise: NonNegative = 0.0
    """Standard deviation of Gaussian pixel noise, in intensities; pixels are clipped to [0, 1]."""
    backdrop: Backdrop = "black"
    """What lies behind the digits."""

    LATER: ClassVar[frozenset[str]] = frozenset({"max_overlap", "placement", "size_jitter"})

    @property
    def black_ground(self) -> bool:
        return self.backdrop == "black"

    @property
    def detailed_ground(self) -> bool:
        return self.backdrop == "grid"

    def generate(self, train: bool, size: int, counts: Sequence[int], seed: int = 0) -> Scenes:
        """Generate scenes from MNIST's training or test digits; their labels are the digits."""
        mnist = load_mnist(self.root, train)
        digits, labels = mnist.data, mnist.targets
        varied = len(self.object_size) == 2
        layout = Layout(self.image_size, self.overlap, self.max_overlap, self.placement,
                        in_turn=self.overlap == "limited" or (varied and self.overlap == "none"))

        def draw(rng: np.random.Generator, size: int) -> Objects:
            if not varied:
                return _draw_digits(rng, digits, labels, size, self.image_size * self.object_size[0], self.size_jitter,
                                    self.image_size)
            low, high = (max(1, round(self.image_size * share)) for share in self.object_size)
            objects = draw_ink(rng, digits, labels, size, low, high)
            self._check_margins(objects)
            return objects

        def build() -> Scenes:
            check_scenes(draw, counts, size, layout)
            rng = np.random.default_rng((seed, train))
            scenes = compose(rng, draw, draw_counts(rng, counts, size), layout)
            return add_noise(rng, add_backdrop(rng, scenes, self.backdrop), self.noise)

        key = {"version": 3, "train": train, "size": size, "counts": list(counts), "seed": seed,
               "digits": zlib.crc32(digits.numpy()), **self.appearance()}
        return cached("multi-mnist", key, build, (size, 1, self.image_size))

    def appearance(self) -> dict[str, Any]:
        """As of the base class; one share is a number."""
        own = super().appearance()
        return own | {"object_size": own["object_size"][0]} if len(self.object_size) == 1 else own

    def _check_margins(self, objects: Objects) -> None:
        """Raises DataError: a digit does not fit the scene with its margin, which it must."""
        if self.placement != "margin" or objects.margins is None:
            return
        largest = int((objects.margins[:, 2:] - objects.margins[:, :2]).max(initial=0))
        if largest > self.image_size:
            raise DataError(f"a digit with its margin is {largest} pixels wide, the image {self.image_size}: use a "
                            "smaller --data.object-size, or --data.placement tight or cut")


def _draw_digits(rng: np.random.Generator, digits: torch.Tensor, labels: torch.Tensor, size: int, side: float,
                 jitter: float, largest_side: int) -> Objects:
    chosen = rng.integers(0, len(digits), size)
    scale = rng.normal(SCALE_MEAN, jitter, size) * (USUAL_SIDE / side)
    sides = np.clip(np.rint(DIGIT_SIZE / scale), 1, largest_side).astype(np.int64)
    largest = int(sides.max(initial=1))
    patches = np.zeros((size, 1, largest, largest), np.uint8)
    for side in np.unique(sides):
        same = np.flatnonzero(sides == side)
        for some in np.array_split(same, -(-len(same) // RESIZED_TOGETHER)):
            patches[some, 0, :side, :side] = resize(digits[chosen[some]], [side, side], antialias=True).numpy()
    return Objects(patches, sides, labels.numpy()[chosen])


def draw_ink(rng: np.random.Generator, digits: torch.Tensor, labels: torch.Tensor, size: int, low: int, high: int
             ) -> Objects:
    """Draw digits whose ink has a longer side of low to high pixels, uniformly and with both ends included.

    Args:
        digits: (N, 28, 28) uint8.
        labels: (N,).
        size: number of digits.
    Returns:
        Digits in the middle of squares of the longer side; their margins are MNIST's.
    """
    chosen = rng.integers(0, len(digits), size)
    sides = rng.integers(low, high + 1, size)
    ink = tight_boxes(digits[chosen][:, None].numpy())  # (P, 4)
    extent = ink[:, 2:] - ink[:, :2]
    scale = (sides / extent.max(-1))[:, None]
    extent = np.maximum(1, np.rint(extent * scale)).astype(np.int64)
    corners = (sides[:, None] - extent) // 2
    patches = np.zeros((size, 1, high, high), np.uint8)
    for patch, digit, box, (x, y), (width, height) in zip(patches, digits[chosen].numpy(), ink, corners, extent):
        cropped = Image.fromarray(digit[box[1]:box[3], box[0]:box[2]])
        resized = cropped.resize((int(width), int(height)), Image.Resampling.BILINEAR)  # antialiased where it shrinks
        patch[0, y:y + height, x:x + width] = np.asarray(resized)
    whole = np.concatenate((-ink[:, :2], DIGIT_SIZE - ink[:, :2]), -1)
    return Objects(patches, sides, labels.numpy()[chosen], _rounded(whole * scale) + np.tile(corners, 2))


def _rounded(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values).astype(np.int64)
