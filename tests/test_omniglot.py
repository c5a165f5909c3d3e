import numpy as np
import pytest
import torch
from PIL import Image

from air.data import DataError, Omniglot, load_dataset
from air.models.settings import SettingsError


@pytest.fixture
def drawings(tmp_path):
    """Two alphabets of three and four characters, two drawings each: character c is a bar of 10 (c + 1) pixels."""
    for alphabet, characters in (("Aleph", range(3)), ("Beth", range(3, 7))):
        for character in characters:
            folder = tmp_path / "omniglot-py" / "images_background" / alphabet / f"character{character:02}"
            folder.mkdir(parents=True)
            for drawer in range(2):
                paper = np.full((105, 105), 255, np.uint8)
                paper[40:60, 10:20 + 10 * character] = 0
                Image.fromarray(paper).save(folder / f"{character:04}_{drawer:02}.png")
    return tmp_path


def test_drawings_are_bright_on_black_and_small(drawings):
    scenes = Omniglot(root=str(drawings), image_size=21).drawings(True)  # a fifth of the side
    assert scenes.images.shape == (10, 1, 21, 21) and (scenes.counts == -1).all()
    labels = scenes.labels.flatten()
    assert sorted(labels.tolist()) == [1, 1, 2, 2, 3, 3, 4, 4, 6, 6] != labels.tolist()  # in no order
    assert torch.equal(labels, Omniglot(root=str(drawings), image_size=42).drawings(True).labels.flatten())
    place = labels.tolist().index(6)
    last = scenes.images[place, 0]
    assert (last[9:11, 3:15] == 255).all() and last.sum() / 255 == pytest.approx(4 * 14, rel=0.02)
    x0, y0, x1, y1 = scenes.boxes[place, 0].tolist()
    assert x0 in (1, 2) and y0 in (7, 8) and x1 in (16, 17) and y1 in (12, 13)  # edges are a pixel soft


def test_every_fifth_character_is_held_out(drawings):
    dataset = load_dataset(Omniglot(root=str(drawings)))
    train, held_out = (set(scenes.labels.flatten().tolist()) for scenes in (dataset.train, dataset.held_out))
    assert held_out == {0, 5} and train == {1, 2, 3, 4, 6}


def test_missing_drawings_are_an_error(tmp_path, drawings, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.Omniglot.download_url_prefix", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="not under .*images_background"):
        Omniglot(root=str(tmp_path / "elsewhere")).load()
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "empty" / "omniglot-py" / "images_background").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no drawing"):
        Omniglot(root=str(tmp_path / "empty")).load()
    with pytest.raises(SettingsError, match="counts: unexpected keyword argument"):
        Omniglot(root=str(drawings), counts=(0, 1))


def test_real_drawings(omniglot_root):
    scenes = Omniglot(root=str(omniglot_root)).drawings(False)
    ink = (scenes.images > 50).float().mean((1, 2, 3))
    assert len(scenes) >= 20 and (ink > 0.005).all() and ink.mean() < 0.3
    assert torch.equal(scenes.labels % 5, torch.zeros_like(scenes.labels))
