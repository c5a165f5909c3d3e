"""`Scenes`, the container that every data set gives, and what lies behind and over their objects."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from air.models.settings import Side

PROBED_OBJECTS = 500  # objects of the scenes that are tried first
SCENE_SETTINGS = "lower --data.train-scenes, --data.held-out-scenes, --data.counts or, where there is one, " \
                 "--data.image-size"
Backdrop = Literal["black", "grey", "grid", "noise"]
MIN_SIDE = 8  # pixels, of an image
ImageSize = Annotated[Side, Field(ge=MIN_SIDE)]
IMAGE_SIZE = 50  # pixels, of a canvas's side
NOISE_PIXELS = 10**6  # of the images whose noise is measured
NORMAL_MEDIAN = 0.6745  # of |x| of a standard Normal
OBJECT_SIZE = 1 / 3  # an object's side as a share of the canvas's


class DataError(Exception):
    """A data set cannot be loaded as requested; the message says why and what to do."""


@dataclass(frozen=True)
class Scenes:
    """M images with up to L objects each, and the ground truth, which models never see."""

    images: Tensor  # (M, C, H, W) uint8
    counts: Tensor  # (M,) int64, -1 where unknown
    boxes: Tensor  # (M, L, 4) float32, tight (x0, y0, x1, y1) in pixels, x1 and y1 one past the last; 0 where absent
    labels: Tensor  # (M, L) int64, -1 where absent
    poses: Tensor | None = None  # (M, L, 4) float32, of scenes that a renderer made, see `Table`; 0 where absent
    # (M, 2) int64, height and width of pictures that lie in the upper left corners of larger, black images; None: all
    # fill their images
    extents: Tensor | None = None
    # (M, H, W) uint8, whose pixel it is: 0 the ground's, t that of the object in slot t - 1; None: unknown
    masks: Tensor | None = None
    colours: Tensor | None = None  # (M, L, C) uint8, of objects that have one each; 0 where absent

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def has_box(self) -> Tensor:
        """Which boxes are there, (M, L) bool."""
        return self.boxes[..., 2] > self.boxes[..., 0]

    @property
    def sizes(self) -> Tensor:
        """Height and width of each picture in pixels, (M, 2) int64."""
        if self.extents is not None:
            return self.extents
        return torch.tensor(self.images.shape[2:], device=self.images.device).expand(len(self), 2)

    def __getitem__(self, index: Any) -> "Scenes":
        """Select scenes by a slice, a mask or a tensor of indices."""
        return Scenes(**{name: value[index] for name, value in self.arrays().items()})

    def arrays(self) -> dict[str, Tensor]:
        """The fields that are known, by name."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in known.items() if value is not None}


def probes(size: int, most: int) -> int:
    """How many scenes to try, of so many to be drawn, whether one with the largest count can be laid out."""
    return min(size, max(1, PROBED_OBJECTS // max(1, most)))


def noise_of(scenes: Scenes) -> float:
    """The standard deviation of the pixels' noise in intensities, as if it were Normal: from the median difference of
    neighbours, which edges hardly change. 0 where most neighbours are alike, and where no image has two pixels.
    """
    some = max(1, NOISE_PIXELS // max(1, scenes.images[:1].numel()))
    differences = torch.cat([image[:, :height, :width].float().diff(dim=axis).abs().flatten()
                             for image, (height, width) in zip(scenes.images[:some], scenes.sizes[:some].tolist())
                             for axis in (1, 2)] or [torch.zeros(0)])
    return differences.median().item() / (255 * NORMAL_MEDIAN * 2**0.5) if differences.numel() else 0.0


def add_noise(rng: np.random.Generator, scenes: Scenes, sd: float) -> Scenes:
    """Add Gaussian noise of this sd, in intensities, to every pixel and clip to [0, 1]; sd 0 changes nothing."""
    if not sd:
        return scenes
    images = np.empty(scenes.images.shape, np.uint8)
    for noisy, image in zip(images, scenes.images.numpy()):
        noisy[:] = np.clip(np.rint(image + 255 * sd * rng.standard_normal(image.shape, np.float32)), 0, 255)
    return replace(scenes, images=torch.from_numpy(images))


def add_backdrop(rng: np.random.Generator, scenes: Scenes, kind: Backdrop) -> Scenes:
    """Put a backdrop behind the objects, which cover it in proportion to their brightness.

    Args:
        kind: "grey": one level all over, uniform in [0.1, 0.5]; "grid": lines at such a level, one pixel
            wide and 5 to 8 pixels apart, with a random offset; "noise": each pixel's level uniform in [0, 0.5].
    """
    if kind == "black":
        return scenes
    size = scenes.images.shape[-1]
    images = np.empty(scenes.images.shape, np.uint8)
    for painted, image in zip(images, scenes.images.numpy() / np.float32(255)):
        if kind == "noise":
            behind = rng.uniform(0, 0.5, image.shape[1:])
        else:
            behind = np.full(image.shape[1:], rng.uniform(0.1, 0.5))
        if kind == "grid":
            apart, (x, y) = rng.integers(5, 9), rng.integers(0, 8, 2)
            line = np.arange(size)
            behind *= ((line + x) % apart == 0) | ((line[:, None] + y) % apart == 0)
        painted[:] = np.rint(255 * (image + (1 - image) * behind))
    return replace(scenes, images=torch.from_numpy(images))


def draw_counts(rng: np.random.Generator, counts: Sequence[int], size: int) -> NDArray[np.int64]:
    """(size,) counts, each of those given with equal probability."""
    return rng.choice(np.asarray(counts, np.int64), size)
