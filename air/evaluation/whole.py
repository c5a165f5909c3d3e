"""Evaluation on whole pictures of a model that is trained on crops of such."""

from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from air.data.scenes import Scenes
from air.evaluation.box_metrics import FOUND_IOU, average_precision
from air.inference.tiles import Tiled, infer_tiles
from air.models.air import AIR

MOST_PICTURES = 20  # that an evaluation reads


def evaluate_whole(model: AIR, scenes: Scenes) -> dict[str, Any]:
    """Count and locate the objects of whole pictures, of the first MOST_PICTURES.

    Args:
        model: one that `reads_any_size`.
        scenes: pictures of any size, with their true counts and boxes where known.
    Returns:
        pictures: how many were read.
        mean_count: average of the most probable count.

        Of the pictures whose true count is known, if there are any:

        count_accuracy: share of pictures whose most probable count is right.
        count_error: mean absolute difference to the true count.
        count_error_share: the same as a share of the true count, where that is not 0.
        box_ap50: average precision at IoU 0.5, averaged over the pictures with true boxes.
    """
    counts: list[int] = []
    measured: dict[str, list[float]] = {name: [] for name in ("count_accuracy", "count_error", "count_error_share",
                                                              "box_ap50")}
    for place in range(min(MOST_PICTURES, len(scenes))):
        height, width = scenes.sizes[place].tolist()
        seen = infer_tiles(model, scenes.images[place, :, :height, :width])
        counts.append(seen.count)
        true = int(scenes.counts[place])
        if true < 0:
            continue
        error = abs(seen.count - true)
        measured["count_accuracy"].append(error == 0)
        measured["count_error"].append(error)
        if true:
            measured["count_error_share"].append(error / true)
        if (boxes := scenes.boxes[place][scenes.has_box[place]]).numel():
            measured["box_ap50"].append(ap50(seen, boxes))
    return {"pictures": len(counts), "mean_count": fmean(counts),
            **{name: fmean(values) for name, values in measured.items() if values}}


def ap50(seen: Tiled, truth: Tensor) -> float:
    """AP50 of boxes that are in the order of their scores, for true boxes (n, 4) that do not overlap.

    A box is correct if its IoU with a true one is at least 0.5, and none before it was for the same one.
    """
    iou = box_iou(seen.boxes.cpu(), truth)
    correct: list[bool] = []
    taken: set[int] = set()
    for best, box in zip(*(each.tolist() for each in iou.max(-1))):
        correct.append(best >= FOUND_IOU and box not in taken)
        if correct[-1]:
            taken.add(box)
    return average_precision(torch.tensor(correct, dtype=torch.bool), seen.score.cpu(), len(truth))
