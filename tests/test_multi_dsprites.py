import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from air.data import MultiDSprites
from air.data.multi_dsprites import LEVELS, PATCH, SCALES, SHAPES, draw_sprites, one_of_125, outlines, saturated


@pytest.mark.parametrize("ground", ["black", "grey", "colour"])
def test_pixels_have_the_colours_of_their_owners(ground):
    scenes = MultiDSprites(ground=ground).generate(True, 60, (1, 2, 4))
    corner = scenes.images[scenes.masks[:, 0, 0] == 0][:, :, 0, 0]
    assert (corner == 0).all() == (ground == "black")
    assert (corner == corner[:, :1]).all() == (ground != "colour")
    for image, mask, colours, count, boxes in zip(scenes.images, scenes.masks, scenes.colours, scenes.counts,
                                                  scenes.boxes):
        behind = image[:, mask == 0]
        assert (behind == behind[:, :1]).all()
        known = torch.cat((behind[:, :1].T, colours[:count])).long()
        assert (image == known.T[:, mask.long()]).all()
        meet = box_iou(boxes[:count], boxes[:count]) > 0
        apart = (known[1:, None] - known[1:]).abs().amax(-1) + 255 * torch.eye(count, dtype=torch.long)
        assert (apart[meet] >= 60).all() and ((known[1:] - known[0]).abs().amax(-1) >= 60).all()
        assert (colours[count:] == 0).all()
    allowed = torch.from_numpy(LEVELS)
    assert torch.isin(scenes.images, allowed).all() == (ground != "grey")


def test_a_quarter_of_every_sprite_is_seen_and_some_are_covered():
    scenes = MultiDSprites().generate(True, 300, (4,))
    assert scenes.has_box.all() and scenes.boxes.amin() >= 0 and scenes.boxes.amax() <= 64
    least = torch.tensor([(outlines(np.array([shape]), SCALES[:1], np.zeros(1))).sum() for shape in range(3)])
    seen = torch.stack([(scenes.masks == t).sum((1, 2)) for t in range(1, 5)], -1)
    assert (seen >= least[scenes.labels] / 4 - 3).all()  # turned, a sprite may have a few pixels less
    areas = (scenes.boxes[..., 2:] - scenes.boxes[..., :2]).prod(-1)
    assert ((seen / areas) < 0.25).any()
    last = (scenes.masks == 4)  # nothing covers it: its mask fills its box
    for mask, (x0, y0, x1, y1) in zip(last, scenes.boxes[:, 3].int().tolist()):
        rows, columns = mask.nonzero(as_tuple=True)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("shape, area", [("square", 18**2), ("ellipse", np.pi * 12 * 7), ("heart", 9**2 * 3.6624)])
def test_areas_follow_the_scale_at_any_angle(shape, area):
    kind = np.full(40, SHAPES.index(shape))
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for scale in (SCALES[0], SCALES[-1]):
        covered = outlines(kind, np.full(40, scale), angles)
        assert abs(covered.sum((1, 2)).mean() / (area * scale**2) - 1) < 0.03
        edges = covered[:, [0, -1]].any() or covered[:, :, [0, -1]].any()
        assert not edges and covered.shape[1:] == (PATCH, PATCH)


def test_turning_by_a_right_angle_turns_the_pixels():
    for shape in range(3):
        kind, scale = np.full(4, shape), np.full(4, 0.83)
        turned = outlines(kind, scale, np.arange(4) * np.pi / 2)
        for quarter in range(4):
            assert (turned[quarter] == np.rot90(turned[0], -quarter)).mean() > 0.99  # but for ties at the edge
    heart = outlines(np.array([2]), np.ones(1), np.zeros(1))[0]
    assert (heart == heart[:, ::-1]).all() and heart[:13].sum() > heart[14:].sum()  # upright, its tip below


def test_shapes_scales_and_colours_are_uniform():
    sprites = draw_sprites(np.random.default_rng(0), 6000, one_of_125)
    share = np.bincount(sprites.labels) / 6000
    assert (abs(share - 1 / 3) < 4 * (2 / 9 / 6000)**0.5).all()
    share = np.unique(sprites.colours, return_counts=True)[1] / 18_000
    assert len(share) == 5 and (abs(share - 1 / 5) < 4 * (0.16 / 18_000)**0.5).all()
    assert len(np.unique(sprites.colours, axis=0)) == 125
    hues = saturated(np.random.default_rng(0), 3000).astype(int)
    value, less = hues.max(-1), hues.min(-1)
    assert value.min() in (127, 128) and value.max() > 250 and (less <= value / 2 + 1).all()
    assert all(abs((hues.argmax(-1) == channel).mean() - 1 / 3) < 0.05 for channel in range(3))


def test_the_same_seed_gives_the_same_scenes(tmp_path, monkeypatch):
    made = []
    for folder in ("a", "b"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        made.append(MultiDSprites().generate(True, 20, (1, 4)))
    assert all(torch.equal(value, made[1].arrays()[name]) for name, value in made[0].arrays().items())
    assert not torch.equal(MultiDSprites().generate(False, 20, (1, 4)).images, made[0].images)
    assert not torch.equal(MultiDSprites(ground="grey").generate(True, 20, (1, 4)).images, made[0].images)
