"""Boxes of custom data sets: wrong conventions are told, and right boxes pass whatever the images show."""

from pathlib import Path

import numpy as np
import pytest
import torch

from air.data import DataError
from air.data.boxes import check_boxes

FILE = Path("own.npz")
SIDE = 40
HINT = "; these look like "
UNKNOWN = torch.full((60,), -1)
BACKGROUNDS = ("black", "noise", "light", "table")


def drawn(background="black", size=60, seed=0, most=2, area=SIDE, level=150.0):
    """Images (M, 1, H, H) with up to `most` bright rectangles in their upper left `area`, and their boxes (M, most, 4).
    """
    rng = np.random.default_rng(seed)
    images, boxes = np.full((size, SIDE, SIDE), 40.0), np.zeros((size, most, 4))
    if background == "noise":
        images += rng.normal(0, 60, images.shape)
    if background == "light":  # that falls from another side each time
        images += (np.linspace(-60, 60, SIDE)[:, None] * rng.normal(size=(size, 1, 1))
                   + np.linspace(-60, 60, SIDE) * rng.normal(size=(size, 1, 1)))
    if background == "table":
        images[:, SIDE // 2:] += 100
    for image, own in zip(images, boxes):
        for slot in range(int(rng.integers(1, most + 1))):
            width, height = rng.integers(5, 13, 2)
            x, y = rng.integers(0, area - width + 1), rng.integers(0, area - height + 1)
            image[y:y + height, x:x + width] += level
            own[slot] = (x, y, x + width, y + height)
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8))[:, None], boxes


def written(boxes, convention):
    """Boxes as another convention writes them."""
    x0, y0, x1, y1 = np.moveaxis(boxes, -1, 0)
    return np.stack({"sides": (x0, y0, x1 - x0, y1 - y0), "rows": (y0, x0, y1, x1),
                     "centres": ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)}[convention], -1)


def refused(boxes, images, counts=UNKNOWN):
    with pytest.raises(DataError) as error:
        check_boxes(boxes, images, counts, FILE)
    assert str(error.value).startswith("own.npz: ")
    return str(error.value)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("size", [1, 12, 60])
def test_right_boxes_pass(background, invert, size):
    for area in (SIDE, SIDE // 2):  # in the upper left quarter most boxes would fit in any convention
        for level in (150, 0, -40):  # objects may be invisible
            images, boxes = drawn(background, size, area=area, level=level)
            images = 255 - images if invert else images
            passed = check_boxes(boxes, images, UNKNOWN[:size], FILE)
            assert passed.dtype == torch.float32 and np.array_equal(passed, boxes)


@pytest.mark.parametrize("change", [0.4, -0.4, 2, -2])
def test_boxes_need_not_be_exact(change):
    """Cut-off objects leave the image by a fraction of a pixel; loose and narrow boxes are still around the objects."""
    images, boxes = drawn()
    other = (boxes + np.array([-1, -1, 1, 1]) * change) * (boxes != 0).any(-1, keepdims=True)
    check_boxes(other.clip(-1, SIDE + 1), images, UNKNOWN, FILE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float64])
def test_any_type_of_number(dtype):
    images, boxes = drawn()
    assert np.array_equal(check_boxes(boxes.astype(dtype), images, UNKNOWN, FILE), boxes)


@pytest.mark.parametrize("shape", [(60, 0, 4), (60, 3, 4)])
def test_there_may_be_no_boxes(shape):
    assert check_boxes(np.zeros(shape), drawn()[0], UNKNOWN, FILE).shape == shape


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("convention, name", [("sides", "(x, y, width, height)"),
                                              ("centres", "(centre x, centre y, width, height)")])
def test_boxes_that_end_before_they_begin_are_of_another_convention(background, convention, name):
    images, boxes = drawn(background)
    message = refused(written(boxes, convention), images)
    assert "ends before it begins: expected (x0, y0, x1, y1)" in message and message.endswith(HINT + name)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("invert", [False, True])
