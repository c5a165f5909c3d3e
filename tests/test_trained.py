import shlex

import pytest

from air.training.command_line import parse
from experiments.studies import trained


@pytest.fixture
def commands(monkeypatch):
    """The arguments of train.py of each run that is started."""
    started = []
    monkeypatch.setattr(trained.subprocess, "run", lambda command, check: started.append(command[2:]))
    monkeypatch.setattr(trained.air, "load", lambda out: out)
    return started


def test_a_run_is_trained_resumed_or_left_alone(commands, tmp_path):
    out = tmp_path / "DAIR-3"
    fresh = [*shlex.split(trained.KINDS["DAIR"]), "--seed", "3", "--out", str(out), "--data.root", "digits"]
    assert trained.trained("DAIR", 3, tmp_path, "digits") == out and commands == [fresh]
    out.mkdir()
    (out / "checkpoint.pt").touch()
    trained.trained("DAIR", 3, tmp_path, "digits")
    assert commands[1:] == [["--resume", str(out), "--data.root", "digits"]]
    (out / "metrics.json").write_text("{}")
    trained.trained("DAIR", 3, tmp_path, "digits")
    trained.trained("sprites", 0, tmp_path, "digits")
    assert len(commands) == 3 and "--data.root" not in commands[2] and trained.final_metrics("DAIR", 3, tmp_path) == {}


def test_train_py_takes_the_arguments():
    guides = {kind: parse(shlex.split(arguments)).config.model.guide for kind, arguments in trained.KINDS.items()}
    assert guides == {"AIR": None, "DAIR": "difference", "sprites": None}  # None: the recipe's, recurrent
