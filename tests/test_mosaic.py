import time

import pytest
import torch

from air.data import DataError
from air.data.mosaic import mosaic


def test_a_mosaic_is_full_of_digits_that_are_apart(fake_mnist_root):
    began = time.monotonic()
    scenes = mosaic(root=fake_mnist_root)
    assert time.monotonic() - began < 5
    assert scenes.images.shape == (1, 1, 1024, 1024) and scenes.counts.tolist() == [500]
    boxes = scenes.boxes[0].long()
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(-1)
    assert sides.min() == 20 and sides.max() == 40 and 28 < sides.float().mean() < 32
    gap = torch.maximum(boxes[:, None, :2] - boxes[None, :, 2:], boxes[None, :, :2] - boxes[:, None, 2:]).amax(-1)
    assert gap[~torch.eye(500, dtype=torch.bool)].min() == 2  # of boxes grown by one pixel: they touch
    outside = scenes.images[0, 0].clone()
    for x0, y0, x1, y1 in boxes.tolist():
        inside = outside[y0:y1, x0:x1]
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        inside.zero_()
    assert not outside.any()
    quarters = ((boxes[:, :2] + boxes[:, 2:]) / 2 < 512).long()
    assert (quarters[:, 0] * 2 + quarters[:, 1]).bincount().min() > 90  # of 125


def test_a_mosaic_follows_from_its_arguments(fake_mnist_root):
    def small(**asked):
        return mosaic(**{"digits": 9, "image_size": 100, "sides": (10, 20), "root": fake_mnist_root} | asked)

    one = small()
    assert torch.equal(small().images, one.images) and torch.equal(small().labels, one.labels)
    assert one.images.max() == 120 and small(train=True).images.max() == 200  # the levels of the stand-in's digits
    assert not torch.equal(small(seed=1).images, one.images)
    assert len(small(digits=0).boxes[0]) == 0


def test_what_cannot_be_a_mosaic_is_an_error(fake_mnist_root, monkeypatch):
    monkeypatch.setattr("air.data.layout.MAX_RESTARTED", 200)
    with pytest.raises(ValueError, match=r"expected 1 <= smallest <= largest side <= 100, .*, got \(20, 10\)"):
        mosaic(3, 100, (20, 10), root=fake_mnist_root)
    with pytest.raises(DataError, match="no room for 50 objects on a 100 x 100 canvas"):
        mosaic(50, 100, (20, 30), root=fake_mnist_root)
