import numpy as np
import pytest
import torch
from PIL import Image

from air.data import SingleObject
from air.evaluation.pictures import to_rgb
from air.scenes3d.model import SceneAIR
from air.scenes3d.renderer import View
from experiments.studies import single_object

VIEW = View(image_size=16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SceneAIR(1, 0.35, VIEW, features=32)


@pytest.fixture(scope="module")
def scenes():
    return SingleObject(image_size=16).generate(True, 300, (1,))


def test_optimisation_finds_the_objects(model, scenes):
    torch.manual_seed(0)
    few = scenes[:6]
    one, ten = (single_object.measure(lambda images, starts=starts: single_object.by_optimisation(
        model, images, starts, 60), few) for starts in (1, 8))
    assert ten["identity"] == 1 and ten["place"] < 0.03 and ten["ms"] > one["ms"] > 0
    shape, pose = single_object.by_optimisation(model, few.images, 2, 0)
    assert shape.shape == (6,) and pose.shape == (6, 4) and (pose[:, 3] == 0.35).all()


def test_frames_show_the_progress_of_one_optimisation(model, scenes):
    images = scenes.images[:3]
    torch.manual_seed(3)
    first, last = single_object.frames(model, images, (0, 40), 40)
    torch.manual_seed(3)
    expected = single_object.rendered(model, single_object.by_optimisation(model, images, 1, 40))
    torch.testing.assert_close(last, expected)
    error, error_first = ((each - images / 255).square().mean() for each in (last, first))
    assert error < error_first / 2


def test_optimisation_is_drawn_beside_one_forward_pass(model, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(single_object, "STRIP", (0, 2))
    monkeypatch.setattr(single_object, "FILM", (0, 1, 4))
    single_object.draw(model, scenes.images[:2], tmp_path)
    with Image.open(tmp_path / "optimisation.gif") as film, Image.open(tmp_path / "optimisation.png") as strip:
        assert film.n_frames == 3 and film.width < strip.width and film.height == strip.height
        given = torch.from_numpy(np.array(strip))[-100:-52, 2:50].movedim(-1, 0)  # the first cell of two rows
    assert torch.equal(given, to_rgb(scenes.images[:1])[0])


def test_the_supervised_network_learns_shapes_and_places(model, scenes):
    torch.manual_seed(0)
    supervised = single_object.Supervised(model)
    before = single_object.measure(supervised.find, scenes)
    supervised.fit(scenes, 60)
    after = single_object.measure(supervised.find, scenes)
    assert after["identity"] > 0.95 and after["place"] < min(0.1, before["place"])


def test_measured_errors_are_those_of_the_inference(model, scenes, monkeypatch):
    monkeypatch.setattr(single_object, "LEAST_SECONDS", 0.01)
    seen = model.infer(scenes.images)
    found = single_object.measure(lambda images: single_object.by_inference(model, images), scenes)
    right = (seen.z_what[:, 0].argmax(-1) == scenes.labels[:, 0]).float().mean().item()
    assert found["identity"] == pytest.approx(right)
    assert found["place"] == pytest.approx(
        (seen.z_where[:, 0, :2] - scenes.poses[:, 0, :2]).norm(dim=-1).median().item() / 2)


def test_the_table_has_the_worst_in_brackets():
    records = [{"method": "a", "identity": 0.9, "place": 0.01, "box_rotation": 1.0, "ms": 2.0},
               {"method": "a", "identity": 1.0, "place": 0.03, "box_rotation": 3.0, "ms": 4.0}]
    assert single_object.table(records).splitlines()[2] == (
        "| a | 95.00 (90.00) | 2.00 (3.00) | 2.00 (3.00) | - | 3.000 (4.000) |")
