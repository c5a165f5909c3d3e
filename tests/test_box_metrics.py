"""Matched boxes, their quality by size, and the sizes of what was found."""

import math
from types import SimpleNamespace

import pytest
import torch

from air.evaluation.box_metrics import Boxes, BoxesBySize, Sizes, average_precision, longer_side, match, terciles


class TestMatch:
    def test_pairs_are_one_to_one_and_the_best_overlap_comes_first(self):
        boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30]]])
        truth = torch.tensor([[[0.0, 0, 10, 10], [25, 20, 35, 30]]])
        everything = torch.ones(1, 3, dtype=torch.bool)
        iou, matched = match(boxes, everything, truth, everything[:, :2])
        # The second box overlaps the first true box, which is taken.
        assert iou.tolist() == [[1.0, 0.0, pytest.approx(50 / 150)]]
        assert matched[0, [0, 2]].tolist() == [0, 1]

    def test_absent_boxes_match_nothing(self):
        boxes = torch.tensor([[[0.0, 0, 4, 4], [4, 4, 8, 8]]]).repeat(2, 1, 1)
        present = torch.tensor([[True, False], [True, True]])
        true_present = torch.tensor([[True, True], [False, True]])
        iou, matched = match(boxes, present, boxes, true_present)
        assert iou.tolist() == [[1, 0], [0, 1]] and (matched[0, 0], matched[1, 1]) == (0, 1)

    def test_absent_boxes_without_area_have_iou_0(self):
        boxes = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 0, 0], [0, 0, 0, 0]]])
        present = boxes[..., 2] > 0
        iou, matched = match(boxes, present, boxes, present)
        assert iou.tolist() == [[1, 0, 0]] and matched[0, 0] == 0


class TestAveragePrecision:
    def test_known_curves(self):
        """Ranked hit, miss, hit, the precisions are 1, 1/2, 2/3. Ranked miss, hit, hit, they are 0, 1/2, 2/3, and the
        first hit is credited with the largest precision at any later rank.
        """
        score = torch.tensor([0.2, 0.9, 0.5])
        assert average_precision(torch.tensor([True, True, False]), score, 4) == pytest.approx((1 + 2 / 3) / 4)
        assert average_precision(torch.tensor([True, False, True]), score, 4) == pytest.approx((2 / 3 + 2 / 3) / 4)
        assert average_precision(torch.tensor([False, True, True]), score, 4) == pytest.approx((1 + 1) / 4)

    def test_limits(self):
        none = torch.zeros(0, dtype=torch.bool)
        assert average_precision(torch.ones(5, dtype=torch.bool), torch.rand(5), 5) == pytest.approx(1)
        assert average_precision(torch.zeros(5, dtype=torch.bool), torch.rand(5), 5) == 0
        assert average_precision(none, torch.zeros(0), 5) == 0
        assert average_precision(none, torch.zeros(0), 0) == 1
        assert average_precision(torch.zeros(1, dtype=torch.bool), torch.zeros(1), 0) == 0


def test_boxes_that_were_missed_have_iou_0():
    """Two scenes with two true objects each and three inferred ones, one of them in a scene of unknown count."""
    boxes = Boxes()
    boxes.update(SimpleNamespace(
        matched_iou=torch.tensor([[0.8, 0.4], [0.6, 0.0]]), comparable=torch.tensor([[True, True], [False, False]]),
        log_at_least=torch.tensor([[-0.1, -0.4], [-0.1, -0.4]]),
        scenes=SimpleNamespace(counts=torch.tensor([2, -1])), count_known=torch.tensor([True, False])))
    assert boxes.compute() == {"box_iou": pytest.approx((0.8 + 0.4) / 2), "box_ap50": 0.5}


