import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from air.data.layout import Layout, compose
from air.data.scenes import Scenes, add_backdrop, add_noise, noise_of
from tests.test_layout import blocks


@pytest.fixture
def composed():
    rng = np.random.default_rng(0)
    return compose(rng, blocks, rng.integers(0, 4, 400), Layout(24))


def test_noise_is_measured_whatever_the_objects():
    rng = np.random.default_rng(0)
    images = np.zeros((20, 3, 40, 40), np.uint8) + 120
    images[:, :, 5:25, 10:30] = 40
    scenes = Scenes(torch.from_numpy(images), torch.ones(20).long(), torch.zeros(20, 1, 4), torch.zeros(20, 1).long())
    assert noise_of(scenes) == 0 and noise_of(scenes[:0]) == 0
    for sd in (0.03, 0.1):  # the median is a whole level of 255
        assert noise_of(add_noise(rng, scenes, sd)) == pytest.approx(sd, abs=1 / 255)
    padded = torch.nn.functional.pad(add_noise(rng, scenes, 0.1).images, (0, 60, 0, 60))
    inside = dataclasses.replace(scenes, images=padded, extents=torch.full((20, 2), 40))
    assert noise_of(inside) == pytest.approx(0.1, abs=1 / 255)


def test_scenes_can_be_indexed(composed):
    few = composed[torch.tensor([3, 1])]
    assert len(few) == 2
    assert torch.equal(few.images[1], composed.images[1]) and torch.equal(few.boxes[0], composed.boxes[3])
    assert len(composed[:10]) == 10 and len(composed[composed.counts == 0]) == (composed.counts == 0).sum()


@pytest.mark.parametrize("kind", ["grey", "grid", "noise"])
def test_backdrops_show_where_objects_are_not_bright(kind):
    rng = np.random.default_rng(0)
    scenes = compose(rng, partial(blocks, level=51), np.full(300, 1), Layout(40))  # of 0.2
    behind = add_backdrop(rng, scenes, kind)
    there = scenes.images > 0
    level = behind.images / 255
    if kind == "grey":
        grey = torch.stack([image[~lit].mean() for image, lit in zip(level, there)])
        assert grey.min() >= 0.09 and grey.max() <= 0.51 and 0.27 < grey.mean() < 0.33
        assert all(image[~lit].std() < 1e-6 for image, lit in zip(level, there))
        inside = torch.stack([image[lit].mean() for image, lit in zip(level, there)])
        torch.testing.assert_close(inside, 0.2 + 0.8 * grey, rtol=0, atol=0.004)
    if kind == "grid":
        dark = (level[~there] == 0).float().mean()
        assert 0.6 < dark < 0.78  # (1 - 1/a)², a = 5 to 8
        column = (level == 0).all(2)[:, 0]  # never: each column crosses the horizontal lines
        assert not column.any()
    if kind == "noise":
        outside = level[~there]
        assert outside.min() < 0.01 and 0.49 < outside.max() <= 0.51
        assert outside.mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(behind.boxes, scenes.boxes) and add_backdrop(rng, scenes, "black") is scenes
