import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from air.config import default_config
from air.data import DataError, MultiMNIST, Sprites, load_dataset, mnist_or_sprites
from air.data.layout import tight_boxes
from air.data.multi_mnist import _draw_digits, draw_ink, load_mnist
from air.models.settings import SettingsError


def assert_equal(one, other):
    for name in ("images", "counts", "boxes", "labels"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def digits_of(root):
    mnist = load_mnist(root, train=False)
    return mnist.data, mnist.targets


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """Each call gets a cache of its own, so that scenes are generated again."""
    calls = iter(range(100))
    return lambda: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(next(calls))))


def test_the_same_seed_gives_the_same_scenes(fake_mnist_root, no_cache):
    def generate(counts=(0, 1, 2), seed=0, **settings):
        no_cache()
        return MultiMNIST(root=str(fake_mnist_root), **settings).generate(True, 50, counts, seed)

    first = generate()
    assert_equal(generate(), first)
    for other in (generate(seed=1), generate(counts=(1, 2)), generate(overlap="loose")):
        assert not torch.equal(other.images, first.images)


def test_counts_are_those_asked_for_in_equal_shares(fake_mnist_root):
    counts = MultiMNIST(root=str(fake_mnist_root)).generate(True, 3000, (0, 1, 3)).counts.bincount()
    assert counts[2] == 0 and ((counts[[0, 1, 3]] - 1000).abs() < 4 * (3000 * 2 / 9)**0.5).all()


def test_labels_are_the_digits(fake_mnist_root):
    """A stand-in digit's height is its label + 8 pixels at side 28; resizing blurs each end by up to a pixel."""
    scenes = MultiMNIST(root=str(fake_mnist_root)).generate(True, 500, (1,))
    heights, labels = scenes.boxes[:, 0, 3] - scenes.boxes[:, 0, 1], scenes.labels[:, 0]
    mean = torch.stack([heights[labels == label].mean() for label in range(10)])
    blur = mean - (torch.arange(10) + 8) / 1.3
    assert (blur > 0).all() and (blur < 2).all() and scenes.labels.shape == (500, 1)


def test_the_digits_size_the_canvas_and_the_noise_are_those_asked_for(fake_mnist_root):
    """A stand-in digit's height is its label + 8 pixels at side 28, which is 28 / 1.3 pixels at the usual size."""
    asked = MultiMNIST(root=str(fake_mnist_root), image_size=64, object_size=0.25)
    scenes = asked.generate(True, 400, (1,))
    assert scenes.images.shape[2:] == (64, 64)
    heights = scenes.boxes[:, 0, 3] - scenes.boxes[:, 0, 1]
    expected = (scenes.labels[:, 0] + 8) / 1.3 * (64 * 0.25) / (50 / 3)
    assert 0 < (heights - expected).mean() < 2
    noisy = replace(asked, noise=0.1).generate(True, 400, (1,))
    assert torch.equal(noisy.boxes, scenes.boxes)
    grey = (scenes.images > 100) & (scenes.images < 220)  # the stand-in's digits are of level 200: little is clipped
    difference = (noisy.images.float() - scenes.images.float())[grey] / 255
    assert difference.std().item() == pytest.approx(0.1, abs=0.005) and difference.mean().abs() < 0.01


def test_sizes_between_two_shares_are_uniform_in_pixels(fake_mnist_root):
    """Of the longer side of the digits' ink, whatever it was in MNIST; the shape is kept."""
    asked = MultiMNIST(root=str(fake_mnist_root), object_size=(0.1, 0.3), placement="tight", counts=(1,))
    scenes = asked.generate(True, 4000, (1,))
    sides = (scenes.boxes[:, 0, 2:] - scenes.boxes[:, 0, :2]).long()
    longer, shorter = sides.amax(-1), sides.amin(-1)
    assert longer.unique().tolist() == list(range(5, 16))
    share = longer.bincount()[5:] / 4000
    assert ((share - 1 / 11).abs() < 4 * (1 / 11 * 10 / 11 / 4000)**0.5).all()
    large = longer == 15
    assert shorter[large].min() < 5 and shorter[large].max() == 15  # a stand-in digit is 8 to 17 by 4 to 13 pixels
    assert scenes.boxes[:, 0, :2].amin() == 0 and scenes.boxes[:, 0, 2:].amax() == 50
    one, other = (MultiMNIST(root=str(fake_mnist_root), object_size=size) for size in ((0.2, 0.2), 0.2))
    assert not torch.equal(one.generate(True, 9, (1,)).images, other.generate(True, 9, (1,)).images)


