from pathlib import Path

import numpy as np
import pytest
import torch

from air.data import DataError, Npz, load_dataset
from air.data.masks import check_masks

FILE = Path("own.npz")
IMAGES = torch.zeros(3, 1, 4, 5)
UNKNOWN = torch.full((3,), -1)


def masks_of(*rows):
    """Masks of 4 x 5 pixels whose upper rows have these numbers."""
    masks = np.zeros((3, 4, 5), np.int64)
    for mask, numbers in zip(masks, rows):
        mask.flat[:len(numbers)] = numbers
    return masks


def test_objects_are_numbered_anew_and_counted():
    masks, counts = check_masks(masks_of([7, 7, 300, 0, 7], [], [2, 1]).astype(np.uint16), IMAGES, UNKNOWN, FILE)
    assert masks.dtype == torch.uint8 and masks[0].flatten()[:6].tolist() == [1, 1, 2, 0, 1, 0]
    assert masks[2].flatten()[:3].tolist() == [2, 1, 0] and not masks[1].any()
    assert counts.tolist() == [2, 0, 2]
    given = torch.tensor([3, -1, 2])  # of the first image's objects one is hidden
    assert check_masks(masks_of([7, 7, 300], [], [2, 1]), IMAGES, given, FILE)[1].tolist() == [3, 0, 2]
    hidden, _ = check_masks(masks_of([1, 3], [2], [3, 1, 9]), IMAGES, torch.tensor([3, -1, 4]), FILE)
    assert [mask.flatten()[:3].tolist() for mask in hidden] == [[1, 3, 0], [1, 0, 0], [2, 1, 3]]
    huge = masks_of([1, 2]).astype(np.uint64) + np.uint64(2**60) * (masks_of([1, 2]) > 0).astype(np.uint64)
    assert check_masks(huge, IMAGES, UNKNOWN, FILE)[1].tolist() == [2, 0, 0]
    full = np.ones((3, 4, 5), np.uint8)  # no ground
    assert (check_masks(full, IMAGES, UNKNOWN, FILE)[0] == 1).all()


@pytest.mark.parametrize("masks, words", [
    (masks_of([1])[:2], r"masks of shape \(3, 4, 5\), whole numbers.*got int64 \(2, 4, 5\)"),
    (masks_of([1])[..., None], r"got int64 \(3, 4, 5, 1\)"), (masks_of([1]) * 1.0, "got float64"),
    (masks_of([], [-1]), r"masks\[1\] has a negative number"),
    (masks_of([1, 2]), r"masks\[0\] shows 2 objects, but counts\[0\] is 1")])
def test_other_masks_are_refused(masks, words):
    with pytest.raises(DataError, match=words):
        check_masks(masks, IMAGES, torch.tensor([1, -1, -1]), FILE)


def test_more_objects_than_bytes_can_number_are_refused():
    many = np.arange(300).reshape(1, 15, 20)
    with pytest.raises(DataError, match=r"masks\[0\] shows 299 objects, at most 255 can be told apart"):
        check_masks(many, torch.zeros(1, 1, 15, 20), torch.tensor([-1]), FILE)


def test_an_npz_file_may_hold_masks(tmp_path):
    rng = np.random.default_rng(0)
    masks = np.zeros((20, 12, 12), np.uint8)
    masks[:, 2:6, 2:6], masks[::2, 7:10, 7:10] = 5, 9
    images = (np.where(masks > 0, 200, 0) + rng.integers(0, 20, masks.shape)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", images=images, masks=masks)
    dataset = load_dataset(Npz(file=str(tmp_path / "own.npz")))
    assert dataset.train.masks.unique().tolist() == [0, 1, 2] and dataset.held_out.masks.shape == (2, 12, 12)
    assert dataset.train.counts.tolist() == [2, 1] * 4 + [2, 2, 1, 2, 1, 2, 1, 2, 1, 2]
    np.savez(tmp_path / "own.npz", images=images, masks=masks[:4])
    with pytest.raises(DataError, match="expected masks of shape"):
        load_dataset(Npz(file=str(tmp_path / "own.npz")))
