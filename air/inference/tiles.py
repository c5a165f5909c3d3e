"""Infer the objects of large pictures from overlapping tiles.

A guide's step looks at all of its image to find one object, so the work for a picture read whole grows with the square
of its area. Here it grows with the area. Tiles overlap by `margin` pixels, and the middle lines of the overlaps divide
the picture among the tiles' cores:

    |<-------- tile -------->|
    |<----- core ----->|     |          an object belongs to the tile in whose core its centre lies,
                 |     |<-- core -->    which reads all of it: margin >= the largest object
                 |<-------- tile ...
                 |<-margin>|

Two tiles see an object near the middle line a little differently, and both or neither might find its centre in their
cores. So cores are taken a little larger than that, and of two findings of one object the more probable one is kept.

Tiles are taken to be independent: if q_i(k) is the probability that tile i has k of the objects kept, the picture's
count has the distribution q_1 * q_2 * ... (a convolution). Its mode n is the most probable count, and the n most
probable objects are the picture's. For a single tile, all this is what `AIR.infer` returns.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_area

from air.models.air import AIR
from air.models.distributions import log_at_least, log_count_probs, settled
from air.models.redundancy import redundant
from air.models.settings import check_positive
from air.models.spatial import invert_z_where

LARGEST_SDS = 2  # the largest object is that of so many standard deviations of the scale prior
RIM = 1 / 8  # of the largest object, by which cores are enlarged
CROWDED = 2  # a tile's default limit is so many times the objects that would fill it side by side
SHARED = 1 / 2  # of the smaller box: two tiles' objects whose boxes share more are one
ROWS = 1024  # of a matrix of distances at a time


@dataclass(frozen=True)
class Tiled:
    """What the model infers from a picture: the most probable count, and its objects, the most probable first."""

    count: int  # n
    count_probs: Tensor  # (M+1,), of 0..M objects
    at_limit: bool  # a tile counts as many objects as it may, so there may be more
    score: Tensor  # (n,), q(n >= t) of the object in its tile
    boxes: Tensor  # (n, 4), (x0, y0, x1, y1) in the picture's pixels
    z_where: Tensor  # (n, 3), (s, x, y) relative to the whole picture
    z_what: Tensor  # (n, D)


class Span(NamedTuple):
    """A tile's extent along one axis, in pixels."""

    start: int
    side: int
    low: float  # its core is low <= centre < high; infinite at the picture's borders
    high: float


class Tile(NamedTuple):
    """Where a tile lies."""

    picture: int
    columns: Span
    rows: Span