def test_a_margin_that_does_not_fit_is_an_error(fake_mnist_root):
    with pytest.raises(DataError, match=r"a digit with its margin is \d+ pixels wide, the image 50: use a "
                                        "smaller --data.object-size, or --data.placement tight or cut"):
        MultiMNIST(root=str(fake_mnist_root), object_size=(0.5, 0.9)).generate(True, 100, (1,))
    scenes = MultiMNIST(root=str(fake_mnist_root), object_size=(0.1, 0.2)).generate(True, 500, (1,))
    assert scenes.boxes[..., :2].min() > 0 and scenes.boxes[..., 2:].max() < 50


def test_ink_keeps_its_place_in_the_digit(fake_mnist_root):
    digits = torch.zeros(1, 28, 28, dtype=torch.uint8)
    digits[0, 4:24, 9:17] = 255
    drawn = draw_ink(np.random.default_rng(0), digits, torch.tensor([3]), 50, 5, 40)
    for patch, side, (x0, y0, x1, y1) in zip(drawn.patches[:, 0], drawn.sides, drawn.margins):
        width = max(1, round(side * 0.4))
        left = (side - width) // 2
        assert (patch[:side, left:left + width] == 255).all() and patch.sum() == 255 * side * width
        assert abs(x1 - x0 - side * 1.4) < 1.01 and abs(y1 - y0 - side * 1.4) < 1.01
        assert abs(x0 - left + side * 9 / 20) < 0.51 and abs(y0 + side * 4 / 20) < 0.51
    assert drawn.labels.tolist() == [3] * 50 and len(set(drawn.sides)) > 20


def test_many_digits_overlap_within_limits(fake_mnist_root):
    """The setting that SPAIR's scenes need: MNIST's whole images, 14 x 14 pixels each."""
    asked = MultiMNIST(root=str(fake_mnist_root), image_size=84, object_size=0.129, size_jitter=0, overlap="limited")
    digits = load_mnist(fake_mnist_root, train=True)
    drawn = _draw_digits(np.random.default_rng(0), digits.data, digits.targets, 200, 84 * 0.129, 0, 84)
    assert (drawn.sides == 14).all() and drawn.patches.shape == (200, 1, 14, 14)
    scenes = asked.generate(True, 40, (20,))
    assert (scenes.labels >= 0).all() and scenes.labels.shape == (40, 20)
    a, b = scenes.boxes[:, :, None], scenes.boxes[:, None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    shared = sides.prod(-1)[:, ~torch.eye(20, dtype=torch.bool)]
    assert 20 < shared.max() <= 98
    apart = replace(asked, max_overlap=0).generate(True, 40, (12,))
    assert not torch.equal(apart.images, asked.generate(True, 40, (12,)).images)


def test_the_cache_keeps_scenes_from_before_there_were_more_settings():
    assert MultiMNIST(object_size=0.25).appearance() == {
        "overlap": "none", "image_size": 50, "object_size": 0.25, "noise": 0.0, "backdrop": "black"}
    more = {"object_size": (0.1, 0.2), "placement": "cut", "size_jitter": 0.05, "max_overlap": 9}
    assert MultiMNIST(**more).appearance().items() >= {**more, "object_size": [0.1, 0.2]}.items()
    assert Sprites().appearance() == {} and Sprites(object_size=0.25).appearance() == {"object_size": [0.25]}
    assert MultiMNIST(held_out_seed=3).appearance() == MultiMNIST().appearance()


def test_the_held_out_seed_gives_other_held_out_scenes(fake_mnist_root):
    usual, other = (few(fake_mnist_root, held_out_seed=seed, counts=(0, 1), unseen_counts=(2,)) for seed in (0, 7))
    assert_equal(usual.train, other.train)
    for name in ("held_out", "unseen"):
        assert not torch.equal(getattr(usual, name).images, getattr(other, name).images)
    assert_equal(usual.held_out, MultiMNIST(root=str(fake_mnist_root)).generate(False, 30, (0, 1)))


def test_training_and_held_out_scenes_come_from_different_digits(fake_mnist_root):
    """The stand-in's training digits are of level 200, its test digits of 120."""
    for train, level in ((True, 200), (False, 120)):
        scenes = MultiMNIST(root=str(fake_mnist_root)).generate(train, 60, (1, 2))
        assert scenes.images.amax((1, 2, 3)).unique().tolist() == [level]


def test_real_digits(mnist_root):
    scenes = MultiMNIST(root=str(mnist_root)).generate(False, 2000, (0, 1, 2))
    assert scenes.images.shape == (2000, 1, 50, 50) and scenes.images.dtype == torch.uint8
    filled = scenes.counts > 0
    sides = (scenes.boxes[..., 2:] - scenes.boxes[..., :2]).amax(-1)[:, 0][filled]
    assert 14 < sides.mean() < 18  # a digit fills 20 of its 28 pixels: 28 / 1.3 * 20 / 28 = 15.4 pixels
    for image, count, boxes in zip(scenes.images[:300], scenes.counts[:300].tolist(), scenes.boxes[:300]):
        outside = image[0].clone()
        for x0, y0, x1, y1 in boxes[:count].int().tolist():
            inside = image[0, y0:y1, x0:x1]
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # tight
            outside[y0:y1, x0:x1] = 0
        assert not outside.any()


def test_real_digits_fill_the_sizes_that_are_drawn(mnist_root):
    drawn = draw_ink(np.random.default_rng(0), *digits_of(mnist_root), 3000, 6, 25)
    box = tight_boxes(drawn.patches)
    assert ((box[:, 2:] - box[:, :2]).max(-1) == drawn.sides).mean() > 0.99
    x0, y0, x1, y1 = drawn.margins.T
    assert (abs((x1 - x0) / drawn.sides - 1.4).max() < 0.3) and (box[:, 0] >= x0).all() and (box[:, 3] <= y1).all()


def test_real_digits_at_the_border_are_cut(mnist_root):
    scenes = MultiMNIST(root=str(mnist_root), placement="cut").generate(False, 1000, (1,))
    sides = scenes.boxes[:, 0, 2:] - scenes.boxes[:, 0, :2]
    at_border = (scenes.boxes[:, 0, :2] == 0).any(-1) | (scenes.boxes[:, 0, 2:] == 50).any(-1)
    assert 0.4 < at_border.float().mean() < 0.7  # 1 - (1 - 15.4 / 50)² where digits were square
    assert sides[~at_border].amax(-1).mean() > sides[at_border].amax(-1).mean() + 1 and (sides.amin(-1) >= 1).all()


def test_mnist_that_cannot_be_had_names_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError) as error:
        load_dataset(MultiMNIST(root=str(tmp_path)))
    for way_out in ("--data.root", "AIR_DATA_ROOT", "--dataset sprites", str(tmp_path)):
        assert way_out in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failed_download_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError):
        MultiMNIST(root=str(tmp_path / "mistyped" / "data")).load()
    assert not any(tmp_path.iterdir())


