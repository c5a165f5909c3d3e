"""Kinds of failure, and why scenes are counted wrong."""

from types import SimpleNamespace

import pytest
import torch

from air.evaluation.box_metrics import match
from air.evaluation.failures import BLANK, WRONG, Failures, at_border, failures
from air.evaluation.metrics import Batch
from air.models.base import Inference


@pytest.fixture
def failed():
    """What was inferred in six scenes, and their true boxes. One scene each: correct; its second object is blank; one
    object split in two halves; two objects merged; no object found; an empty scene.
    """
    one, other, both = [10.0, 10, 20, 20], [22.0, 10, 32, 20], [10.0, 10, 32, 20]
    upper, lower, none = [10.0, 10, 20, 15], [10.0, 14, 20, 20], [0.0] * 4
    truth = torch.tensor([[one, other], [one, none], [one, none], [one, other], [one, none], [none, none]])
    boxes = torch.tensor([[other, one], [one, upper], [upper, lower], [both, none], [none, none], [none, none]])
    z_pres = (boxes[..., 2] > 0).float()
    canvases = torch.zeros(6, 3, 1, 40, 40)
    canvases[:, 1:, :, 12, 12] = 0.8
    canvases[:, 2, :, 13, 13] = 0.8
    canvases[1, 2, :, 13, 13] = BLANK / 2
    unused = torch.zeros(6)
    return Inference(count=z_pres.sum(-1).long(), count_probs=unused, z_pres=z_pres, z_where=unused, z_what=unused,
                     boxes=boxes, reconstruction=unused, canvases=canvases, masks=unused), truth


def test_failures_by_name(failed):
    found = {name: images.nonzero().flatten().tolist() for name, images in failures(*failed).items()}
    assert found == {"blank": [1], "split": [2], "merged": [3], "collapsed": [4]}


def batch_of(inferred, truth, true_counts, side=40):
    """What `Failures` reads of a batch; counts of -1 are unknown."""
    counts, has_box = torch.tensor(true_counts), truth[..., 2] > truth[..., 0]
    iou, matched = match(inferred.boxes, (inferred.z_pres > 0) & (counts >= 0)[:, None], truth, has_box)
    batch = SimpleNamespace(inference=inferred, images=torch.zeros(len(counts), 1, side, side), count_known=counts >= 0,
                            scenes=SimpleNamespace(boxes=truth, has_box=has_box, counts=counts), matched_iou=iou,
                            matched=matched)
    batch.true_iou = Batch.true_iou.fget(batch)
    return batch


def test_failures_are_shares_of_the_scenes(failed):
    batch = batch_of(*failed, [2, 1, 1, 2, -1, -1])
    known, unknown = Failures(boxes_known=True), Failures(boxes_known=False)
    for accumulator in (known, unknown):
        accumulator.update(batch)
    # The second scene is counted wrong because of an object that is blank, which is none of the other kinds.
    assert known.compute() == {"blank": 1 / 6, "split": 1 / 4, "merged": 1 / 4, "collapsed": 0, "wrong": {
        "split": 1 / 4, "merged": 1 / 4, "border": 0, "small": 0, "other": 1 / 4}}
    assert unknown.compute() == {"blank": 1 / 6}


@pytest.mark.parametrize("box, touches", [([1, 5, 9, 9], True), ([2, 2, 38, 28], False), ([5, 1, 9, 9], True),
                                          ([5, 5, 39, 9], True), ([5, 5, 9, 29], True), ([5, 5, 30, 28], False)])
def test_a_box_within_one_pixel_touches_the_border(box, touches):
    assert at_border(torch.tensor([box], dtype=torch.float32), height=30, width=40).tolist() == [touches]


def inferred_boxes(boxes):
    """An inference of painted objects with these boxes, 0 where there is none."""
    z_pres, unused = (boxes[..., 2] > boxes[..., 0]).double(), torch.zeros(1)
    canvases = torch.arange(boxes.shape[1] + 1.0)[None, :, None, None, None].repeat(len(boxes), 1, 1, 1, 1)
    return Inference(count=z_pres.sum(-1).long(), count_probs=unused, z_pres=z_pres, z_where=unused, z_what=unused,
                     boxes=boxes, reconstruction=unused, canvases=canvases, masks=unused)


