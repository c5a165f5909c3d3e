"""How counts and boxes go wrong: shares of scenes by kind of failure."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from air.evaluation.box_metrics import longer_side, terciles
from air.evaluation.metrics import Accumulator, Batch
from air.models.base import Inference

BLANK = 0.1  # an object that changes no pixel by more than this intensity counts as blank
MISSED_IOU = 0.1  # a true object is missed if the IoU of its box with the inferred box matched to it is smaller
BORDER = 1  # a box touches the border if it is at most so many pixels away
# Why a scene is counted wrong, the first that applies.
WRONG = ("split", "merged", "border", "small", "other")


class Failures(Accumulator[Batch]):
    """blank; and split, merged, collapsed and wrong if boxes are known, of the scenes whose count is known."""

    def __init__(self, boxes_known: bool) -> None:
        super().__init__()
        self.boxes_known = boxes_known

    def update(self, batch: Batch) -> None:
        failed = failures(batch.inference, batch.scenes.boxes)
        self.add({"blank": failed.pop("blank")})
        if not self.boxes_known:
            return
        known, boxes, true_present = batch.count_known, batch.scenes.boxes, batch.scenes.has_box
        self.add({name: scenes[known] for name, scenes in failed.items()})
        wrong, side = known & (batch.inference.count != batch.scenes.counts), longer_side(boxes)
        missed = true_present & (batch.true_iou < MISSED_IOU)  # (B, L)
        border = (missed & at_border(boxes, *batch.images.shape[2:])).any(-1)
        smallest = F.pad(side.masked_fill(~missed, math.inf), (0, 1), value=math.inf).amin(-1)
        # What is small follows from all sides, so the smallest missed object of each wrong scene is kept until then.
        self.append({"wrong": torch.stack((failed["split"], failed["merged"], border), -1)[wrong],
                     "smallest_missed": smallest[wrong], "side": side[true_present & known[:, None]]})

    def compute(self) -> dict[str, Any]:
        return self.means() | ({"wrong": self._wrong()} if self.boxes_known else {})

    def _wrong(self) -> dict[str, float]:
        """The shares of scenes that are counted wrong, each under the first kind of WRONG that applies."""
        kinds, smallest, side = (torch.cat(self.values[name]) for name in ("wrong", "smallest_missed", "side"))
        applies = torch.cat((kinds, (smallest <= terciles(side)[0])[:, None], kinds.new_ones(len(kinds), 1)), 1)
        scenes = applies.int().argmax(1).bincount(minlength=len(WRONG))
        return dict(zip(WRONG, (scenes.double() / self.scenes["split"]).tolist()))


def at_border(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which boxes touch the border of their image, up to BORDER pixels.

    Args:
        boxes: (..., 4), (x0, y0, x1, y1) in pixels.
        height, width: of the image.
    Returns:
        (...) bool.
    """
    far = boxes.new_tensor((width, height)) - BORDER
    return ((boxes[..., :2] <= BORDER) | (boxes[..., 2:] >= far)).any(-1)


def failures(inferred: Inference, true_boxes: Tensor) -> dict[str, Tensor]:
    """Find the images in which objects are counted or located wrongly, by kind of failure.

    Args:
        inferred: for B images.
        true_boxes: (B, L, 4), (x0, y0, x1, y1) in pixels; 0 for absent objects.
    Returns:
        (B,) bool each:
        blank: a counted object changes no pixel by more than BLANK;
        split: two counted objects that are not blank lie mostly inside one true box;
        merged: the box of one such object holds most of two true boxes;
        collapsed: there are objects, but none was counted.
    """
    painted = inferred.canvases.diff(dim=1).abs().amax((2, 3, 4)) > BLANK  # (B, N)
    counted, true_present = inferred.z_pres > 0, true_boxes[..., 2] > true_boxes[..., 0]  # (B, N), (B, L)
    box, truth = inferred.boxes[:, :, None], true_boxes[:, None]  # (B, N, 1, 4), (B, 1, L, 4)
    sides = torch.minimum(box[..., 2:], truth[..., 2:]) - torch.maximum(box[..., :2], truth[..., :2])
    shared = sides.clamp(min=0).prod(-1) * (counted & painted)[..., None] * true_present[:, None]  # (B, N, L), pixels²
    inside = shared > (box[..., 2:] - box[..., :2]).prod(-1) / 2
    holds = shared > (truth[..., 2:] - truth[..., :2]).prod(-1) / 2
    return {"blank": (counted & ~painted).any(-1), "split": (inside.sum(1) > 1).any(-1),
            "merged": (holds.sum(2) > 1).any(-1), "collapsed": true_present.any(-1) & ~counted.any(-1)}