def test_boxes_that_all_miss_the_objects_have_their_axes_swapped(background, invert):
    images, boxes = drawn(background)
    assert refused(written(boxes, "rows"), 255 - images if invert else images) == (
        "own.npz: the boxes miss what stands out in the images: expected (x0, y0, x1, y1) in pixels with x0 < x1 and "
        f"y0 < y1, all 0 where absent{HINT}(y0, x0, y1, x1)")


def test_axes_of_wide_images_are_told_apart_by_the_images():
    """Images of twice the width, in whose left half all objects are."""
    images, boxes = drawn("noise", level=150)
    wide = torch.cat((images, images[:, :, :, :1].expand_as(images)), -1)
    check_boxes(boxes, wide, UNKNOWN, FILE)
    assert refused(written(boxes, "rows"), wide).endswith(HINT + "(y0, x0, y1, x1)")


def test_sides_that_are_larger_than_the_corners_are_told_by_the_images():
    """Every (x, y, width, height) here would do as (x0, y0, x1, y1)."""
    rng = np.random.default_rng(0)
    images, boxes = drawn("noise", most=1, level=0)
    boxes[:, 0, :2] = rng.integers(1, 14, (60, 2))
    boxes[:, 0, 2:] = 2 * boxes[:, 0, :2] + rng.integers(2, 6, (60, 2))
    for image, (x0, y0, x1, y1) in zip(images[:, 0], boxes[:, 0].astype(int).tolist()):
        image[y0:y1, x0:x1] = 255
    check_boxes(boxes, images, UNKNOWN, FILE)
    assert refused(written(boxes, "sides"), images).endswith(HINT + "(x, y, width, height)")


def test_a_single_wrong_box_is_named_without_a_guess():
    images, boxes = drawn()
    boxes[7, 0] = (9, 3, 9, 30)
    assert refused(boxes, images).startswith("own.npz: boxes[7, 0] = (9, 3, 9, 30) ends before it begins")
    boxes[7, 0] = (9, 3, 20, 45)
    message = refused(boxes, images)
    assert message.startswith("own.npz: boxes[7, 0] = (9, 3, 20, 45) leaves its image of 40 x 40 pixels")
    assert HINT not in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, 1.7e308])
def test_values_that_are_no_edge(value):
    images, boxes = drawn()
    boxes[7, 0, 3] = value
    assert "boxes[7, 0] = (" in refused(boxes, images)


def test_normalised_boxes():
    images, boxes = drawn()
    for few in (boxes, boxes[:1]):
        message = refused(few / SIDE, images[:len(few)], UNKNOWN[:len(few)])
        assert message == "own.npz: the boxes look normalised to [0, 1]: multiply them by the image's side, 40"
    corner = np.zeros((60, 1, 4))
    corner[:, 0, 2:] = 1  # an object of one pixel
    check_boxes(corner, images, UNKNOWN, FILE)


def test_boxes_may_be_fewer_than_the_objects_but_not_more():
    images, boxes = drawn()
    count = (boxes != 0).any(-1).sum(-1)
    check_boxes(boxes, images, torch.from_numpy(count), FILE)
    check_boxes(boxes, images, torch.from_numpy(count + 1), FILE)
    more = torch.from_numpy(count.copy())
    more[:5], more[9] = -1, 0
    assert refused(boxes, images, more) == f"own.npz: boxes[9] has {count[9]} boxes, but counts[9] is 0"


@pytest.mark.parametrize("wrong", [np.zeros((60, 4)), np.zeros((59, 1, 4)), np.zeros((60, 1, 5)),
                                   np.zeros((60, 1, 4), bool)])
def test_another_shape_or_type(wrong):
    assert refused(wrong, drawn()[0]).startswith("own.npz: expected boxes of shape (60, L, 4), finite, got ")