class TestWrong:
    def test_each_kind_once(self):
        """Seven scenes. A small object at the border is missed; a small one inside; one that is not small; a small one
        whose match overlaps it too little. An object at the border is found, and one that is not there; something is
        found in an empty scene. The last scene is counted right.
        """
        large, other, small, border, none = ([10.0, 10, 20, 20], [22.0, 10, 34, 22], [25.0, 25, 30, 30],
                                             [35.0, 5, 40, 9], [0.0] * 4)
        beside, edge = [29.0, 29, 34, 34], [0.0, 0, 12, 12]
        scenes = [((border,), ()), ((small, large), (large,)), ((large, other), (other,)),
                  ((small, other), (beside, other, edge)), ((edge,), (edge, small)), ((), (large,)),
                  ((other,), (other,))]
        truth, found = (torch.tensor([[*boxes, none, none, none][:3] for boxes in each]) for each in zip(*scenes))
        accumulator = Failures(boxes_known=True)
        for part in (slice(0, 2), slice(2, 7)):
            accumulator.update(batch_of(inferred_boxes(found[part]), truth[part],
                                        [len(scene[0]) for scene in scenes[part]]))
        # Of nine sides, 5 three times, 10 twice and 12 four times, the first third is that of 5.
        assert accumulator.compute()["wrong"] == pytest.approx(
            {"split": 0, "merged": 0, "border": 1 / 7, "small": 2 / 7, "other": 3 / 7})

    @pytest.mark.parametrize("parts", [(60,), (21, 39), (1,) * 60])
    def test_it_is_that_of_single_scenes_in_any_batches_and_processes(self, parts):
        torch.manual_seed(4)
        truth, found = random_boxes(60, 0.8), random_boxes(60, 0.6)
        found[::3] = truth[::3] + torch.randint(-1, 2, (20, 3, 4)) * (truth[::3] > 0)
        counts = (truth[..., 2] > 0).sum(-1)
        counts[5] = -1
        accumulators = []
        for boxes, true, known in zip(found.split(parts), truth.split(parts), counts.split(parts)):
            accumulators.append(Failures(boxes_known=True))
            accumulators[-1].update(batch_of(inferred_boxes(boxes), true, known.tolist()))
        first, *others = accumulators
        for other in others:
            first.merge(other)
        wrong = first.compute()["wrong"]
        assert wrong == pytest.approx(literal_wrong(found, truth, counts.tolist())) and min(wrong.values()) > 0
        miscounted = (found[..., 2] > 0).sum(-1) != counts
        assert sum(wrong.values()) == pytest.approx(miscounted[counts >= 0].double().mean().item())


def random_boxes(scenes, share):
    corner = torch.randint(0, 20, (scenes, 3, 2))
    boxes = torch.cat((corner, corner + torch.randint(3, 21, (scenes, 3, 2))), -1).float()
    return boxes * (torch.rand(scenes, 3, 1) < share)


def literal_wrong(found, truth, counts):
    """`wrong`, scene by scene and object by object; every inferred object is painted."""
    def side(box):
        return max(box[2] - box[0], box[3] - box[1])

    def area(box):
        return (box[2] - box[0]) * (box[3] - box[1])

    def shared(one, other):
        return (max(0, min(one[2], other[2]) - max(one[0], other[0]))
                * max(0, min(one[3], other[3]) - max(one[1], other[1])))

    scenes = [[[box for box in boxes.tolist() if box[2] > 0] for boxes in pair]
              for pair, count in zip(zip(found, truth), counts) if count >= 0]
    sides = sorted(side(box) for _, true in scenes for box in true)
    small, kinds = sides[-(-len(sides) // 3) - 1], dict.fromkeys(WRONG, 0)
    for inferred, true in scenes:
        if len(inferred) == len(true):
            continue
        iou = {(i, j): shared(one, other) / (area(one) + area(other) - shared(one, other))
               for i, one in enumerate(inferred) for j, other in enumerate(true)}
        missed = set(range(len(true)))
        while iou:
            i, j = max(iou, key=iou.get)
            if iou[i, j] >= 0.1:
                missed.discard(j)
            iou = {pair: value for pair, value in iou.items() if pair[0] != i and pair[1] != j}
        missed = [true[j] for j in missed]
        if any(sum(shared(one, other) > area(one) / 2 for one in inferred) > 1 for other in true):
            kinds["split"] += 1
        elif any(sum(shared(one, other) > area(other) / 2 for other in true) > 1 for one in inferred):
            kinds["merged"] += 1
        elif any(min(box[:2]) <= 1 or max(box[2:]) >= 39 for box in missed):
            kinds["border"] += 1
        elif any(side(box) <= small for box in missed):
            kinds["small"] += 1
        else:
            kinds["other"] += 1
    return {kind: number / len(scenes) for kind, number in kinds.items()}