@dataclass(frozen=True)
class Objects:
    """Objects proposed in the tiles' enlarged cores; M of them."""

    tile: Tensor  # (M,), index of the tile
    step: Tensor  # (M,), t - 1
    score: Tensor  # (M,)
    centre: Tensor  # (M, 2), (x, y) in the picture's pixels
    inside: Tensor  # (M,), how far inside its core the centre lies in pixels; negative outside
    boxes: Tensor  # (M, 4)
    z_where: Tensor  # (M, 3), relative to the tile
    z_what: Tensor  # (M, D)

    def __getitem__(self, rows: Tensor) -> "Objects":
        return Objects(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def cat(cls, parts: "Sequence[Objects]") -> "Objects":
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def infer_tiles(model: AIR, picture: Tensor | NDArray[Any], most: int | None = None, tile: int | None = None,
                margin: int | None = None, batch_size: int = 16) -> Tiled:
    """Count, locate and encode the objects of a picture of any size; deterministic.

    Args:
        model: one whose `reads_any_size` is true, with objects of as many pixels as those of its training.
        picture: (C, H, W), or (H, W) for one channel; intensities, a tensor or a NumPy array; uint8 is divided by 255.
        most: count up to so many objects in a tile. None: twice as many as would fill the tile side by side, at least
            num_steps. Steps end before that when all tiles of a batch have stopped.
        tile: side of the tiles in pixels; a picture that is not larger is read whole. None: x_size + 2 margin.
        margin: by how many pixels tiles overlap. None: 5/4 of the side of the largest object that the scale prior
            expects, two standard deviations above its median.
        batch_size: tiles inferred at a time.
    Raises:
        ValueError: the model reads images of one size only, the picture is none that `AIR.infer` would read, or a
            number is out of range.
    """
    return infer_pictures(model, [picture], most, tile, margin, batch_size)[0]


@torch.no_grad()
def infer_pictures(model: AIR, pictures: Sequence[Tensor | NDArray[Any]], most: int | None = None,
                   tile: int | None = None, margin: int | None = None, batch_size: int = 16) -> list[Tiled]:
    """`infer_tiles` for several pictures: tiles of equal size are inferred together."""
    if not model.reads_any_size:
        raise ValueError("only a model with guide='search' without a background, or with a blurred one, reads pictures "
                         "of any size")
    typical, sd = (of_prior[0].item() for of_prior in (model.z_where_prior_loc, model.z_where_prior_scale))
    largest = model.x_size * math.exp(LARGEST_SDS * sd - typical)
    margin = math.ceil((1 + 2 * RIM) * largest) if margin is None else margin
    tile = model.x_size + 2 * margin if tile is None else tile
    if not 0 <= margin < tile:
        raise ValueError(f"tiles must be larger than the margin by which they overlap: got {tile} and {margin} pixels")
    for name, number in (("batch_size", batch_size), *([] if most is None else [("most", most)])):
        check_positive(name, number)
    read = [_checked(model, picture) for picture in pictures]
    tiles = [Tile(number, columns, rows) for number, picture in enumerate(read)
             for rows in spans(picture.shape[1], tile, margin) for columns in spans(picture.shape[2], tile, margin)]
    if not tiles:
        return []

    # Tiles of one size and about as many objects stop together.
    crops = [read[each.picture][:, each.rows.start:each.rows.start + each.rows.side,
                                each.columns.start:each.columns.start + each.columns.side] for each in tiles]
    order = sorted(range(len(tiles)), key=lambda i: (*crops[i].shape, crops[i].float().square().sum().item()))
    objects: list[Objects] = []
    count_probs: dict[int, Tensor] = {}
    for batch in _alike(order, crops, batch_size):
        height, width = crops[batch[0]].shape[1:]
        limit = most
        if limit is None:
            limit = max(model.num_steps, math.ceil(CROWDED * height * width / (model.x_size * math.exp(-typical))**2))
        images = model.as_images(torch.stack([crops[i] for i in batch]), intensities=True)
        found, probs = _infer(model, images, torch.tensor(batch), [tiles[i] for i in batch], RIM * largest, limit)
        objects.append(found)
        count_probs |= zip(batch, probs)
    every = Objects.cat(objects)
    owner = torch.tensor([each.picture for each in tiles], device=every.tile.device)[every.tile]
    return [_merge(model, every[owner == number], {i: count_probs[i] for i, each in enumerate(tiles)
                                                   if each.picture == number}, tiles, picture.shape[1:], largest)
            for number, picture in enumerate(read)]


def spans(length: int, tile: int, margin: int) -> list[Span]:
    """Cover a length with tiles of one side, at most `tile`, that overlap by at least `margin` pixels."""
    number = max(1, math.ceil((length - margin) / (tile - margin)))
    side = min(length, math.ceil((length + (number - 1) * margin) / number))
    starts = [i * (length - side) // max(1, number - 1) for i in range(number)]
    middles = [(start + side + following) / 2 for start, following in zip(starts, starts[1:])]
    return [Span(start, side, low, high) for start, low, high in
            zip(starts, [-math.inf, *middles], [*middles, math.inf])]


def _checked(model: AIR, picture: Tensor | NDArray[Any]) -> Tensor:
    """The picture as (C, H, W)."""
    picture = torch.as_tensor(picture)
    if picture.ndim == 2 and model.channels == 1:
        picture = picture[None]
    if picture.ndim != 3 or picture.shape[0] != model.channels or not picture.numel():
        raise ValueError(f"expected a picture of shape ({model.channels}, H, W)"
                         f"{' or (H, W)' if model.channels == 1 else ''}, got {tuple(picture.shape)}")
    return picture


def _alike(order: Sequence[int], crops: Sequence[Tensor], batch_size: int) -> list[list[int]]:
    """Batches of crops of one shape and type, in this order."""
    batches: list[list[int]] = []
    for i in order:
        kind = crops[i].shape, crops[i].dtype
        last = batches[-1] if batches else []
        if not last or len(last) == batch_size or (crops[last[0]].shape, crops[last[0]].dtype) != kind:
            batches.append([])
        batches[-1].append(i)
    return batches


def _infer(model: AIR, images: Tensor, numbers: Tensor, tiles: Sequence[Tile], rim: float, most: int
           ) -> tuple[Objects, Tensor]:
    """Infer the objects of tiles.

    Args:
        images: (B, C, H, W), the tiles' pixels.
        numbers: (B,), their indices.
        tiles: B of them.
        rim: pixels by which their cores are enlarged.
        most: the largest number of steps.
    Returns:
        The objects in the enlarged cores, without redundant ones, and q(n), (B, N+1).
    """
    ground = model.infer_background(images, at_mean=True)[1] if model.background else None
    attended = model.attend(images, at_mean=True, most=most, ground=ground)
    # The steps of a batch end when all of its tiles have settled. Each tile's own steps end where it has, so that it
    # does not matter which tiles are read together.
    over = F.pad(settled(attended.logits)[:, :-1], (1, 0))
    logits = attended.logits.masked_fill(over, -math.inf)
    count_probs = log_count_probs(logits).exp()
    extra = redundant(model, images, attended.painted, ground, attended.latents, count_probs.argmax(-1))
    left_out = over if extra is None else over | extra
    z_where, device = attended.z_where, images.device
    start = torch.tensor([(tile.columns.start, tile.rows.start) for tile in tiles], device=device)[:, None]
    core = torch.tensor([[edge for span in (tile.columns, tile.rows) for edge in (span.low, span.high)]
                         for tile in tiles], dtype=z_where.dtype, device=device)[:, None]  # (B, 1, 4)
    middle = start + start.new_tensor((images.shape[-1], images.shape[-2])) / 2
    centre = middle + invert_z_where(z_where)[..., 1:] * (model.x_size / 2)  # (B, N, 2)
    inside = torch.minimum(centre - core[..., ::2], core[..., 1::2] - centre).amin(-1)  # (B, N)
    tile, step = ((inside >= -rim) & ~left_out).nonzero(as_tuple=True)
    boxes = model.compositing.boxes(attended.painted[tile, step], z_where[tile, step], model.x_size)
    score = log_at_least(logits).exp()[:, 1:]
    found = Objects(numbers.to(device)[tile], step, score[tile, step], centre[tile, step], inside[tile, step],
                    boxes + start[tile, 0].repeat(1, 2), z_where[tile, step], attended.z_what[tile, step])
    return found, count_probs


def _merge(model: AIR, found: Objects, count_probs: Mapping[int, Tensor], tiles: Sequence[Tile], size: Sequence[int],
           largest: float) -> Tiled:
    """Merge what the tiles of one picture have found.

    Args:
        model: for its unit of canvas coordinates.
        found: in any order.
        count_probs: of each tile, by its index.
        tiles: of all pictures.
        size: (H, W) of the picture.
        largest: side of the largest object in pixels.
    """
    found = found[found.tile.argsort(stable=True)]
    found = found[found.score.argsort(descending=True, stable=True)]
    found = found[_first_of_each(found, largest)]
    probs = np.ones(1)
    for number, of_steps in count_probs.items():
        step = found.step[found.tile == number]
        kept = torch.bincount(step, minlength=len(of_steps) - 1).cumsum(0)  # (N,), objects kept of the first t
        of_kept = np.bincount(np.append(0, kept.cpu()), of_steps.cpu().double())
        probs = np.convolve(probs, of_kept)
    count = int(probs.argmax())
    at_limit = any(int(of_steps.argmax()) == len(of_steps) - 1 for of_steps in count_probs.values())
    scale, offset = found.z_where[:count].split((1, 2), -1)
    middle = found.centre.new_tensor((size[1], size[0])) / 2
    # The centre is at -(x, y)/s.
    offset = -scale * (found.centre[:count] - middle) * (2 / model.x_size)
    return Tiled(count, torch.from_numpy(probs).to(found.score), at_limit, found.score[:count], found.boxes[:count],
                 torch.cat((scale, offset), -1), found.z_what[:count])


def _first_of_each(found: Objects, largest: float) -> Tensor:
    """Which objects, of those in order, are not where another tile has an earlier one that is kept: (M,) bool.

    Boxes are compared by their intersection over the smaller one, since a tile may take half an object for a whole one.
    """
    near = (found.inside < (RIM + SHARED) * largest).nonzero().squeeze(-1)  # the others lie in one core only
    kept = torch.ones(len(found.tile), dtype=torch.bool)
    boxes, tile = found.boxes[near], found.tile[near]
    area = box_area(boxes)
    for rows in torch.arange(len(near), device=near.device).split(ROWS):
        corner = torch.maximum(boxes[rows, None, :2], boxes[:, :2])  # (R, M', 2)
        shared = (torch.minimum(boxes[rows, None, 2:], boxes[:, 2:]) - corner).clamp(min=0).prod(-1)
        same = shared > SHARED * torch.minimum(area[rows, None], area)
        same &= (tile[rows, None] != tile) & (near[rows, None] < near)
        earlier, later = same.nonzero(as_tuple=True)
        for first, second in torch.stack((near[rows[earlier]], near[later]), -1).tolist():
            if kept[first]:
                kept[second] = False
    return kept.to(near.device)
