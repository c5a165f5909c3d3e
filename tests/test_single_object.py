from pathlib import Path

import pytest
import torch

from air.data.table import table_scenes
from air.renderer import View
from air.scene_model import SceneAIR

VIEW = View(image_size=16)


@pytest.fixture
def single_object(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return __import__("single_object")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SceneAIR(1, 0.35, VIEW, features=32)


@pytest.fixture(scope="module")
def scenes():
    return table_scenes(True, 300, (1,), VIEW)


def test_optimisation_finds_what_is_there(single_object, model, scenes):
    torch.manual_seed(0)
    few = scenes[:6]
    one, ten = (single_object.measure(lambda images, starts=starts: single_object.by_optimisation(
        model, images, starts, 60), few) for starts in (1, 8))
    assert ten["identity"] == 1 and ten["place"] < 0.03 and ten["ms"] > one["ms"] > 0
    shape, pose = single_object.by_optimisation(model, few.images, 2, 0)
    assert shape.shape == (6,) and pose.shape == (6, 4) and (pose[:, 3] == 0.35).all()


def test_the_supervised_network_learns_shapes_and_places(single_object, model, scenes):
    torch.manual_seed(0)
    supervised = single_object.Supervised(model)
    before = single_object.measure(supervised.find, scenes)
    supervised.fit(scenes, 60)
    after = single_object.measure(supervised.find, scenes)
    assert after["identity"] > 0.95 and after["place"] < min(0.1, before["place"])


def test_what_the_model_infers_is_measured(single_object, model, scenes):
    seen = model.infer(scenes.images)
    found = single_object.measure(lambda images: single_object.by_inference(model, images), scenes)
    right = (seen.z_what[:, 0].argmax(-1) == scenes.labels[:, 0]).float().mean().item()
    assert found["identity"] == pytest.approx(right)
    assert found["place"] == pytest.approx(
        (seen.z_where[:, 0, :2] - scenes.poses[:, 0, :2]).norm(dim=-1).median().item() / 2)


def test_the_table_has_the_worst_in_brackets(single_object):
    records = [{"method": "a", "identity": 0.9, "place": 0.01, "box_rotation": 1.0, "ms": 2.0},
               {"method": "a", "identity": 1.0, "place": 0.03, "box_rotation": 3.0, "ms": 4.0}]
    assert single_object.table(records).splitlines()[2] == (
        "| a | 95.00 (90.00) | 2.00 (3.00) | 2.00 (3.00) | - | 3.000 (4.000) |")
