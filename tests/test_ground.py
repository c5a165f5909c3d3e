import numpy as np
import pytest
import torch

from air.data import Scenes
from air.data.ground import ground_of
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
    return ground_of(1 - shares if invert else shares)


@pytest.mark.parametrize("noise", [0, 0.05, 0.1])
def test_black_with_or_without_noise(plain, noise):
    ground = judged(add_noise(np.random.default_rng(0), plain, noise))
    assert ground.is_black and not ground.is_brighter


@pytest.mark.parametrize("kind", ["grey", "grid", "noise"])
def test_grey_and_textured_grounds_are_not_black(plain, kind):
    ground = judged(add_backdrop(np.random.default_rng(0), plain, kind))
    assert not ground.is_black and not ground.is_brighter


def test_dark_objects_on_white_and_on_grey(plain):
    for ground in (judged(plain, invert=True), ground_of(
            0.5 - 0.4 * plain.images.movedim(1, -1).numpy() / np.float32(255))):
        assert ground.is_brighter


def test_blank_images_say_nothing_about_objects():
    for level in (0.0, 0.9):
        assert not ground_of(np.full((5, 20, 20, 1), level, np.float32)).is_brighter


def test_images_of_one_pixel_and_of_any_shape():
    assert ground_of([np.ones((1, 1, 1), np.float32), np.ones((1, 30, 3), np.float32)]).level == 1
