from pathlib import Path

import pytest
import torch

from air.data import Scenes
from air.model import AIR


@pytest.fixture
def codes(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return __import__("codes")


class Told(AIR):
    """Finds three objects an image, the boxes that it is given."""

    def infer(self, images):
        seen = super().infer(images)
        boxes = torch.tensor([[[6.0, 6, 9, 9], [0, 0, 4, 4], [20, 20, 21, 21]]]).expand(len(images), -1, -1)
        return seen._replace(boxes=boxes, z_pres=torch.tensor([[1.0, 1, 0]]).expand(len(images), -1))


def test_codes_have_the_label_of_the_object_that_they_lie_on(codes, images):
    from tests.conftest import SMALL
    torch.manual_seed(0)
    model = Told(**SMALL)
    boxes = torch.tensor([[[0.0, 0, 4, 5], [6, 6, 9, 9]], [[0, 0, 1, 1], [6, 6, 9, 10]]])
    scenes = Scenes((255 * images[:2]).to(torch.uint8), torch.tensor([2, 2]), boxes, torch.tensor([[3, 8], [5, 1]]))
    found, labels, glimpses = codes.objects(model, scenes)
    assert labels.tolist() == [8, 3, 1]  # the second scene's second box is on nothing
    z_what = model.infer(scenes.images).z_what
    torch.testing.assert_close(found, torch.stack((z_what[0, 0], z_what[0, 1], z_what[1, 0])))
    assert glimpses.shape == (3, 1, 6, 6)


def test_classifiers_on_two_rings_and_on_two_halves(codes):
    """Halves are for both to tell apart; rings one in the other for the neighbours alone."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(600, 2, generator=generator)
    halves = (points[:, 0] + 0.5 * points[:, 1] > 0).long()
    for classify in (codes.linear_probe, codes.nearest):
        assert (classify(points[:400], halves[:400], points[400:]) == halves[400:]).float().mean() > 0.95
    rings = (points.norm(dim=1) > 1.2).long()
    linear, near = ((classify(points[:400], rings[:400], points[400:]) == rings[400:]).float().mean()
                    for classify in (codes.linear_probe, codes.nearest))
    assert near > 0.9 and linear < 0.7


def test_a_sprite_s_label_is_its_shape_and_its_colour(codes):
    from air.data.sprites import COLOURS, SHAPES
    label = torch.arange(9)
    of = codes.PROPERTIES["sprites"]
    assert [(SHAPES[s], COLOURS[c]) for s, c in zip(of["shape"](label), of["colour"](label))] == [
        (shape, colour) for shape in SHAPES for colour in COLOURS]


def test_the_projector_gets_codes_with_labels(codes, make_model, scenes, tmp_path):
    model = make_model(count_prior=0.9).float()
    infer = model.infer

    def told(images):  # the true boxes
        seen = infer(images)
        boxes = torch.cat((scenes.boxes[:len(images)], torch.zeros(len(images), 1, 4)), 1)
        return seen._replace(boxes=boxes, z_pres=(boxes[..., 2] > 0).float())

    model.infer = told
    codes.project(model, scenes, tmp_path)
    (metadata,), (tensors,) = tmp_path.rglob("metadata.tsv"), tmp_path.rglob("tensors.tsv")
    assert len(metadata.read_text().splitlines()) == len(tensors.read_text().splitlines()) == scenes.counts.sum()


def test_the_table_has_mean_and_worst(codes):
    records = [{"property": "digit", "classifier": "5 nearest", "seed": seed, "found": 0.5, "accuracy": 0.8 + seed / 10}
               for seed in (0, 1)]
    assert codes.table(records).splitlines()[2] == "| digit | 5 nearest | 85.00 | 80.00 | 50.00 | 2 |"