def test_a_download_is_copied_when_it_is_complete(fake_mnist_root, tmp_path, monkeypatch):
    def fetch(mnist):
        assert not root.exists()
        shutil.copytree(fake_mnist_root, mnist.root, dirs_exist_ok=True)

    root = tmp_path / "new" / "data"
    monkeypatch.setattr("torchvision.datasets.MNIST.download", fetch)
    assert len(load_mnist(root, train=True)) == 300 and len(load_mnist(root, train=False)) == 100


def test_damaged_digits_are_named(fake_mnist_root, tmp_path):
    shutil.copytree(fake_mnist_root, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="MNIST files under .* cannot be read"):
        load_dataset(MultiMNIST(root=str(tmp_path)))


def few(root, **settings):
    return load_dataset(MultiMNIST(root=str(root), train_scenes=10, held_out_scenes=30, **settings))


def test_scenes_do_not_depend_on_how_the_counts_are_written(fake_mnist_root):
    one, other = (few(fake_mnist_root, counts=counts) for counts in ((2, 0, 2), (0, 2)))
    assert_equal(one.held_out, other.held_out)


def test_unseen_counts_are_held_out_scenes_of_their_own(fake_mnist_root):
    dataset = few(fake_mnist_root, counts=(0, 1), unseen_counts=(3, 2, 3))
    assert set(dataset.unseen.counts.tolist()) == {2, 3} and set(dataset.held_out.counts.tolist()) == {0, 1}
    assert dataset.unseen.images.max() <= 120  # the test digits' level
    assert few(fake_mnist_root, counts=(0, 1)).unseen is None
    with pytest.raises(DataError, match="scenes with 1 objects occur in training"):
        few(fake_mnist_root, counts=(0, 1), unseen_counts=(1, 2))


def test_auto_falls_back_on_sprites_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    settings, reason = mnist_or_sprites(MultiMNIST(root=str(tmp_path), counts=(0, 1)))
    assert settings == Sprites(counts=(0, 1)) and "MNIST is not under" in reason
    with pytest.raises(DataError, match="MNIST is not under"):  # sprites have no noise
        mnist_or_sprites(MultiMNIST(root=str(tmp_path), noise=0.1))
    with pytest.raises(DataError, match="MNIST is not under"):  # nor do they overlap loosely
        mnist_or_sprites(MultiMNIST(root=str(tmp_path), overlap="loose"))


def test_auto_takes_multi_mnist_where_it_is(mnist_root):
    assert mnist_or_sprites(MultiMNIST(root=str(mnist_root))) == (MultiMNIST(root=str(mnist_root)), "")


def test_unknown_names_and_settings_of_other_data_sets_are_errors():
    with pytest.raises(SettingsError, match="'cifar'.*multi-mnist, sprites"):
        default_config("cifar")
    with pytest.raises(SettingsError, match="noise: unexpected keyword argument"):
        Sprites(noise=0.1)
