"""Evaluation on whole pictures."""

from dataclasses import replace

import pytest
import torch

from air.data.scenes import Scenes
from air.evaluation import whole
from air.inference.tiles import Tiled


def found(boxes, score):
    """What is inferred: boxes in the order of their scores."""
    n, unused = len(boxes), torch.zeros(0)
    return Tiled(n, unused, False, torch.tensor(score), torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
                 unused, unused)


TRUTH = torch.tensor([[[0, 0, 10, 10], [20, 20, 30, 30]], [[5, 5, 9, 9], [0, 0, 0, 0]]], dtype=torch.float32)


def test_average_precision_takes_each_true_box_once():
    assert whole.ap50(found([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.8]), TRUTH[0]) == 1
    assert whole.ap50(found([[0, 0, 10, 10], [0, 0, 10, 9]], [0.9, 0.8]), TRUTH[0]) == 0.5
    assert whole.ap50(found([[0, 0, 10, 10], [1, 1, 4, 4], [20, 20, 30, 31]], [0.9, 0.8, 0.7]), TRUTH[0]) == (
        pytest.approx((1 + 2 / 3) / 2))
    assert whole.ap50(found([], []), TRUTH[0]) == 0


def test_whole_pictures_are_counted_in_their_own_extent(monkeypatch):
    """Of three pictures one has an unknown count, and one no object; each is read without its padding."""
    read, answers = [], [found([[0, 0, 10, 10]], [0.9]), found([[5, 5, 9, 9], [0, 0, 3, 3]], [0.9, 0.5]), found([], [])]

    def infer(model, picture):
        read.append(tuple(picture.shape))
        return answers[len(read) - 1]

    monkeypatch.setattr(whole, "infer_tiles", infer)
    scenes = Scenes(torch.zeros(3, 1, 40, 50, dtype=torch.uint8), torch.tensor([2, -1, 0]),
                    torch.cat((TRUTH, torch.zeros(1, 2, 4))), torch.full((3, 2), -1),
                    extents=torch.tensor([[40, 50], [30, 20], [40, 8]]))
    assert whole.evaluate_whole(None, scenes) == {"pictures": 3, "mean_count": 1, "count_accuracy": 0.5,
                                                  "count_error": 0.5, "count_error_share": 0.5, "box_ap50": 0.5}
    assert read == [(1, 40, 50), (1, 30, 20), (1, 40, 8)]
    read.clear()
    assert whole.evaluate_whole(None, replace(scenes, counts=torch.full((3,), -1))) == {"pictures": 3, "mean_count": 1}
