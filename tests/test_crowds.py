import json
import shlex
from types import SimpleNamespace

import pytest
import torch

import train
from air.training.command_line import parse
from experiments.studies import crowds


def result(kind, seed, accuracy, counts=(1, 20)):
    records = [{"n": n, "accuracy": accuracy / n, "count_error": n * (1 - accuracy), "ap50": 0.9, "wrong": {}}
               for n in counts]
    return {"kind": kind, "seed": seed, "records": records}


@pytest.fixture
def full_digits(monkeypatch):
    """Digits that fill MNIST's image, so that a digit's box is its patch."""
    digits = SimpleNamespace(data=torch.full((3, 28, 28), 255, dtype=torch.uint8), targets=torch.arange(3))
    monkeypatch.setattr("air.data.multi_mnist.load_mnist", lambda root, train: digits)


@pytest.mark.parametrize("kind, counts, crop", [("1-5", (1, 2, 3, 4, 5), 0), ("1-10", tuple(range(1, 11)), 0),
                                                ("crops", (1, 2, 3, 4, 5), 48)])
def test_digits_are_as_large_in_training_as_in_tests(full_digits, kind, counts, crop):
    config = parse(shlex.split(crowds.KINDS[kind])).config
    assert config.data.counts == counts and config.optim.crop == crop and config.model.guide == "search"
    assert config.data.image_size == (84 if crop else 48) and config.estimator.name == "enumerate"
    for data, n in ((config.data, max(counts)), (crowds.scenes_of("root"), 20)):
        scenes = data.generate(False, 8, (n,), 1)
        sides = scenes.boxes[..., 2:] - scenes.boxes[..., :2]
        assert sides.max() == 14 and (data.placement == "cut") == (sides.min() < 14)
        low = torch.maximum(scenes.boxes[:, :, None, :2], scenes.boxes[:, None, :, :2])
        high = torch.minimum(scenes.boxes[:, :, None, 2:], scenes.boxes[:, None, :, 2:])
        shared = (high - low).clamp(min=0).prod(-1)[:, ~torch.eye(n, dtype=torch.bool)]
        assert 0 < shared.max() <= 98


def test_the_table_has_mean_and_worst_of_the_kinds_that_were_run():
    results = [result("crops", seed, accuracy) for seed, accuracy in ((0, 0.5), (1, 1.0))]
    lines = crowds.table(results).splitlines()
    assert lines[2] == ("| crops of 1 to 5 digits, 84 x 84 | 2 | 75.0 (50.0) | - | - | - | 3.8 (2.5) | 5.00 (10.00) |")
    assert len(lines) == 3
    assert "| 1 | 100.0 (100.0) | - | - | - | - | - |" in crowds.table([result("1-5", 0, 1.0, (1,))])


def test_existing_results_are_tabulated_and_plotted(tmp_path, capsys):
    arguments = ["--table", "--results", str(tmp_path), "--plot", str(tmp_path / "plot.png")]
    with pytest.raises(SystemExit):
        crowds.main(arguments)
    assert f"there are no results in {tmp_path}" in capsys.readouterr().err
    assert crowds.load_records(tmp_path / "missing") == []
    for kind in ("1-10", "1-5"):
        (tmp_path / f"{kind}-seed0.json").write_text(json.dumps(result(kind, 0, 0.5)))
    crowds.main(arguments)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {crowds.TITLES[kind]}" for kind in ("1-5", "1-10")]
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_model_is_trained_and_tested_on_each_count(few_scenes, fake_mnist_root, tmp_path, monkeypatch, capsys):
    """The whole command, with a run of one step."""
    started = []

    def train_one_step(out, arguments, place):
        started.append([*arguments, *place])
        train.main(["--dataset", "multi-mnist", "--guide", "search", "--data.image-size", "48", "--data.object-size",
                    "0.22575", "--estimator", "enumerate", "--steps", "1", "--batch-size", "8", *place,
                    "--out", str(out)])

    monkeypatch.setattr(crowds, "train_if_missing", train_one_step)
    monkeypatch.setattr(crowds, "COUNTS", (1, 3))
    monkeypatch.setattr(crowds, "MOST", 4)
    crowds.main(["--kinds", "crops", "--seeds", "2", "--scenes", "3", "--data.root", str(fake_mnist_root),
                 "--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--plot", str(tmp_path / "plot.png")])
    assert started == [[*shlex.split(crowds.KINDS["crops"]), "--seed", "2", "--data.root", str(fake_mnist_root)]]
    written = json.loads((tmp_path / "crops-seed2.json").read_text())
    assert written["command"] == f"python train.py {crowds.KINDS['crops']} --seed 2" and written["threads"] > 0
    assert [record["n"] for record in written["records"]] == [1, 3]
    assert all(0 <= record["accuracy"] <= 1 and sum(record["wrong"].values()) == pytest.approx(1 - record["accuracy"])
               for record in written["records"])
    assert crowds.TITLES["crops"] in capsys.readouterr().out
