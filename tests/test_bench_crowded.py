import json

import pytest
import torch

from air.inference.tiles import Tiled
from benchmarks import crowded


def test_the_model_takes_every_step(monkeypatch, capsys, tmp_path):
    """And the report has the times of all."""
    for name, value in {"SIDE": 28, "BATCH": 2, "OBJECTS": 4, "OBJECT_PIXELS": 7, "PICTURE": 60, "STEPS": 3,
                        "TURNS": 1, "STEP_TURNS": 2}.items():
        monkeypatch.setattr(crowded, name, value)
    assert crowded.crowded_model().infer(torch.rand(2, 28, 28)).count.tolist() == [4, 4]
    crowded.main(["--threads", str(torch.get_num_threads()), "--json", str(tmp_path / "j")])
    assert "images_per_s" in capsys.readouterr().out
    report = json.loads((tmp_path / "j").read_text())
    assert report["picture_s"] > 0 and report["search_step_ms"] > 0
    assert report["step_ratio"] == pytest.approx(report["search_step_ms"] / report["recurrent_step_ms"])


def test_a_box_is_found_once():
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    found = torch.stack((truth[0], truth[0], truth[1]))
    seen = Tiled(3, torch.ones(1), False, torch.tensor([0.9, 0.8, 0.7]), found, found, found)
    assert crowded.ap50(seen, truth) == (1 + 2 / 3) / 2