def true_boxes(sides, slots=3):
    """Boxes of these longer sides, (B, L, 4), in `slots` slots a scene from the last on; some lie, some stand."""
    boxes = torch.zeros(-(-len(sides) // slots), slots, 4)
    for place, side in enumerate(sides):
        across, down = (side, side / 2) if place % 2 else (side / 2, side)
        boxes[-1 - place // slots, -1 - place % slots] = torch.tensor([3.0, 2.0, 3 + across, 2 + down])
    return boxes


def by_size(*batches):
    """`box_by_size` of batches of boxes, their IoUs and whether a scene's count is known."""
    accumulator = BoxesBySize()
    for boxes, iou, known in batches:
        accumulator.update(SimpleNamespace(scenes=SimpleNamespace(boxes=boxes, has_box=boxes[..., 2] > 0),
                                           true_iou=iou, count_known=known))
    return accumulator.compute()


def literal_by_size(sides, ious):
    """`box_by_size`, object by object."""
    small, medium = (sorted(sides)[math.ceil(third * len(sides) / 3) - 1] for third in (1, 2))
    thirds = {"small": [], "medium": [], "large": []}
    for side, iou in zip(sides, ious):
        thirds["small" if side <= small else "medium" if side <= medium else "large"].append((side, iou))
    return {name: {"side": [min(objects)[0], max(objects)[0]], "objects": len(objects),
                   "iou": pytest.approx(sum(iou for _, iou in objects) / len(objects)),
                   "found": pytest.approx(sum(iou >= 0.5 for _, iou in objects) / len(objects))}
            for name, objects in thirds.items()}


class TestBoxesBySize:
    def test_it_is_that_of_single_objects(self):
        """Sides of 4 to 15 pixels, with ties, in two batches with free slots and one of unknown count."""
        torch.manual_seed(0)
        sides, iou = torch.randint(4, 16, (40,)).tolist(), torch.rand(14, 3)
        iou[3, 1] = 0.5
        boxes = true_boxes(sides)
        there = boxes[..., 2] > 0
        everything = torch.ones(14, dtype=torch.bool)
        found = by_size((boxes[:5], iou[:5], everything[:5]), (boxes[5:], iou[5:], everything[5:]),
                        (2 * boxes, iou, ~everything))["box_by_size"]
        assert found == literal_by_size(longer_side(boxes)[there].tolist(), iou[there].tolist())
        assert sum(third["objects"] for third in found.values()) == 40
        mean = sum(third["iou"] * third["objects"] for third in found.values()) / 40
        assert mean == pytest.approx(iou[there].mean().item())

    def test_equal_sides_share_a_third(self):
        iou, known = torch.tensor([[0.6, 0.2, 0.0]]), torch.tensor([True])
        nothing = {"side": None, "objects": 0, "iou": None, "found": None}
        assert by_size((true_boxes([8, 8, 8]), iou, known))["box_by_size"] == {
            "small": {"side": [8, 8], "objects": 3, "iou": pytest.approx(0.8 / 3), "found": pytest.approx(1 / 3)},
            "medium": nothing, "large": nothing}

    def test_without_true_boxes_there_is_none(self):
        assert by_size((torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.tensor([True, True]))) == {}


@pytest.mark.parametrize("values, expected", [([], [0, 0]), ([7], [7, 7]), ([9, 5], [5, 9]), ([3, 1, 2], [1, 2]),
                                              ([4, 1, 3, 2], [2, 3]), ([1, 1, 1, 1, 9, 9], [1, 1])])
def test_terciles_are_values_that_occur(values, expected):
    assert terciles(torch.tensor(values, dtype=torch.float32)).tolist() == expected


def sizes(boxes, z_pres, image_size=20):
    accumulator = Sizes(image_size)
    for part in zip(boxes.split(4), z_pres.split(4)):
        accumulator.update(SimpleNamespace(inference=SimpleNamespace(boxes=part[0], z_pres=part[1])))
    return accumulator.compute()


class TestSizes:
    def test_they_are_those_of_single_objects(self):
        """Sides of fractions of pixels, of boxes that may exceed the image, and more boxes than are counted."""
        torch.manual_seed(0)
        corner, z_pres = 8 * torch.rand(10, 3, 2) - 4, (torch.rand(10, 3) < 0.7).double()
        boxes = torch.cat((corner, corner + 24 * torch.rand(10, 3, 2)), -1)
        pixels = []
        for box, present in zip(boxes.flatten(0, 1).tolist(), z_pres.flatten().tolist()):
            if present:
                pixels.append(min(20, math.floor(max(box[2] - box[0], box[3] - box[1]) + 0.5)))
        found = sizes(boxes, z_pres)
        assert found["size_histogram"] == [pixels.count(side) for side in range(21)] and 20 in pixels
        assert found["sizes"] == {f"{percent}%": next(side for side in range(21) if sum(
            each <= side for each in pixels) * 100 >= percent * len(pixels)) for percent in (5, 25, 50, 75, 95)}

    def test_quantiles_are_exact_at_their_boundaries(self):
        """20 objects of 1, 2, ..., 20 pixels: 5% of them are one object."""
        box = torch.arange(1.0, 21)[:, None, None] * torch.tensor([0.0, 0, 0.5, 1])
        assert sizes(box, torch.ones(20, 1))["sizes"] == {"5%": 1, "25%": 5, "50%": 10, "75%": 15, "95%": 19}

    def test_without_objects_only_the_histogram_is_left(self):
        assert sizes(torch.zeros(2, 3, 4), torch.zeros(2, 3), 3) == {"size_histogram": [0, 0, 0, 0]}
