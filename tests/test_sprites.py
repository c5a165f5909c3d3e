import torch

from air.data import Sprites
from air.data.sprites import COLOURS, SHAPES


def test_the_same_seed_gives_the_same_scenes(tmp_path, monkeypatch):
    scenes = []
    for folder in ("a", "b"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        scenes.append(Sprites().generate(True, 40, (0, 1, 2)))
    assert torch.equal(scenes[0].images, scenes[1].images) and torch.equal(scenes[0].labels, scenes[1].labels)
    assert not torch.equal(Sprites().generate(False, 40, (0, 1, 2)).images, scenes[0].images)
    assert not torch.equal(Sprites().generate(True, 40, (0, 1, 2), seed=1).images, scenes[0].images)


def test_colour_shape_and_size_are_as_labelled():
    scenes = Sprites().generate(True, 600, (1,))
    fill = {shape: [] for shape in SHAPES}
    for image, (x0, y0, x1, y1), label in zip(scenes.images, scenes.boxes[:, 0].int().tolist(), scenes.labels[:, 0]):
        shape, colour = SHAPES[label // len(COLOURS)], int(label % len(COLOURS))
        assert 12 <= x1 - x0 <= 16 and 12 <= y1 - y0 <= 16
        others = [channel for channel in range(3) if channel != colour]
        assert not image[others].any() and image[colour].max() == 255
        fill[shape].append(image[colour, y0:y1, x0:x1].float().mean().item() / 255)
    for shape, expected in (("circle", torch.pi / 4), ("square", 1.0), ("triangle", 0.5)):
        assert len(fill[shape]) > 100
        assert all(abs(share - expected) < 0.04 for share in fill[shape])


def test_sprites_do_not_overlap():
    scenes = Sprites().generate(True, 300, (2,))
    a, b = scenes.boxes.unbind(1)
    gap = torch.maximum(a[:, :2] - b[:, 2:], b[:, :2] - a[:, 2:]).amax(-1)
    assert (gap >= 2).all()  # each box grown by one pixel


def test_sizes_between_two_shares_are_uniform_in_pixels():
    scenes = Sprites(object_size=(0.12, 0.4)).generate(True, 3000, (1,))
    sides = (scenes.boxes[:, 0, 2:] - scenes.boxes[:, 0, :2]).long().amax(-1)
    share = sides.bincount(minlength=21)[6:] / 3000
    assert sides.min() == 6 and sides.max() == 20
    assert ((share - 1 / 15).abs() < 4 * (1 / 15 * 14 / 15 / 3000)**0.5).all()
    half = Sprites(object_size=1 / 6).generate(True, 300, (1,)).boxes[:, 0]
    assert (half[:, 2:] - half[:, :2]).unique().tolist() == [6, 7, 8]


def test_the_border_cuts_sprites_where_asked_to():
    scenes = Sprites(placement="cut").generate(True, 500, (1, 2))
    sides = (scenes.boxes[..., 2:] - scenes.boxes[..., :2])[scenes.has_box]
    assert sides.min() in (6, 7, 8) and (sides.amin(-1) < 12).float().mean() > 0.2
    assert (scenes.boxes.amin() == 0) and (scenes.boxes.amax() == 50)
    assert scenes.has_box.sum(1).equal(scenes.counts)


def test_sprites_cover_one_another_where_asked_to():
    scenes = Sprites(overlap="over").generate(True, 500, (2,))
    assert Sprites().generate(True, 5, (2,)).masks is None
    owner = scenes.masks.long()
    colour = scenes.labels % len(COLOURS)  # (M, 2)
    for t in (1, 2):  # a pixel shows its owner's colour: half of it, of which the next may cover nearly half again
        shown = scenes.images.gather(1, colour[:, t - 1, None, None, None].expand(-1, 1, 50, 50))[:, 0]
        assert (shown[owner == t] >= 255 / 4 - 1).all() and (shown[owner == t] == 255).float().mean() > 0.8
    a, b = scenes.boxes.unbind(1)
    assert (scenes.colours.argmax(-1) == colour).all() and (scenes.colours.sum(-1) == 255).all()
    meet = (torch.minimum(a[:, 2:], b[:, 2:]) > torch.maximum(a[:, :2], b[:, :2])).all(-1)
    areas = torch.stack([(owner == t).sum((1, 2)) for t in (1, 2)], -1)
    assert 0.05 < meet.float().mean() < 0.5 and (colour[:, 0] != colour[:, 1])[meet].all()
    assert areas[~meet].min() > 60 and areas.min() >= 60 / 4
