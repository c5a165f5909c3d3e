"""Square crops of large pictures: how many a picture has room for, and crops at fixed places with what is known there.
"""

import math

import torch
from torch import Tensor

from air.data.scenes import Scenes

VISIBLE = 1 / 4  # an object belongs to a crop that shows at least this share of its box
EVALUATED = 1000  # crops, about, that held-out pictures are evaluated on


def disjoint_crops(scenes: Scenes, side: int) -> Tensor:
    """How many disjoint crops of this side fit into each picture in rows and columns, (M,) int64."""
    return (scenes.sizes // side).prod(-1)


def random_crops(scenes: Scenes, side: int, seed: int = 0) -> Scenes:
    """Cut crops out of pictures, at random places that follow from the seed.

    A picture gives as many crops as disjoint ones would fit, but all pictures together about EVALUATED at most. The
    first crop of every picture comes first, then the second of every picture that gives two, and so on.

    Args:
        scenes: pictures no smaller than the crops.
        side: of the crops, in pixels.
        seed: of the places.
    Returns:
        Scenes of (C, side, side) pixels. An object is in a crop that shows at least VISIBLE of its box, which is cut at
        the crop's border. The count is known where that of the picture is and each of its objects has a box.
    """
    each = disjoint_crops(scenes, side).clamp(1, math.ceil(EVALUATED / len(scenes)))  # (M,)
    member = torch.cat([(each > turn).nonzero().flatten() for turn in range(int(each.max()))])  # (crops,)
    generator = torch.Generator().manual_seed(seed)
    room = scenes.sizes[member] - side + 1
    corners = (torch.rand(room.shape, generator=generator, dtype=torch.float64) * room).long()
    return cut(scenes, member, corners, side)


def cut(scenes: Scenes, member: Tensor, corners: Tensor, side: int) -> Scenes:
    """Cut crops out of pictures.

    Args:
        scenes: M pictures.
        member: (K,) int64, the picture of each crop.
        corners: (K, 2) int64, (top, left) of each crop in pixels.
        side: of the crops, in pixels.
    Returns:
        K scenes, see `random_crops`.
    """
    images = torch.stack([scenes.images[picture, :, top:top + side, left:left + side]
                          for picture, (top, left) in zip(member.tolist(), corners.tolist())])
    boxes = scenes.boxes[member]  # (K, L, 4)
    visible = (boxes - corners.flip(-1).repeat(1, 2)[:, None]).clamp(0, side)
    inside = scenes.has_box[member] & (_area(visible) >= VISIBLE * _area(boxes))
    counts, has_all = scenes.counts[member], (scenes.has_box.sum(-1) == scenes.counts)[member]
    counts = inside.sum(-1).where(has_all, torch.full_like(counts, -1))
    labels = scenes.labels[member]
    return Scenes(images, counts, visible * inside[..., None], labels.where(inside, torch.full_like(labels, -1)))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)
