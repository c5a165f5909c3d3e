from dataclasses import replace
from itertools import combinations

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from air.evaluation.evaluate import evaluate
from air.evaluation.mask_metrics import adjusted_rand_index, contingency, mask_iou


@pytest.fixture
def masks():
    torch.manual_seed(0)
    true = torch.randint(0, 4, (30, 6, 7))
    guess = torch.where(torch.rand(30, 6, 7) < 0.7, (true + 1) % 4, torch.randint(0, 6, (30, 6, 7)))
    return true, guess


def test_the_index_is_scikit_learns(masks):
    true, guess = masks
    inside = true > 0
    found = adjusted_rand_index(contingency(true, guess, inside))
    expected = [adjusted_rand_score(t[i].tolist(), g[i].tolist()) for t, g, i in zip(true, guess, inside)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    whole = adjusted_rand_index(contingency(true, guess))
    expected = [adjusted_rand_score(t.flatten().tolist(), g.flatten().tolist()) for t, g in zip(true, guess)]
    torch.testing.assert_close(whole, torch.tensor(expected, dtype=torch.float64))


def test_the_index_counts_pairs(masks):
    """Pairs of pixels that both, one or neither of the segmentations puts together."""
    true, guess = masks[0][0].flatten().tolist(), masks[1][0].flatten().tolist()
    both = one = other = pairs = 0
    for a, b in combinations(range(42), 2):
        alike, guessed = true[a] == true[b], guess[a] == guess[b]
        both, one, other, pairs = both + (alike and guessed), one + alike, other + guessed, pairs + 1
    expected = (both - one * other / pairs) / ((one + other) / 2 - one * other / pairs)
    found = adjusted_rand_index(contingency(masks[0][:1], masks[1][:1])).item()
    assert abs(found - expected) < 1e-12


def test_where_there_is_nothing_to_tell_apart():
    one, halves = torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.long)
    halves[:, 2:] = 1

    def index(masks, other, inside=None):
        return adjusted_rand_index(contingency(masks, other, inside)).item()

    assert index(one, one) == 1 and index(one, halves, torch.zeros(1, 4, 4, dtype=torch.bool)) == 1
    assert index(one, halves) == 0 == adjusted_rand_score([0] * 16, halves.flatten().tolist())
    assert index(halves, 1 - halves) == 1


def test_ious_are_those_of_sets_of_pixels(masks):
    true, guess = masks
    iou = mask_iou(contingency(true, guess))
    for index in (0, 7):
        for row in range(4):
            for column in range(6):
                a, b = true[index] == row, guess[index] == column
                assert iou[index, row, column].item() == pytest.approx((a & b).sum().item() / (a | b).sum().item())
    assert mask_iou(torch.zeros(1, 2, 2, dtype=torch.float64)).sum() == 0


def test_metrics_of_a_model_that_is_told_whose_pixels_are_whose(make_model, scenes):
    """Its objects are in another order, one is missing, and half of another is taken for the ground."""
    model = make_model().float()
    masks = torch.zeros(len(scenes), 12, 12, dtype=torch.uint8)
    masks[:, 1:5, 1:5], masks[:, 6:10, 6:10] = 1, 2  # 16 pixels each
    masks[0] = 0
    masks[1, 6:] = 0
    told = torch.zeros(len(scenes), 3, 12, 12)
    told[:, 2], told[:, 0] = masks == 1, masks == 2
    told[2, 0], told[3, 2, 1:3] = 0, 0
    found = model.infer(scenes.images)
    model.infer = lambda images: replace(found, masks=told)
    metrics = evaluate(model, replace(scenes, masks=masks))
    objects = 2 * len(scenes) - 3
    assert metrics["mask_iou"] == pytest.approx((objects - 1.5) / objects)
    several = [1.0] * (len(scenes) - 2)
    several[1] = adjusted_rand_score([1] * 16 + [2] * 16, [0] * 8 + [1] * 8 + [2] * 16)
    assert metrics["fg_ari_several"] == pytest.approx(sum(several) / len(several))
    assert metrics["fg_ari"] == pytest.approx((2 + sum(several)) / len(scenes))
    assert "fg_ari" not in evaluate(model, scenes)
    blank = evaluate(model, replace(scenes, masks=masks * 0))
    assert blank["fg_ari"] == 1 and "fg_ari_several" not in blank and "mask_iou" not in blank
