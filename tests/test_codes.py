import json
from dataclasses import replace

import torch

from air.data import Scenes, Sprites
from air.models.air import AIR
from experiments.studies import codes


class Told(AIR):
    """Finds the same three boxes in every image."""

    def infer(self, images):
        seen = super().infer(images)
        boxes = torch.tensor([[[6.0, 6, 9, 9], [0, 0, 4, 4], [20, 20, 21, 21]]]).expand(len(images), -1, -1)
        return replace(seen, boxes=boxes, z_pres=torch.tensor([[1.0, 1, 0]]).expand(len(images), -1))


def test_a_code_gets_the_label_of_the_object_that_its_box_overlaps(images):
    from tests.conftest import SMALL
    torch.manual_seed(0)
    model = Told(**SMALL)
    boxes = torch.tensor([[[0.0, 0, 4, 5], [6, 6, 9, 9]], [[0, 0, 1, 1], [6, 6, 9, 10]]])
    scenes = Scenes((255 * images[:2]).to(torch.uint8), torch.tensor([2, 2]), boxes, torch.tensor([[3, 8], [5, 1]]))
    found, labels, glimpses = codes.objects(model, scenes)
    assert labels.tolist() == [8, 3, 1]  # the second scene's second box overlaps no object
    z_what = model.infer(scenes.images).z_what
    torch.testing.assert_close(found, torch.stack((z_what[0, 0], z_what[0, 1], z_what[1, 0])))
    assert glimpses.shape == (3, 1, 6, 6)


def test_classifiers_on_two_rings_and_on_two_halves():
    """Both classifiers separate the halves; only the neighbours separate concentric rings."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(600, 2, generator=generator)
    halves = (points[:, 0] + 0.5 * points[:, 1] > 0).long()
    for classify in (codes.linear_probe, codes.nearest):
        assert (classify(points[:400], halves[:400], points[400:]) == halves[400:]).float().mean() > 0.95
    rings = (points.norm(dim=1) > 1.2).long()
    linear, near = ((classify(points[:400], rings[:400], points[400:]) == rings[400:]).float().mean()
                    for classify in (codes.linear_probe, codes.nearest))
    assert near > 0.9 and linear < 0.7


def test_a_sprite_s_label_encodes_its_shape_and_colour():
    from air.data.sprites import COLOURS, SHAPES
    label = torch.arange(9)
    of = codes.PROPERTIES["sprites"]
    assert [(SHAPES[s], COLOURS[c]) for s, c in zip(of["shape"](label), of["colour"](label))] == [
        (shape, colour) for shape in SHAPES for colour in COLOURS]


def test_the_projector_gets_codes_with_labels(make_model, scenes, tmp_path):
    model = make_model(count_prior=0.9).float()
    infer = model.infer

    def told(images):  # the true boxes
        seen = infer(images)
        boxes = torch.cat((scenes.boxes[:len(images)], torch.zeros(len(images), 1, 4)), 1)
        return replace(seen, boxes=boxes, z_pres=(boxes[..., 2] > 0).float())

    model.infer = told
    codes.project(model, scenes, tmp_path)
    (metadata,), (tensors,) = tmp_path.rglob("metadata.tsv"), tmp_path.rglob("tensors.tsv")
    assert len(metadata.read_text().splitlines()) == len(tensors.read_text().splitlines()) == scenes.counts.sum()


def test_the_table_has_mean_and_worst():
    records = [{"property": "digit", "classifier": "5 nearest", "seed": seed, "found": 0.5, "accuracy": 0.8 + seed / 10}
               for seed in (0, 1)]
    runs = [{"seed": seed, "count_accuracy_map": 0.9 + seed / 20, "box_iou": 0.8, "box_ap50": 0.7 + seed / 10}
            for seed in (0, 1)]
    lines = codes.table({"records": records, "runs": runs}).splitlines()
    assert lines[2] == "| digit | 5 nearest | 85.00 | 80.00 | 50.00 | 2 |"
    assert "count 92.50%" in lines[4] and "(worst 90.00%)" in lines[4]
    assert lines[5] == "0.800 (worst 0.800) and an AP50 of 0.750 (worst 0.700)."


def test_an_existing_run_is_measured_and_drawn(tmp_path, monkeypatch):
    """The whole command, on an untrained model of sprites."""
    import train
    train.main(["--dataset", "sprites", "--data.train-scenes", "40", "--data.held-out-scenes", "20",
                "--batch-size", "8", "--steps", "1", "--out", str(tmp_path / "sprites-3")])
    monkeypatch.setattr(codes, "Sprites", lambda: Sprites(train_scenes=40, held_out_scenes=20))
    monkeypatch.setattr(codes, "measure", lambda model, dataset, train, test, seed: [
        {"property": "shape", "classifier": "5 nearest", "seed": seed, "found": len(test) / 20, "accuracy": 1.0}])
    monkeypatch.setattr(codes, "project", lambda model, scenes, out: None)
    monkeypatch.setattr(codes, "interpolation_picture", lambda model, scenes: torch.zeros(3, 4, 4, dtype=torch.uint8))
    codes.main(["--dataset", "sprites", "--seeds", "3", "--runs", str(tmp_path), "--json", str(tmp_path / "codes.json"),
                "--picture", str(tmp_path / "way.png")])
    report = json.loads((tmp_path / "codes.json").read_text())
    final = json.loads((tmp_path / "sprites-3" / "metrics.json").read_text())
    assert report["runs"] == [{"seed": 3, **{key: final[key] for key in codes.MODEL_METRICS}}]
    assert report["records"][0]["found"] == 1 and (tmp_path / "way.png").exists()
