import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from air.data import Scenes
from air.training.command_line import parse
from experiments.studies import mosaics


def result(seed, found, threads=1):
    records = [{"true": 400, "found": n, "error": abs(n - 400) / 4, "ap50": n / 500, "seconds": 1.5 + seed}
               for n in found]
    return {"seed": seed, "threads": threads, "records": records}


def test_the_model_is_told_sizes_and_nothing_else(fake_mnist_root, tmp_path, monkeypatch):
    config = parse(shlex.split(mosaics.ARGUMENTS)).config
    assert config.model.object_size == (12 / 64, 24 / 64) and config.optim.crop == 64
    assert config.model.guide == "search" and config.estimator.name == "enumerate"
    monkeypatch.setattr(mosaics, "SIDE", 100)
    monkeypatch.setattr(mosaics, "TRAINING", (5, 6))
    file = tmp_path / "runs" / "m.npz"
    mosaics.write_pictures(file, str(fake_mnist_root))
    with np.load(file) as arrays:
        assert list(arrays) == ["images"] and arrays["images"].shape == (2, 1, 100, 100)
        assert arrays["images"].max() == 200  # the stand-in's training digits
    file.write_bytes(b"kept")
    mosaics.write_pictures(file, str(fake_mnist_root))
    assert file.read_bytes() == b"kept"


def test_a_picture_s_errors(monkeypatch):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [60, 60, 70, 70]]])
    picture = Scenes(torch.zeros(1, 1, 80, 80, dtype=torch.uint8), torch.tensor([4]), boxes, torch.zeros(1, 4).long())
    seen = SimpleNamespace(count=3, boxes=boxes[0, :3], score=torch.tensor([0.9, 0.8, 0.7]))
    monkeypatch.setattr(mosaics.air, "infer_tiles", lambda model, image: seen)
    measured = mosaics.measure(None, picture)
    assert measured.pop("seconds") >= 0
    assert measured == {"true": 4, "found": 3, "error": 25.0, "ap50": 0.75}


def test_the_table_has_a_row_a_seed_and_their_mean():
    lines = mosaics.table([result(0, (400, 404)), result(1, (396, 380), threads=2)]).splitlines()
    assert lines[0].startswith("| seed | found of 400, 400 |")
    assert lines[2] == "| 0 | 400, 404 | 0.50 (1.00) | 0.804 (0.800) | 1.50 (1.50) | 1 |"
    assert lines[4] == "| mean | | 1.75 (5.00) | 0.790 (0.760) | 2.00 (2.50) | 1, 2 |" and len(lines) == 5


def test_existing_results_are_tabulated(tmp_path, capsys):
    with pytest.raises(SystemExit):
        mosaics.main(["--table", "--results", str(tmp_path)])
    assert f"there are no results in {tmp_path}" in capsys.readouterr().err
    assert mosaics.load_records(tmp_path / "missing") == []
    (tmp_path / "seed4.json").write_text(json.dumps(result(4, (400,))))
    mosaics.main(["--table", "--results", str(tmp_path)])
    assert "| 4 | 400 | 0.00 (0.00) |" in capsys.readouterr().out


def test_a_model_is_trained_on_crops_and_reads_whole_pictures(few_scenes, fake_mnist_root, tmp_path, monkeypatch,
                                                              capsys):
    """The whole command, with a run of one step on a small picture."""
    started = []

    def train_one_step(out, arguments, place):
        started.append(arguments)
        with pytest.warns(UserWarning, match="none is held out"):
            train.main(["--dataset", "npz", "--crop", "32", "--object-size", "0.375", "0.75", "--model.num-steps", "2",
                        "--estimator", "enumerate", "--steps", "1", "--batch-size", "4", *place, "--out", str(out)])

    for name, value in {"train_if_missing": train_one_step, "SIDE": 72, "TRAINING": (3,), "TEST": (2, 3)}.items():
        monkeypatch.setattr(mosaics, name, value)
    mosaics.main(["--seeds", "1", "--data.root", str(fake_mnist_root), "--runs", str(tmp_path / "runs"),
                  "--results", str(tmp_path)])
    assert started == [[*shlex.split(mosaics.ARGUMENTS), "--seed", "1"]]
    written = json.loads((tmp_path / "seed1.json").read_text())
    assert written["command"] == f"python train.py {mosaics.ARGUMENTS} --seed 1 --data.file mosaics.npz"
    assert [record["true"] for record in written["records"]] == [2, 3] and written["threads"] > 0
    assert "| mean | |" in capsys.readouterr().out
