"""`Scenes`, the container that every data set gives, and how objects are placed on canvases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from air.files import memory_limit
from air.models.settings import Side, check_memory

# Scenes whose objects do not fit are laid out anew; after this many failures in a row, give up.
MAX_FAILURES = 20_000
PROBED_OBJECTS = 500  # objects of the scenes that are tried first
PATCH_COPIES = 2  # of all objects at a time, while scenes are laid out
SCENE_SETTINGS = "lower --data.train-scenes, --data.held-out-scenes, --data.counts or, where there is one, " \
                 "--data.image-size"
Backdrop = Literal["black", "grey", "grid", "noise"]
MIN_SIDE = 8  # pixels, of an image
ImageSize = Annotated[Side, Field(ge=MIN_SIDE)]
IMAGE_SIZE = 50  # pixels, of a canvas's side
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

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def has_box(self) -> Tensor:
        """Which boxes are there, (M, L) bool."""
        return self.boxes[..., 2] > self.boxes[..., 0]

    def __getitem__(self, index: Any) -> "Scenes":
        """Select scenes by a slice, a mask or a tensor of indices."""
        return Scenes(**{name: value[index] for name, value in self.arrays().items()})

    def arrays(self) -> dict[str, Tensor]:
        """The fields that are known, by name."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True)
class Objects:
    """P objects to place, each in the top left corner of its patch."""

    patches: NDArray[np.uint8]  # (P, C, S, S), 0 outside the object's side x side square
    sides: NDArray[np.int64]  # (P,), at most S
    labels: NDArray[np.int64]  # (P,)


def compose(rng: np.random.Generator, objects: Objects, counts: NDArray[np.int64], image_size: int, overlap: str,
            enough: int | None = None) -> Scenes:
    """Place objects on black canvases, uniformly among the positions that the overlap rule allows.

    Args:
        rng: positions are drawn from it.
        objects: counts.sum() of them; the first counts[0] go to the first scene, and so on.
        counts: (M,).
        image_size: H = W in pixels.
        overlap: "none": the objects' tight boxes, each grown by one pixel, do not overlap; "loose": they may, where no
            pixel's sum exceeds 255.
        enough: stop as soon as so many scenes are laid out; None: all.
    Raises:
        DataError: a scene has no room for its objects.
    """
    enough = len(counts) if enough is None else enough
    most = int(counts.max(initial=0))
    member = np.full((len(counts), most), -1)  # scene, slot -> object
    member[np.arange(most) < counts[:, None]] = np.arange(len(objects.sides))
    corners = np.zeros((len(objects.sides), 2), np.int64)  # (x, y) of each patch on its canvas
    tight = _tight_boxes(objects.patches)
    images = np.zeros((len(counts), objects.patches.shape[1], image_size, image_size), np.uint8)

    pending, failures = np.arange(len(counts)), 0
    while len(pending) > len(counts) - enough and failures < MAX_FAILURES:
        moved = member[pending][member[pending] >= 0]
        corners[moved] = rng.integers(0, image_size - objects.sides[moved, None] + 1, (len(moved), 2))
        if overlap == "none":
            placed = _disjoint(tight + np.tile(corners, 2), member[pending])
            _paint(images, objects, corners, member, pending[placed])
        else:
            images[pending] = 0
            placed = _paint(images, objects, corners, member, pending)
        failures = 0 if placed.any() else failures + len(pending)
        pending = pending[~placed]
    if len(pending) > len(counts) - enough:
        raise DataError(f"no room for {int(counts[pending].max())} objects on a {image_size} x {image_size} canvas: "
                        f"{len(pending)} of {len(counts)} scenes could not be laid out, {failures} times in a row; "
                        "use smaller counts, smaller objects or, where the data set has it, --data.overlap loose")

    present = (member >= 0)[..., None]
    boxes = np.where(present, (tight + np.tile(corners, 2))[member], 0)
    labels = np.where(present[..., 0], objects.labels[member], -1)
    return Scenes(torch.from_numpy(images), torch.from_numpy(counts), torch.from_numpy(boxes).float(),
                  torch.from_numpy(labels))


