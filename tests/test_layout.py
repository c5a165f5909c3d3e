from functools import partial

import numpy as np
import pytest
import torch

from air.data.layout import Layout, Objects, check_scenes, compose
from air.data.scenes import DataError, draw_counts
from air.models.settings import SettingsError


def blocks(rng, size, largest=7, level=200):
    """Filled squares one pixel inside their patch: side s, tight box s - 2."""
    sides = rng.integers(4, largest + 1, size)
    patches = np.zeros((size, 1, largest, largest), np.uint8)
    for patch, side in zip(patches, sides):
        patch[0, 1:side - 1, 1:side - 1] = level
    return Objects(patches, sides, np.arange(size) % 10)


def squares(side):
    """Filled squares, as large as their patches."""
    return lambda rng, size: Objects(np.full((size, 1, side, side), 255, np.uint8), np.full(size, side),
                                     np.zeros(size, np.int64))


def test_one_scene_is_tried_before_all_are_drawn(monkeypatch):
    """With a generator of its own, and of the largest count alone."""
    drawn = []
    for name in ("MAX_FAILURES", "MAX_RESTARTED", "TRIES"):  # until there is no room
        monkeypatch.setattr(f"air.data.layout.{name}", 200)

    def draw(rng, size):
        drawn.append(size)
        return blocks(rng, size)

    check_scenes(draw, (0, 3), 10_000, Layout(24))
    assert sum(drawn) < 1000
    for layout in (Layout(24), Layout(24, "loose"), Layout(24, in_turn=True), Layout(24, "limited", 2, in_turn=True)):
        drawn.clear()
        with pytest.raises(DataError, match="no room for 40 objects on a 24 x 24 canvas"):
            check_scenes(draw, (1, 40), 10_000, layout)
        assert drawn[1:] and max(drawn) <= 500
    monkeypatch.setattr("air.data.layout.memory_limit", lambda: 10**6)
    with pytest.raises(SettingsError) as error:
        check_scenes(draw, (0, 3), 10_000, Layout(24))
    assert str(error.value) == (
        "10000 scenes of 24 x 24 pixels need about 0.0 GB of memory, and there are 0.0 GB: lower --data.train-scenes, "
        "--data.held-out-scenes, --data.counts or, where there is one, --data.image-size")


@pytest.fixture(params=[False, True], ids=["at once", "in turn"])
def composed(request):
    rng = np.random.default_rng(0)
    return compose(rng, blocks, draw_counts(rng, (0, 1, 2, 3), 400), Layout(24, in_turn=request.param))


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


@pytest.mark.parametrize("in_turn", [False, True])
def test_positions_are_uniform(in_turn):
    """One block of side 4 on 8 pixels has 5 x 5 places."""
    scenes = compose(np.random.default_rng(1), squares(4), np.ones(20_000, np.int64), Layout(8, in_turn=in_turn))
    places = scenes.boxes[:, 0, 0] * 5 + scenes.boxes[:, 0, 1]
    share = places.long().bincount(minlength=25) / 20_000
    assert ((share - 1 / 25).abs() < 4 * (1 / 25 * 24 / 25 / 20_000)**0.5).all()


def test_loose_scenes_may_overlap_but_never_exceed_255():
    rng = np.random.default_rng(0)
    counts = np.full(500, 2)
    bright = compose(rng, blocks, counts, Layout(12, "loose"))
    faint = compose(rng, partial(blocks, level=100), counts, Layout(12, "loose"))
    assert bright.images.max() == 200  # the sum of two would exceed 255: they never overlap
    assert faint.images.max() == 200 and (faint.images == 200).any((1, 2, 3)).float().mean() > 0.2
    for scenes, level in ((bright, 200), (faint, 100)):
        area = (scenes.boxes[..., 2:] - scenes.boxes[..., :2]).prod(-1).sum(-1)
        torch.testing.assert_close(scenes.images.sum((1, 2, 3)).float(), area * level)  # nothing is lost


def test_crowded_scenes_are_tried_until_they_fit():
    """One layout in 1,700 of three such blocks has room: the slowest of 200 scenes takes thousands of tries."""
    scenes = compose(np.random.default_rng(0), squares(5), np.full(200, 3), Layout(12))
    assert (scenes.images.flatten(1).sum(1).int() == 3 * 25 * 255).all()


def test_no_room_is_an_error(monkeypatch):
    monkeypatch.setattr("air.data.layout.MAX_FAILURES", 2000)
    with pytest.raises(DataError, match="no room for 5 objects on a 8 x 8 canvas"):
        compose(np.random.default_rng(0), blocks, np.array([5]), Layout(8))


