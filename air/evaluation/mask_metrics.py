"""How well pixels are told apart: the adjusted Rand index of the foreground, and the IoU of objects' masks."""

from typing import Any

import torch
from torch import Tensor

from air.evaluation.box_metrics import one_to_one
from air.evaluation.metrics import Accumulator, Batch


class Masks(Accumulator[Batch]):
    """fg_ari, fg_ari_several and mask_iou."""

    def update(self, batch: Batch) -> None:
        assert batch.scenes.masks is not None
        true, found = batch.scenes.masks.long(), batch.inference.segmentation
        index = adjusted_rand_index(contingency(true, found, true > 0))
        pixels = contingency(true, found)
        objects = pixels[:, 1:].sum(2) > 0  # (B, L), those that are seen
        iou, _ = one_to_one(mask_iou(pixels)[:, 1:, 1:])  # (B, L)
        self.add({"fg_ari": index, "objects": objects.sum(1), "iou": iou.sum(1)})
        self.add({"fg_ari_several": index[objects.sum(1) > 1]})

    def compute(self) -> dict[str, Any]:
        means = self.means()
        objects, iou = means.pop("objects"), means.pop("iou")
        return means | ({"mask_iou": iou / objects} if objects else {})


def contingency(masks: Tensor, other: Tensor, inside: Tensor | None = None) -> Tensor:
    """How many pixels each segment of one segmentation shares with each of another.

    Args:
        masks, other: (B, H, W) int64, each pixel's segment from 0.
        inside: (B, H, W) bool, the pixels that count; None: all.
    Returns:
        (B, R, S) float64.
    """
    rows, columns = int(masks.max()) + 1, int(other.max()) + 1
    pair = masks * columns + other  # (B, H, W)
    weight = torch.ones_like(pair, dtype=torch.float64) if inside is None else inside.double()
    table = weight.new_zeros(len(masks), rows * columns)
    return table.scatter_add_(1, pair.flatten(1), weight.flatten(1)).unflatten(1, (rows, columns))


def adjusted_rand_index(table: Tensor) -> Tensor:
    """The adjusted Rand index of two segmentations.

    Args:
        table: (B, R, S), from `contingency`.
    Returns:
        (B,) float64, at most 1; 1 where both put all pixels into one segment, or there are none; about 0 by chance.
    Source: Hubert & Arabie (1985), eq. 5.
    """
    def pairs(pixels: Tensor) -> Tensor:
        return pixels * (pixels - 1) / 2

    together = pairs(table).sum((1, 2))
    one, other = pairs(table.sum(2)).sum(1), pairs(table.sum(1)).sum(1)
    by_chance = one * other / pairs(table.sum((1, 2))).clamp(min=1)
    most = (one + other) / 2
    return torch.where(most == by_chance, 1.0, (together - by_chance) / (most - by_chance))


def mask_iou(table: Tensor) -> Tensor:
    """IoU of each pair of segments.

    Args:
        table: (B, R, S), from `contingency` over all pixels.
    Returns:
        (B, R, S); 0 where both are empty.
    """
    union = table.sum(2, keepdim=True) + table.sum(1, keepdim=True) - table
    return table / union.clamp(min=1)
