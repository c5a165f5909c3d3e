import subprocess

import pytest
import torch

from air.training import machine


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository with a committed source file and a committed result; `machine` looks at it."""
    for name in ("air/training/machine.py", "experiments/results/a/seed0.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("old")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "air" / "training" / "machine.py"))
    return tmp_path


def test_the_commit_is_dirty_if_sources_differ_but_not_if_results_do(checkout):
    clean = machine.machine("cpu")["commit"]
    assert len(clean) == 12
    (checkout / "experiments" / "results" / "a" / "seed0.json").write_text("new")
    (checkout / "untracked.txt").write_text("new")
    assert machine.machine("cpu")["commit"] == clean
    (checkout / "air" / "training" / "machine.py").write_text("new")
    assert machine.machine("cpu")["commit"] == f"{clean}-dirty"


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = machine.machine("cpu")
    assert found["commit"] == "" and found["threads"] == torch.get_num_threads() and found["device"]
