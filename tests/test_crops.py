from dataclasses import replace

import pytest
import torch

from air.data import Scenes
from air.data import crops as crops_module
from air.data.crops import cut, disjoint_crops, random_crops


@pytest.fixture
def pictures():
    """Three pictures of 40 x 60, 20 x 60 and 40 x 20 pixels with 3, 1 and no objects; pixels are drawn at random."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (3, 1, 40, 60), generator=generator).to(torch.uint8)
    images[1, :, 20:] = images[2, :, :, 20:] = 0
    boxes = torch.zeros(3, 3, 4)
    boxes[0] = torch.tensor([[4., 4, 12, 12], [18, 10, 26, 14], [50, 30, 60, 40]])
    boxes[1, 0] = torch.tensor([0., 0, 60, 20])
    return Scenes(images, torch.tensor([3, 1, 0]), boxes, torch.tensor([[5, 6, 7], [8, -1, -1], [-1, -1, -1]]),
                  extents=torch.tensor([[40, 60], [20, 60], [40, 20]]))


def test_a_crop_has_the_objects_that_it_shows_a_quarter_of(pictures):
    corners = torch.tensor([[0, 0], [8, 8], [9, 9], [8, 24], [11, 20], [0, 0]])
    crops = cut(pictures, torch.tensor([0, 0, 0, 0, 0, 2]), corners, 20)
    for crop, (top, left) in zip(crops.images[:5, 0], corners.tolist()):
        assert torch.equal(crop, pictures.images[0, 0, top:top + 20, left:left + 20])
    # A quarter of the first object is 4 x 4 pixels, of the second 2 x 4 or 8 x 1.
    assert crops.counts.tolist() == [2, 2, 1, 1, 1, 0]
    assert crops.boxes[0].tolist() == [[4, 4, 12, 12], [18, 10, 20, 14], [0, 0, 0, 0]]
    assert crops.boxes[1].tolist() == [[0, 0, 4, 4], [10, 2, 18, 6], [0, 0, 0, 0]]
    assert crops.boxes[2].tolist() == [[0, 0, 0, 0], [9, 1, 17, 5], [0, 0, 0, 0]]
    assert crops.boxes[3].tolist() == [[0, 0, 0, 0], [0, 2, 2, 6], [0, 0, 0, 0]]
    assert crops.labels.tolist() == [[5, 6, -1], [5, 6, -1], [-1, 6, -1], [-1, 6, -1], [-1, 6, -1], [-1, -1, -1]]
    assert crops.extents is None and torch.equal(crops.has_box, crops.labels >= 0)


def test_counts_are_known_where_all_boxes_are(pictures):
    everywhere = torch.zeros(3, 2, dtype=torch.int64)
    unknown = replace(pictures, counts=torch.tensor([4, -1, 0]))  # a box is missing; the count is
    assert cut(unknown, torch.arange(3), everywhere, 20).counts.tolist() == [-1, -1, 0]
    no_boxes = replace(pictures, boxes=torch.zeros(3, 0, 4), labels=torch.zeros(3, 0))
    assert cut(no_boxes, torch.arange(3), everywhere, 20).counts.tolist() == [-1, -1, 0]


def test_random_crops_lie_inside_and_cover_all_pictures(pictures, monkeypatch):
    assert disjoint_crops(pictures, 20).tolist() == [6, 3, 2]
    some, again, other = (random_crops(pictures, 20, seed) for seed in (0, 0, 1))
    assert some.images.shape == (11, 1, 20, 20) and some.images.all()
    assert torch.equal(some.images, again.images) and not torch.equal(some.images, other.images)
    for place, picture in enumerate([0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 0]):  # in turns
        windows = pictures.images[picture, 0].unfold(0, 20, 1).unfold(1, 20, 1)
        assert (windows == some.images[place, 0]).flatten(2).all(-1).any()
    monkeypatch.setattr(crops_module, "EVALUATED", 6)
    assert len(random_crops(pictures, 20)) == 6  # two each
    monkeypatch.setattr(crops_module, "EVALUATED", 1)
    assert len(random_crops(pictures, 20)) == 3


def test_pictures_that_fill_their_images_have_their_size(pictures):
    filled = replace(pictures, extents=None)
    assert filled.sizes.tolist() == [[40, 60]] * 3 and pictures[1:].sizes.tolist() == [[20, 60], [40, 20]]
    assert disjoint_crops(filled, 15).tolist() == [8] * 3


def test_masks_are_cut_with_the_images(pictures):
    masks = torch.randint(0, 4, (3, 40, 60), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    crops = cut(replace(pictures, masks=masks), torch.tensor([0, 2]), torch.tensor([[3, 7], [0, 40]]), 20)
    first, nothing = masks[0, 3:23, 7:27].clone(), torch.zeros(20, 20)
    first[first == 3] = 0  # the third object lies elsewhere
    assert torch.equal(crops.masks[0], first) and torch.equal(crops.masks[1], nothing) and first.unique().numel() == 3
    no_boxes = replace(pictures, masks=masks, boxes=torch.zeros(3, 0, 4), labels=torch.zeros(3, 0))
    assert torch.equal(cut(no_boxes, torch.tensor([0]), torch.tensor([[3, 7]]), 20).masks[0], masks[0, 3:23, 7:27])
    colours = torch.randint(1, 256, (3, 3, 1)).to(torch.uint8)
    seen = cut(replace(pictures, colours=colours), torch.tensor([0]), torch.tensor([[3, 7]]), 20).colours[0]
    assert torch.equal(seen, colours[0] * torch.tensor([[1], [1], [0]], dtype=torch.uint8))
    assert cut(pictures, torch.tensor([0]), torch.tensor([[0, 0]]), 20).masks is None