def test_objects_in_turn_fill_scenes_that_all_at_once_do_not():
    """Five of the nine blocks that a lattice would hold."""
    counts = np.full(50, 5)
    scenes = compose(np.random.default_rng(0), squares(5), counts, Layout(21, in_turn=True))
    assert (scenes.images.flatten(1).sum(1).int() == 5 * 25 * 255).all()


def test_scenes_whose_objects_do_not_fit_get_new_ones():
    """Two objects of which both are large have no room."""
    def draw(rng, size):
        sides = rng.choice([3, 9], size)
        patches = np.zeros((size, 1, 9, 9), np.uint8)
        for patch, side in zip(patches, sides):
            patch[0, :side, :side] = 255
        return Objects(patches, sides, sides)

    scenes = compose(np.random.default_rng(0), draw, np.full(300, 2), Layout(16, in_turn=True))
    assert scenes.labels.sum(1).unique().tolist() == [6, 12]
    assert torch.equal(scenes.boxes[..., 2] - scenes.boxes[..., 0], scenes.labels.float())
    assert (scenes.images > 0).sum((1, 2, 3)).equal((scenes.labels**2).sum(1))


@pytest.mark.parametrize("limit", [0, 12])
def test_limited_overlap(limit):
    """Of the whole squares: the blocks themselves are one pixel within theirs."""
    scenes = compose(np.random.default_rng(0), partial(blocks, level=100), np.full(300, 4),
                     Layout(18, "limited", limit, in_turn=True))
    x0, y0, x1, y1 = (scenes.boxes + torch.tensor([-1, -1, 1, 1])).unbind(-1)  # (300, 4)
    width, height = ((torch.minimum(high[:, None], high[:, :, None]) - torch.maximum(low[:, None], low[:, :, None]))
                     .clamp(min=0) for low, high in ((x0, x1), (y0, y1)))
    shared = (width * height)[:, ~torch.eye(4, dtype=torch.bool)]
    assert shared.max() == limit and x0.min() == y0.min() == 0 and x1.max() == y1.max() == 18
    covered = round(100 + 100 * (1 - 100 / 255))
    assert set(scenes.images.unique().tolist()) <= {0, 100, covered, round(100 + covered * (1 - 100 / 255))}
    assert (scenes.images == covered).any() == (limit > 0)


def bars(rng, size):
    """Bars of 2 x 6 pixels at (3, 1) of squares of 8 pixels."""
    patches = np.zeros((size, 1, 8, 8), np.uint8)
    patches[:, :, 1:7, 3:5] = 255
    return Objects(patches, np.full(size, 8), np.zeros(size, np.int64))


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("placement, rows, columns", [
    ("margin", range(1, 14), range(3, 16)), ("tight", range(0, 15), range(0, 19)),
    ("cut", range(-3, 18), range(-1, 20))])
def test_placements(placement, rows, columns, in_turn):
    """Where bars begin: they are seen to begin on the canvas, and to end there."""
    scenes = compose(np.random.default_rng(0), bars, np.full(20_000, 1), Layout(20, "none", 0, placement, in_turn))
    x0, y0, x1, y1 = scenes.boxes[:, 0].long().T
    for low, high, places, length in ((x0, x1, columns, 2), (y0, y1, rows, 6)):
        found = torch.where(low > 0, low, high - length)
        assert found.unique().tolist() == list(places)
        share = (found - places[0]).bincount() / 20_000
        assert ((share - 1 / len(places)).abs() < 4.5 * (1 / len(places) / 20_000)**0.5).all()


def test_boxes_of_cut_objects_are_tight_around_what_is_seen():
    """Corners of L shapes: of those that are cut most, only the foot is seen."""
    def draw(rng, size):
        patches = np.zeros((size, 1, 6, 6), np.uint8)
        patches[:, :, :, 0] = patches[:, :, 5] = 120
        return Objects(patches, np.full(size, 6), np.zeros(size, np.int64))

    for layout in (Layout(12, "none", 0, "cut"), Layout(12, "loose", 0, "cut"), Layout(12, "none", 0, "cut", True)):
        scenes = compose(np.random.default_rng(0), draw, np.full(500, 1), layout)
        for image, (x0, y0, x1, y1) in zip(scenes.images[:, 0], scenes.boxes[:, 0].long().tolist()):
            rows, columns = image.nonzero(as_tuple=True)
            assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        seen = (scenes.images > 0).sum((1, 2, 3))
        assert seen.min() >= 11 / 4 and (seen < 6).any() and (seen == 11).float().mean() > 0.2
        assert scenes.images.unique().tolist() == [0, 120]
    both = compose(np.random.default_rng(0), draw, np.full(200, 2), Layout(12, "none", 0, "cut"))
    a, b = both.boxes.unbind(1)
    assert (torch.maximum(a[:, :2] - b[:, 2:], b[:, :2] - a[:, 2:]).amax(-1) >= 2).all()
