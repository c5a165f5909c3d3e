"""Scenes of shapes on a table, made by the renderer in its sharp limit, with the objects' poses as ground truth."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tyro.conf import Suppress

from air.data.cache import cached
from air.data.dataset import Generated
from air.data.scenes import SCENE_SETTINGS, DataError, ImageSize, Scenes, draw_counts, probes
from air.files import memory_limit
from air.models.settings import Counts, SomeCounts, check_memory, settings
from air.scenes3d.composition import compose, visible_shares
from air.scenes3d.renderer import SHAPES, View, layers
from air.scenes3d.view import REACH

SIZE = 0.35  # half of an object's height
APART = 2 * SIZE * 2**0.5 + 0.05  # between two objects' middles: boxes do not touch however they are turned
FINER = 2  # supersampling: a pixel averages FINER x FINER rays
SHARP = 1e4
CHUNK = 200  # scenes at a time
MAX_TRIES = 10_000


@settings
class Table(Generated):
    """Spheres, boxes and cylinders that stand apart on a table; shapes and poses are uniform. Needs no data."""

    name: Suppress[Literal["scenes-table"]] = "scenes-table"
    counts: SomeCounts = (0, 1, 2, 3)
    """Numbers of objects that occur."""
    image_size: Suppress[ImageSize] = View().image_size

    object_size: ClassVar[tuple[float, float]] = (8 / 48, 18 / 48)  # of boxes
    objects_hide, black_ground = True, False

    def generate(self, train: bool, size: int, counts: Sequence[int], seed: int = 0) -> Scenes:
        """Generate scenes.

        Labels are indices into renderer.SHAPES, poses are the renderer's, and boxes are tight around each object as if
        nothing hid it. A pixel is the object's that most of its rays hit.
        """
        view = View(image_size=self.image_size)
        key = {"version": 2, "train": train, "size": size, "counts": list(counts), "seed": seed, **asdict(view)}

        def build() -> Scenes:
            side = self.image_size
            check_memory(f"{size} scenes of {side} x {side} pixels", size * 3 * side**2, memory_limit(), SCENE_SETTINGS)
            _stand_apart(np.random.default_rng(0), np.full(probes(size, max(counts)), max(counts)), enough=1)
            rng = np.random.default_rng((seed, train))
            drawn = draw_counts(rng, counts, size)
            poses, present = _stand_apart(rng, drawn)
            shapes = torch.from_numpy(rng.integers(0, len(SHAPES), present.shape))
            chunks = zip(shapes.split(CHUNK), poses.split(CHUNK), present.split(CHUNK))
            parts = [_picture(shape, pose, is_present, view) for shape, pose, is_present in chunks]
            images, boxes, masks = (torch.cat(each) for each in zip(*parts))
            return Scenes(images, torch.from_numpy(drawn), boxes, torch.where(present, shapes, -1),
                          poses * present[..., None], masks=masks)

        return cached("table", key, build, (size, 3, self.image_size), further=("poses", "masks"))


@settings
class SingleObject(Table):
    """One sphere, box or cylinder on a table. Needs no data."""

    name: Suppress[Literal["scenes-single"]] = "scenes-single"  # type: ignore[assignment]
    counts: Suppress[Counts] = (1,)
    unseen_counts: Suppress[Counts] = ()


def _stand_apart(rng: np.random.Generator, counts: NDArray[np.int64], enough: int | None = None
                 ) -> tuple[Tensor, Tensor]:
    """Poses, (M, L, 4) float32, and which of them are there, (M, L); `enough` as for `compose`."""
    enough = len(counts) if enough is None else enough
    most = int(counts.max(initial=0))
    present = np.arange(most) < counts[:, None]
    place = np.zeros((len(counts), most, 2))
    pending = np.arange(len(counts))
    for _ in range(MAX_TRIES):
        place[pending] = rng.uniform(-REACH, REACH, (len(pending), most, 2))
        distance = np.linalg.norm(place[pending, :, None] - place[pending, None], axis=-1)  # (P, L, L)
        pair = present[pending, :, None] & present[pending, None] & ~np.eye(most, dtype=bool)
        pending = pending[(pair & (distance < APART)).any((1, 2))]
        if len(pending) <= len(counts) - enough:
            break
    else:
        raise DataError(f"the table has no room for {most} objects that stand {APART:.2f} apart: use smaller counts")
    rotation = rng.uniform(0, 2 * np.pi, (len(counts), most, 1))
    poses = np.concatenate((place, rotation, np.full_like(rotation, SIZE)), -1)
    return torch.from_numpy(poses.astype(np.float32)), torch.from_numpy(present)


def _picture(shapes: Tensor, poses: Tensor, present: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Images, (B, 3, H, W) uint8, boxes, (B, L, 4), and masks, (B, H, W) uint8."""
    fine = View(**{**asdict(view), "image_size": FINER * view.image_size})
    alone = layers(shapes, poses, fine, SHARP)
    images = F.avg_pool2d(compose(alone, present.float(), fine, SHARP), FINER)
    boxes = alone.boxes(fine.image_size) / FINER * present[..., None]
    shares = visible_shares(alone, present.float(), fine, SHARP)  # (B, L, 2 H, 2 W)
    owner = F.avg_pool2d(torch.cat((1 - shares.sum(1, keepdim=True), shares), 1), FINER).argmax(1)
    return (255 * images.clamp(0, 1)).round().to(torch.uint8), boxes, owner.to(torch.uint8)
