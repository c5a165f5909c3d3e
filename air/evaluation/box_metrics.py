"""How well boxes fit: metrics of matched boxes, overall and by size, and the sizes of what was found."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from air.evaluation.metrics import Accumulator, Batch

FOUND_IOU = 0.5  # from this IoU on an inferred box is correct
SIZE_CLASSES = ("small", "medium", "large")
PERCENTILES = (5, 25, 50, 75, 95)


class Boxes(Accumulator[Batch]):
    """box_iou and box_ap50 of the scenes whose count is known."""

    def update(self, batch: Batch) -> None:
        self.append({"iou": batch.matched_iou[batch.comparable], "score": batch.log_at_least[batch.comparable]})
        self.add({"objects": batch.scenes.counts[batch.count_known]})

    def compute(self) -> dict[str, Any]:
        iou, score, objects = torch.cat(self.values["iou"]), torch.cat(self.values["score"]), int(self.sums["objects"])
        return {"box_iou": iou.sum().item() / max(1, objects),
                "box_ap50": average_precision(iou >= FOUND_IOU, score, objects)}


class BoxesBySize(Accumulator[Batch]):
    """box_by_size of the scenes whose count is known."""

    def update(self, batch: Batch) -> None:
        judged = batch.scenes.has_box & batch.count_known[:, None]
        self.append({"side": longer_side(batch.scenes.boxes)[judged], "iou": batch.true_iou[judged]})

    def compute(self) -> dict[str, Any]:
        side, iou = torch.cat(self.values["side"]), torch.cat(self.values["iou"]).double()
        if not len(side):
            return {}
        size = torch.bucketize(side, terciles(side))
        return {"box_by_size": {name: _quality(side[size == n], iou[size == n]) for n, name in enumerate(SIZE_CLASSES)}}


class Sizes(Accumulator[Batch]):
    """size_histogram and sizes of the counted objects, whether or not the truth is known."""

    def __init__(self, image_size: int) -> None:
        """Args: image_size: side of the images in pixels."""
        super().__init__()
        self.image_size = image_size

    def update(self, batch: Batch) -> None:
        pixels = (longer_side(batch.inference.boxes) + 0.5).long().clamp(max=self.image_size)  # (B, N), rounded
        counted = (batch.inference.z_pres > 0)[..., None]
        self.add({"histogram": (F.one_hot(pixels, self.image_size + 1) * counted).sum(1)})

    def compute(self) -> dict[str, Any]:
        histogram = self.sums["histogram"].long()
        metrics: dict[str, Any] = {"size_histogram": histogram.tolist()}
        if histogram.any():
            # The smallest side that so many of 100 objects do not exceed, in integers and therefore exactly.
            sides = torch.searchsorted(100 * histogram.cumsum(0), histogram.sum() * torch.tensor(PERCENTILES))
            metrics["sizes"] = {f"{percent}%": side for percent, side in zip(PERCENTILES, sides.tolist())}
        return metrics


def longer_side(boxes: Tensor) -> Tensor:
    """The longer side of boxes (..., 4), (x0, y0, x1, y1): (...)."""
    return (boxes[..., 2:] - boxes[..., :2]).amax(-1)


def terciles(values: Tensor) -> Tensor:
    """The two values that divide others into thirds.

    Args:
        values: (M,).
    Returns:
        (2,): the smallest of the values that a third, and that two thirds, of them do not exceed; 0 if there are none.
    """
    if not len(values):
        return values.new_zeros(2)
    return values.sort().values[[(len(values) * third + 2) // 3 - 1 for third in (1, 2)]]


def match(boxes: Tensor, present: Tensor, true_boxes: Tensor, true_present: Tensor) -> tuple[Tensor, Tensor]:
    """Match inferred boxes to true ones, one to one: greedily, the pair of largest IoU in the image first.

    Args:
        boxes: (B, N, 4), (x0, y0, x1, y1).
        present: (B, N) bool.
        true_boxes: (B, L, 4).
        true_present: (B, L) bool.
    Returns:
        IoU of each inferred box with its true box, 0 if it has none: (B, N).
        Index of that true box, arbitrary if it has none: (B, N) int64.
    """
    iou = torch.vmap(box_iou)(boxes, true_boxes)  # (B, N, L), nan for two boxes without area
    return one_to_one(iou.masked_fill(~(present[..., :, None] & true_present[..., None, :]), 0))


def one_to_one(iou: Tensor) -> tuple[Tensor, Tensor]:
    """Match rows to columns, one to one: greedily, the pair of largest IoU first.

    Args:
        iou: (B, N, L); it is overwritten.
    Returns:
        IoU of each row with its column, 0 if it has none: (B, N).
        Index of that column, arbitrary if it has none: (B, N) int64.
    """
    matched_iou = iou.new_zeros(iou.shape[:2])
    matched = torch.zeros_like(matched_iou, dtype=torch.int64)
    image = torch.arange(len(iou), device=iou.device)
    for _ in range(min(iou.shape[1:])):
        best, pair = iou.flatten(1).max(-1)  # (B,)
        row, column = pair // iou.shape[2], pair % iou.shape[2]
        # Once all pairs are taken, `best` is 0 and may point at a box that has its match already: keep that match.
        matched[image, row] = column.where(best > matched_iou[image, row], matched[image, row])
        matched_iou[image, row] = torch.maximum(matched_iou[image, row], best)
        iou[image, row] = 0
        iou[image, :, column] = 0
    return matched_iou, matched


def average_precision(hit: Tensor, score: Tensor, objects: int) -> float:
    """Area under the precision-recall curve, with precision made non-increasing in recall.

    Args:
        hit: (P,) bool, whether each inferred box is correct.
        score: (P,), its confidence.
        objects: the number of true boxes.
    Returns:
        0 to 1. Without true boxes: 1 if no box was inferred, else 0.
    Source: PASCAL VOC, as of 2010.
    """
    if not objects:
        return float(not len(hit))
    ranked = hit[score.argsort(descending=True, stable=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(ranked) else precision
    return (envelope * ranked).sum().item() / objects  # recall rises by 1 / objects at each hit


def _quality(side: Tensor, iou: Tensor) -> dict[str, Any]:
    """An entry of box_by_size: of true boxes with these longer sides and IoUs, (M,) each."""
    if not len(side):
        return {"side": None, "objects": 0, "iou": None, "found": None}
    return {"side": [side.min().item(), side.max().item()], "objects": len(side), "iou": iou.mean().item(),
            "found": (iou >= FOUND_IOU).double().mean().item()}