def check_scenes(draw: Callable[[np.random.Generator, int], Objects], counts: Sequence[int], size: int, image_size: int,
                 overlap: str) -> None:
    """Check that scenes fit into memory and their objects onto the canvas, before all of them are drawn.

    Args:
        draw: draws so many objects by a generator, which is not that of the scenes.
        counts: that occur.
        size: number of scenes.
        image_size, overlap: as for `compose`.
    Raises:
        SettingsError: the scenes need more memory than there is.
        DataError: not even one scene with the largest count can be laid out.
    """
    rng = np.random.default_rng(0)
    patch = draw(rng, 1).patches
    objects = sum(counts) / len(counts) * patch.nbytes * PATCH_COPIES
    check_memory(f"{size} scenes of {image_size} x {image_size} pixels",
                 size * (objects + patch.shape[1] * image_size**2), memory_limit(), SCENE_SETTINGS)
    most = max(counts)
    tried = probes(size, most)
    compose(rng, draw(rng, tried * most), np.full(tried, most), image_size, overlap, enough=1)


def probes(size: int, most: int) -> int:
    """How many scenes to try, of so many to be drawn, whether one with the largest count can be laid out."""
    return min(size, max(1, PROBED_OBJECTS // max(1, most)))


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


def _tight_boxes(patches: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(P, C, S, S) -> (P, 4), (x0, y0, x1, y1) of each patch's non-zero pixels."""
    lit = np.any(patches, axis=1)  # (P, S, S)
    edges = []
    for axis in (1, 2):  # any over rows leaves columns (x), and the other way round
        line = np.any(lit, axis=axis)  # (P, S)
        edges.append((line.argmax(-1), line.shape[-1] - line[:, ::-1].argmax(-1)))
    (x0, x1), (y0, y1) = edges
    return np.stack((x0, y0, x1, y1), -1)


def _disjoint(boxes: NDArray[np.int64], member: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which scenes' boxes, each grown by one pixel, do not overlap: (P, 4), (M, L) -> (M,)."""
    grown = boxes + np.array((-1, -1, 1, 1))
    disjoint = np.ones(len(member), bool)
    for a in range(member.shape[1]):
        if not disjoint.any():  # with many objects all scenes fail early
            break
        for b in range(a + 1, member.shape[1]):
            one, other = grown[member[:, a]], grown[member[:, b]]
            apart = (one[:, 2:] <= other[:, :2]) | (other[:, 2:] <= one[:, :2])  # along x, along y
            disjoint &= apart.any(-1) | (member[:, b] < 0)
    return disjoint


def _paint(images: NDArray[np.uint8], objects: Objects, corners: NDArray[np.int64], member: NDArray[np.int64],
           scenes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Add each scene's objects to its canvas; which scenes have no pixel above 255: (M',)."""
    fits = np.ones(len(images), bool)
    channels = np.arange(images.shape[1])[:, None, None]
    for slot in range(member.shape[1]):
        chosen = scenes[(member[scenes, slot] >= 0) & fits[scenes]]
        sides = objects.sides[member[chosen, slot]]
        for side in np.unique(sides):  # patches of one side are added at once
            scene = chosen[sides == side]
            item = member[scene, slot]
            pixel = np.arange(side)
            rows = corners[item, 1][:, None, None, None] + pixel[:, None]
            columns = corners[item, 0][:, None, None, None] + pixel
            patch = objects.patches[item, :, :side, :side]
            where = (scene[:, None, None, None], channels, rows, columns)
            images[where] += patch  # wraps round where the sum exceeds 255, which leaves it below the patch
            fits[scene] &= (images[where] >= patch).all((1, 2, 3))
    return fits[scenes]
