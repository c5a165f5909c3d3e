import os

import numpy as np
import pytest
import torch

from air.data import cache


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
    assert_same(cache.cached("toy", {"seed": 0}, lambda: scenes), scenes)
    assert_same(cache.cached("toy", {"seed": 0}, never), scenes)
    other = scenes[:3]
    assert len(cache.cached("toy", {"seed": 1}, lambda: other)) == 3


def test_no_pickle_and_no_leftovers(scenes, folder):
    cache.cached("toy", {}, lambda: scenes)
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
    cache.cached("toy", {}, lambda: scenes)
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="damaged"):
        assert_same(cache.cached("toy", {}, lambda: scenes), scenes)
    assert_same(cache.cached("toy", {}, never), scenes)


def test_a_cache_without_an_array_is_rebuilt(scenes, folder):
    cache.cached("toy", {}, lambda: scenes)
    (file,) = folder.iterdir()
    np.savez(file, images=scenes.images.numpy())
    with pytest.warns(UserWarning, match="damaged"):
        assert_same(cache.cached("toy", {}, lambda: scenes), scenes)


def test_a_cache_that_cannot_be_written_costs_a_warning(scenes, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not cached"):
        assert_same(cache.cached("toy", {}, lambda: scenes), scenes)


def test_default_place(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache.cache_dir()) == os.path.expanduser("~/.cache/air")
