import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from air.data import Sprites, Tetrominoes, cache
from air.data.table import Table

SHAPE = (40, 1, 12)  # of the toy scenes: how many, channels and side


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "air"


def assert_same(one, other):
    for name in ("images", "counts", "boxes", "labels"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def never():
    raise AssertionError("built again")


def test_scenes_are_built_once_per_settings(scenes):
    assert_same(cache.cached("toy", {"seed": 0}, lambda: scenes, SHAPE), scenes)
    assert_same(cache.cached("toy", {"seed": 0}, never, SHAPE), scenes)
    other = scenes[:3]
    assert len(cache.cached("toy", {"seed": 1}, lambda: other, (3, 1, 12))) == 3


def test_no_pickle_and_no_leftovers(scenes, folder):
    cache.cached("toy", {}, lambda: scenes, SHAPE)
    (file,) = folder.iterdir()
    with np.load(file, allow_pickle=False) as arrays:
        assert set(arrays) == {"images", "counts", "boxes", "labels"}


def truncate(data):
    return data[:len(data) // 2]


def flip_a_bit(data):
    middle = len(data) // 2
    return data[:middle] + bytes((data[middle] ^ 1,)) + data[middle + 1:]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda data: b"", lambda data: b"no archive"])
def test_a_damaged_cache_is_rebuilt_with_a_warning(scenes, folder, damage):
    cache.cached("toy", {}, lambda: scenes, SHAPE)
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="damaged"):
        assert_same(cache.cached("toy", {}, lambda: scenes, SHAPE), scenes)
    assert_same(cache.cached("toy", {}, never, SHAPE), scenes)


@pytest.mark.parametrize("change", [
    lambda a: a.pop("boxes"),
    lambda a: a.update({name: array[:20] for name, array in a.items()}),
    lambda a: a.update(counts=a["counts"][:20]), lambda a: a.update(images=a["images"][..., :11]),
    lambda a: a.update(images=a["images"].repeat(3, 1)), lambda a: a.update(images=a["images"].astype(np.float32)),
    lambda a: a.update(counts=a["counts"].astype(np.uint64)), lambda a: a.update(counts=a["counts"] + 2),
    lambda a: a.update(counts=a["counts"] - 2), lambda a: a.update(labels=a["labels"] - 1),
    lambda a: a.update(labels=a["counts"]), lambda a: a.update(boxes=a["boxes"] * np.nan),
    lambda a: a.update(boxes=-a["boxes"]), lambda a: a.update(boxes=a["boxes"][..., :3]),
    lambda a: a.update(counts=np.array([None] * 40)), lambda a: a.update(images=np.array("text"))])
def test_a_whole_file_of_other_scenes_is_rebuilt(scenes, folder, change):
    """A valid .npz, but arrays missing, or of another size, type or range."""
    cache.cached("toy", {}, lambda: scenes, SHAPE)
    (file,) = folder.iterdir()
    arrays = {name: array.numpy() for name, array in scenes.arrays().items()}
    change(arrays)
    np.savez(file, **arrays)
    with pytest.warns(UserWarning, match="damaged"):
        assert_same(cache.cached("toy", {}, lambda: scenes, SHAPE), scenes)
    assert_same(cache.cached("toy", {}, never, SHAPE), scenes)


def test_nothing_is_unpacked_that_was_not_expected(scenes, folder, monkeypatch):
    """A header that claims 10 TB, and members that unpack to more than the file's size."""
    cache.cached("toy", {}, lambda: scenes, SHAPE)
    (file,) = folder.iterdir()
    whole, shape = file.read_bytes(), b"(40, 1, 12, 12)"
    arrays = {name: value.numpy() for name, value in scenes.arrays().items()}
    assert shape in whole
    monkeypatch.setattr("numpy.lib.format.read_array", never)
    for write in (lambda: file.write_bytes(whole.replace(shape, b"(99999999999, )", 1)),
                  lambda: np.savez_compressed(file, **arrays)):
        write()
        with pytest.warns(UserWarning, match="damaged"):
            cache.cached("toy", {}, lambda: scenes, SHAPE)


def test_masks_that_number_more_objects_than_there_are_are_damaged(scenes, folder):
    with_masks = replace(scenes, masks=(scenes.images[:, 0] > 0).to(torch.uint8))
    cache.cached("toy", {}, lambda: with_masks, SHAPE, ("masks",))
    (file,) = folder.iterdir()
    for wrong in (with_masks.masks * 9, with_masks.masks.long(), with_masks.masks[:, :5]):
        np.savez(file, **{**{name: each.numpy() for name, each in scenes.arrays().items()}, "masks": wrong.numpy()})
        with pytest.warns(UserWarning, match="damaged"):
            again = cache.cached("toy", {}, lambda: with_masks, SHAPE, ("masks",))
        assert torch.equal(again.masks, with_masks.masks)
    assert torch.equal(cache.cached("toy", {}, never, SHAPE, ("masks",)).masks, with_masks.masks)


@pytest.mark.parametrize("settings", [Sprites(counts=(0,)), Sprites(), Table(), Sprites(overlap="over"), Tetrominoes()])
def test_what_the_data_sets_write_is_what_they_read(settings, monkeypatch):
    built = settings.generate(True, 3, settings.counts)
    monkeypatch.setattr("air.data.cache.atomic_write", never)
    again = settings.generate(True, 3, settings.counts)
    assert_same(again, built)
    assert again.arrays().keys() == built.arrays().keys()
    assert all(torch.equal(value, built.arrays()[name]) for name, value in again.arrays().items())


def test_a_cache_that_cannot_be_written_costs_a_warning(scenes, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not cached"):
        assert_same(cache.cached("toy", {}, lambda: scenes, SHAPE), scenes)


def test_default_place(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache.cache_dir()) == os.path.expanduser("~/.cache/air")
