"""Square crops of large pictures: how many a picture has room for, and crops at fixed places with what is known there.
"""

import math

import torch
import torch.nn.functional as F
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
        the crop's border, and so is its mask; the pixels of others are the ground's. The count is known where that of
        the picture is and each of its objects has a box.
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
    places = [(picture, slice(top, top + side), slice(left, left + side))
              for picture, (top, left) in zip(member.tolist(), corners.tolist())]
    images = torch.stack([scenes.images[picture, :, rows, columns] for picture, rows, columns in places])
    boxes = scenes.boxes[member]  # (K, L, 4)
    visible = (boxes - corners.flip(-1).repeat(1, 2)[:, None]).clamp(0, side)
    inside = scenes.has_box[member] & (_area(visible) >= VISIBLE * _area(boxes))
    counts, has_all = scenes.counts[member], (scenes.has_box.sum(-1) == scenes.counts)[member]
    counts = inside.sum(-1).where(has_all, torch.full_like(counts, -1))
    labels = scenes.labels[member]
    masks = None if scenes.masks is None else torch.stack([scenes.masks[place] for place in places])
    if masks is not None and inside.shape[1]:
        owner = masks.long()
        masks *= F.pad(inside, (1, 0)).gather(1, owner.flatten(1)).view_as(owner)
    return Scenes(images, counts, visible * inside[..., None], labels.where(inside, torch.full_like(labels, -1)),
                  masks=masks, colours=None if scenes.colours is None else scenes.colours[member] * inside[..., None])


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)
