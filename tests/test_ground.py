import numpy as np
import pytest
import torch

from air.data import Scenes
from air.data.ground import grounds_of
from air.data.scenes import add_backdrop, add_noise


@pytest.fixture
def plain():
    """60 scenes of 40 x 40 with 0 to 3 bright squares, some at the border."""
    rng = np.random.default_rng(0)
    images = torch.zeros(60, 1, 40, 40, dtype=torch.uint8)
    for place, image in enumerate(images):
        for _ in range(place % 4):
            x, y = rng.integers(0, 29, 2)
            image[:, y:y + 12, x:x + 12] = int(rng.integers(150, 256))
    return Scenes(images, torch.arange(60) % 4, torch.zeros(60, 0, 4), torch.full((60, 0), -1))


def judged(scenes, invert=False):
    shares = scenes.images.movedim(1, -1).numpy() / np.float32(255)
    return grounds_of(1 - shares if invert else shares).behind(0.3)


@pytest.mark.parametrize("noise", [0, 0.05, 0.1, 0.2])
def test_black_with_or_without_noise(plain, noise):
    ground = judged(add_noise(np.random.default_rng(0), plain, noise))
    assert ground.is_black and not ground.is_brighter


@pytest.mark.parametrize("kind", ["grey", "grid", "noise"])
def test_grey_and_textured_grounds_are_not_black(plain, kind):
    ground = judged(add_backdrop(np.random.default_rng(0), plain, kind))
    assert not ground.is_black and not ground.is_brighter


def test_dark_objects_on_white_and_on_grey(plain):
    for ground in (judged(plain, invert=True), grounds_of(
            0.5 - 0.4 * plain.images.movedim(1, -1).numpy() / np.float32(255)).behind(0.3)):
        assert ground.is_brighter


def objects(count, side, ground=0.0, level=1.0, size=50, seed=0):
    """40 images with objects anywhere, also across the border."""
    rng, images = np.random.default_rng(seed), np.full((40, size, size, 1), ground, np.float32)
    for image in images:
        for x, y in rng.integers(-side // 2, size - side // 2, (count, 2)):
            image[max(0, y):y + side, max(0, x):x + side] = level
    return images


@pytest.mark.parametrize("count, side", [(1, 22), (3, 14), (5, 14)])
def test_objects_at_the_border_are_no_ground(count, side):
    assert grounds_of(objects(count, side)).behind(0.3).is_black


@pytest.mark.parametrize("side", [3, 5, 14])
def test_dark_objects_of_any_size_under_uneven_light_or_in_a_black_frame(side):
    lit = objects(2, side, 1.0, 0.1)
    distance = np.hypot(*np.meshgrid(np.linspace(-1, 1, 50), np.linspace(-1, 1, 50)))[..., None]
    framed = lit.copy()
    framed[:, :3] = framed[:, -3:] = 0
    for images in (lit, lit * (1 - 0.2 * distance**2).astype(np.float32), framed):
        assert grounds_of(images).behind(0.3).is_brighter


def test_a_white_frame_around_bright_objects_on_black_is_no_ground():
    images = objects(2, 14)
    images[:, :2] = images[:, -2:] = images[:, :, :2] = images[:, :, -2:] = 1
    assert not grounds_of(images).behind(0.3).is_brighter


def test_large_objects_are_told_from_the_ground_by_the_border():
    images = np.zeros((20, 50, 50, 1), np.float32)
    images[:, 5:45, 5:45] = 1
    assert grounds_of(images).behind(0.8).is_black and not grounds_of(images).behind(0.8).is_brighter


def test_images_that_show_nothing_say_so():
    assert grounds_of(np.zeros((5, 20, 20, 1), np.float32)).behind(0.3).is_all
    assert not grounds_of(objects(1, 3)).behind(0.3).is_all


def test_blank_images_say_nothing_about_objects():
    for level in (0.0, 0.9):
        assert not grounds_of(np.full((5, 20, 20, 1), level, np.float32)).behind(0.3).is_brighter


def test_images_of_one_pixel_and_of_any_shape():
    assert grounds_of([np.ones((1, 1, 1), np.float32), np.ones((1, 30, 3), np.float32)]).behind(0.3).level == 1
