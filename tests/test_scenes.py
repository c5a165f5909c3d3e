import time

import numpy as np
import pytest
import torch

from air.data.scenes import DataError, Objects, add_backdrop, check_scenes, compose, draw_counts
from air.models.settings import SettingsError


def blocks(rng, size, largest=7, level=200):
    """Filled squares one pixel inside their patch: side s, tight box s - 2."""
    sides = rng.integers(4, largest + 1, size)
    patches = np.zeros((size, 1, largest, largest), np.uint8)
    for patch, side in zip(patches, sides):
        patch[0, 1:side - 1, 1:side - 1] = level
    return Objects(patches, sides, np.arange(size) % 10)


def test_one_scene_is_tried_before_all_are_drawn(monkeypatch):
    """With a generator of its own, and of the largest count alone."""
    drawn = []

    def draw(rng, size):
        drawn.append(size)
        return blocks(rng, size)

    check_scenes(draw, (0, 3), 10_000, 24, "none")
    assert sum(drawn) < 1000
    for overlap in ("none", "loose"):
        began = time.monotonic()
        with pytest.raises(DataError, match="no room for 90 objects on a 24 x 24 canvas"):
            check_scenes(draw, (1, 90), 10_000, 24, overlap)
        assert time.monotonic() - began < 10
    monkeypatch.setattr("air.data.scenes.memory_limit", lambda: 10**6)
    with pytest.raises(SettingsError) as error:
        check_scenes(draw, (0, 3), 10_000, 24, "none")
    assert str(error.value) == (
        "10000 scenes of 24 x 24 pixels need about 0.0 GB of memory, and there are 0.0 GB: lower --data.train-scenes, "
        "--data.held-out-scenes, --data.counts or, where there is one, --data.image-size")


@pytest.fixture
def composed():
    rng = np.random.default_rng(0)
    counts = draw_counts(rng, (0, 1, 2, 3), 400)
    return compose(rng, blocks(rng, int(counts.sum())), counts, 24, "none")


def test_boxes_are_tight(composed):
    """The lit pixels of an image are those inside its boxes, and no others."""
    for scene in range(len(composed)):
        image, expected = composed.images[scene, 0], torch.zeros(24, 24, dtype=torch.uint8)
        for x0, y0, x1, y1 in composed.boxes[scene, :composed.counts[scene]].int().tolist():
            expected[y0:y1, x0:x1] = 200
        assert torch.equal(image, expected)


def test_grown_boxes_do_not_overlap(composed):
    checked = 0
    for count, boxes in zip(composed.counts.tolist(), composed.boxes):
        for a in range(count):
            for b in range(a):
                (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = boxes[a].tolist(), boxes[b].tolist()
                width = min(ax1 + 1, bx1 + 1) - max(ax0 - 1, bx0 - 1)
                height = min(ay1 + 1, by1 + 1) - max(ay0 - 1, by0 - 1)
                assert width <= 0 or height <= 0
                checked += 1
    assert checked > 300


def test_truth_is_absent_where_objects_are(composed):
    present = torch.arange(3) < composed.counts[:, None]
    assert (composed.labels >= 0).eq(present).all() and (composed.boxes[~present] == 0).all()
    assert torch.equal(composed.labels[present], torch.arange(int(composed.counts.sum())) % 10)


def test_positions_are_uniform():
    """One block of side 4 on 8 pixels has 5 x 5 places."""
    rng = np.random.default_rng(1)
    patches = np.zeros((20_000, 1, 4, 4), np.uint8)
    patches[:] = 9
    objects = Objects(patches, np.full(20_000, 4), np.zeros(20_000, np.int64))
    scenes = compose(rng, objects, np.ones(20_000, np.int64), 8, "none")
    places = scenes.boxes[:, 0, 0] * 5 + scenes.boxes[:, 0, 1]
    share = places.long().bincount(minlength=25) / 20_000
    assert ((share - 1 / 25).abs() < 4 * (1 / 25 * 24 / 25 / 20_000)**0.5).all()


def test_loose_scenes_may_overlap_but_never_exceed_255():
    rng = np.random.default_rng(0)
    counts = np.full(500, 2)
    bright = compose(rng, blocks(rng, 1000, level=200), counts, 12, "loose")
    faint = compose(rng, blocks(rng, 1000, level=100), counts, 12, "loose")
    assert bright.images.max() == 200  # the sum of two would exceed 255: they never overlap
    assert faint.images.max() == 200 and (faint.images == 200).any((1, 2, 3)).float().mean() > 0.2
    for scenes, level in ((bright, 200), (faint, 100)):
        area = (scenes.boxes[..., 2:] - scenes.boxes[..., :2]).prod(-1).sum(-1)
        torch.testing.assert_close(scenes.images.sum((1, 2, 3)).float(), area * level)  # nothing is lost


def test_crowded_scenes_are_tried_until_they_fit():
    """One layout in 1,700 of three such blocks has room: the slowest of 200 scenes takes thousands of tries."""
    rng = np.random.default_rng(0)
    blocks_of_five = Objects(np.full((600, 1, 5, 5), 255, np.uint8), np.full(600, 5), np.zeros(600, np.int64))
    scenes = compose(rng, blocks_of_five, np.full(200, 3), 12, "none")
    assert (scenes.images.flatten(1).sum(1).int() == 3 * 25 * 255).all()


def test_no_room_is_an_error():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="no room for 5 objects on a 8 x 8 canvas"):
        compose(rng, blocks(rng, 5), np.array([5]), 8, "none")


def test_scenes_can_be_indexed(composed):
    few = composed[torch.tensor([3, 1])]
    assert len(few) == 2
    assert torch.equal(few.images[1], composed.images[1]) and torch.equal(few.boxes[0], composed.boxes[3])
    assert len(composed[:10]) == 10 and len(composed[composed.counts == 0]) == (composed.counts == 0).sum()


@pytest.mark.parametrize("kind", ["grey", "grid", "noise"])
def test_backdrops_show_where_objects_are_not_bright(kind):
    rng = np.random.default_rng(0)
    scenes = compose(rng, blocks(rng, 300, level=51), np.full(300, 1), 40, "none")  # of 0.2
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
