import pytest
import torch

from air.data import DataError, Table
from air.data.table import APART, REACH, SIZE
from air.models.settings import SettingsError
from air.scenes3d.renderer import View, layers, render

VIEW = View(image_size=24)
SMALL = Table(image_size=24)


@pytest.fixture(scope="module")
def scenes():
    return SMALL.generate(True, 120, (0, 1, 3))


def test_objects_stand_apart_on_the_table(scenes):
    assert set(scenes.counts.tolist()) == {0, 1, 3} and scenes.images.shape == (120, 3, 24, 24)
    assert scenes.labels.max() == 2 and ((scenes.labels >= 0).sum(1) == scenes.counts).all()
    there = scenes.labels >= 0
    poses = scenes.poses[there]
    assert (poses[:, :2].abs() <= REACH).all() and (poses[:, 3] == SIZE).all() and (scenes.poses[~there] == 0).all()
    assert poses[:, 2].min() < 0.5 and poses[:, 2].max() > 5.8
    three = scenes.poses[scenes.counts == 3][..., :2]
    assert (torch.cdist(three, three) + 9 * torch.eye(3)).min() >= APART


def test_the_picture_is_the_renderer_s_of_the_truth(scenes):
    present = (scenes.labels >= 0).float()
    poses = torch.where(present[..., None] > 0, scenes.poses, torch.tensor([0.0, 0, 0, 1]))
    soft = render(scenes.labels.clamp(min=0), poses, present, VIEW)
    difference = (soft - scenes.images / 255).abs().amax(1)
    assert difference.median() < 0.01 and difference.mean() < 0.03  # but for soft edges
    empty = scenes.images[scenes.counts == 0]
    assert (empty == empty[:1, :, :1, :1]).all()


def test_boxes_are_tight_around_each_object_alone(scenes):
    one = scenes[scenes.counts == 1]
    alone = layers(one.labels[:, :1], one.poses[:, :1], VIEW, 1e4).opacity[:, 0].view(-1, 24, 24) > 0.5
    for inside, box in zip(alone, one.boxes[:, 0]):
        y, x = inside.nonzero(as_tuple=True)
        tight = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1))
        assert (tight - box).abs().max() <= 1  # at half of the resolution
    assert (scenes.boxes[scenes.labels < 0] == 0).all()


def test_the_same_seed_gives_the_same_scenes(scenes, tmp_path, monkeypatch):
    kept = SMALL.generate(True, 120, (0, 1, 3))  # from the cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    again, held_out = SMALL.generate(True, 120, (0, 1, 3)), SMALL.generate(False, 120, (0, 1, 3))
    for name, value in scenes.arrays().items():
        assert torch.equal(getattr(again, name), value) and torch.equal(getattr(kept, name), value)
    assert not torch.equal(held_out.poses, scenes.poses) and len(scenes[:7].poses) == 7


def test_a_table_without_room_is_an_error_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr("air.data.table.draw_counts", None)
    with pytest.raises(DataError, match="no room for 40 objects"):
        SMALL.generate(True, 20_000, (1, 40))
    monkeypatch.setattr("air.data.table.memory_limit", lambda: 10**6)
    with pytest.raises(SettingsError, match="20000 scenes of 24 x 24 pixels need about"):
        SMALL.generate(True, 20_000, (1, 2))


def test_a_pixel_is_the_nearest_object_s_that_is_there(scenes):
    """As rays through the pixels' corners say, where all of them agree."""
    three = scenes[scenes.counts == 3]
    alone = layers(three.labels, three.poses, View(image_size=96), 1e4)
    depth = torch.where(alone.opacity > 0.5, alone.depth, 9e9)  # (M, 3, P)
    owner = torch.where(depth.amin(1) < 9e9, depth.argmin(1) + 1, 0).view(-1, 24, 4, 24, 4)
    agree = (owner == owner[:, :, :1, :, :1]).all(4).all(2)
    assert torch.equal(owner[:, :, 0, :, 0][agree], three.masks.long()[agree]) and agree.float().mean() > 0.9
    assert [(three.masks == t).any((1, 2)).float().mean().item() > 0.95 for t in (1, 2, 3)] == [True] * 3
    assert not scenes.masks[scenes.counts == 0].any()
    assert not Table(image_size=24).generate(True, 3, (0,)).masks.any()
