from itertools import product

import numpy as np
import pytest
import torch

from air.data.layout import Layout, Objects, compose
from air.data.occlusion import all_seen, covered, stand_out
from air.data.scenes import DataError


def panes(rng, size):
    """Squares of 6 pixels in grey 90 or 180, half transparent in their right half."""
    alpha = np.zeros((size, 6, 6), np.uint8)
    alpha[:, :, :3], alpha[:, :, 3:] = 255, 100
    grey = rng.choice((90, 180), size).astype(np.uint8)
    patches = np.rint(grey[:, None, None, None] * (alpha[:, None] / 255)).astype(np.uint8)
    return Objects(patches, np.full(size, 6), np.arange(size) % 10, alpha=alpha, colours=grey[:, None])


def ground(rng, size):
    return rng.choice((0, 40), (size, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def scenes():
    layout = Layout(12, "over", placement="cut", in_turn=True, visible=1 / 3)
    return compose(np.random.default_rng(0), panes, np.random.default_rng(1).integers(0, 4, 300), layout,
                   ground=ground)


def painted(scenes, index):
    """A scene painted anew, pixel by pixel, from what is known of its objects: the canvas and the mask.

    An object that the border cuts begins outside, where its box does not say: both ways of cutting it are tried.
    """
    boxes = scenes.boxes[index, :scenes.counts[index]].long().tolist()
    starts = [product({x0, x1 - 6}, {y0, y1 - 6}) for x0, y0, x1, y1 in boxes]
    for corners in product(*starts):
        for level in (0, 40):
            canvas, mask = np.full((12, 12), float(level)), np.zeros((12, 12), int)
            for t, (left, top) in enumerate(corners):
                grey = scenes.colours[index, t].item()
                for y in range(max(top, 0), min(top + 6, 12)):
                    for x in range(max(left, 0), min(left + 6, 12)):
                        alpha = 255 if x - left < 3 else 100
                        canvas[y, x] = np.rint(np.rint(grey * alpha / 255) + canvas[y, x] * (1 - alpha / 255))
                        mask[y, x] = t + 1 if alpha == 255 else mask[y, x]
            yield canvas, mask


def test_later_objects_cover_earlier_ones_by_their_alpha(scenes):
    """A scene that is painted literally is the scene, and so is its mask."""
    for index in range(0, 300, 7):
        image, mask = scenes.images[index, 0].numpy(), scenes.masks[index].numpy()
        assert any(np.allclose(canvas, image, atol=1) and (own == mask).all()
                   for canvas, own in painted(scenes, index)), index
    assert scenes.images.unique().numel() > 8 and scenes.masks.unique().tolist() == [0, 1, 2, 3]


def test_enough_is_seen_of_every_object(scenes):
    several = scenes[scenes.counts == 3]
    seen = torch.stack([(several.masks == t).sum((1, 2)) for t in (1, 2, 3)], -1)
    assert seen.min() >= 1 and (seen < 18).any()
    crowded = Layout(12, "over", in_turn=True, visible=1)
    apart = compose(np.random.default_rng(0), panes, np.full(50, 3), crowded)
    assert ((apart.masks == 1).sum((1, 2)) == 18).all()


def test_what_is_seen():
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, 0, :3], masks[1, 0, :1] = 1, 2
    areas = np.array([[4, 0], [4, 1]])
    assert all_seen(masks, areas, 0.75).tolist() == [True, False]
    assert all_seen(masks, areas, 0.76).tolist() == [False, False]
    assert all_seen(masks, np.array([[4, 0], [0, 1]]), 0.75).tolist() == [True, True]


def test_a_pixel_belongs_to_an_object_from_half_of_its_alpha_on():
    alpha = np.zeros((2, 2, 2), np.uint8)
    alpha[0] = [[0, 99], [100, 200]]
    assert covered(alpha).tolist() == [[[False, False], [True, True]], [[False, False], [False, False]]]


def test_objects_differ_in_colour_from_the_ground_and_from_those_they_overlap():
    colours = np.array([[0, 0, 100], [0, 59, 100], [255, 0, 100]], np.uint8)
    boxes = np.array([[0, 0, 4, 4], [3, 3, 6, 6], [4, 0, 8, 4]])  # the second overlaps both others
    ground = np.array([[0, 0, 0]], np.uint8)

    def stands_out(*objects, contrast=60):
        return stand_out(colours, boxes, np.array([objects]), ground, contrast).item()

    assert not stands_out(0, 1) and stands_out(0, 1, contrast=59)
    assert stands_out(0, 2) and stands_out(1, 2) and stands_out(1, -1) and stands_out(-1, -1)
    assert not stands_out(0, contrast=101) and stands_out(0, contrast=100)
    boxes[1] += 1  # apart from the first
    assert stands_out(0, 1)
    assert stand_out(None, boxes, np.array([[0]]), ground, 60).item() and stands_out(0, 0, contrast=0)


def test_a_scene_without_room_for_its_colours_is_refused(monkeypatch):
    monkeypatch.setattr("air.data.layout.MAX_RESTARTED", 200)
    with pytest.raises(DataError, match="no room for 3 objects.*at least 25% of each is to be seen"):  # of two greys
        compose(np.random.default_rng(0), panes, np.full(5, 3), Layout(7, "over", in_turn=True, contrast=10))
    with pytest.raises(DataError, match="256 objects in a scene: masks can tell 255 apart; use smaller counts"):
        compose(np.random.default_rng(0), panes, np.full(1, 256), Layout(12, "over", in_turn=True))
