import importlib
import sys

import pytest

import air
from benchmarks import peer_pyro


@pytest.fixture
def example(tmp_path):
    """A folder with the file names of Pyro's example."""
    (tmp_path / "air.py").write_text("AIR = 'theirs'\n")
    (tmp_path / "main.py").write_text("import visdom\nfrom air import AIR\n")
    (tmp_path / "modules.py").write_text("")
    return tmp_path


@pytest.fixture
def learner(monkeypatch):
    """Makes contestants on a fake clock: a step takes `pace` seconds and gains one percent of accuracy, an evaluation
    takes an hour.
    """
    clock = [0.0]
    monkeypatch.setattr(peer_pyro.time, "perf_counter", lambda: clock[0])

    class Learner:
        def __init__(self, pace):
            self.pace, self.taken = pace, 0

        def step(self):
            clock[0] += self.pace
            self.taken += 1

        def accuracy(self, scenes):
            clock[0] += 3600
            return self.taken / 100
    return Learner


def test_the_example_s_modules_replace_ours_inside_the_context_only(example):
    with peer_pyro.peer_modules(example):
        assert importlib.import_module("main").AIR == "theirs" == importlib.import_module("air").AIR
    assert importlib.import_module("air") is air and air.AIR is importlib.import_module("air.models.air").AIR
    assert "main" not in sys.modules and str(example) not in sys.path


def test_steps_are_compared_with_the_first(learner):
    rows = peer_pyro.step_times({"slow": learner(2), "fast": learner(0.5)}, steps=16)
    assert rows["slow"] == pytest.approx({"step_ms": 2000, "times_as_fast": 1})
    assert rows["fast"] == pytest.approx({"step_ms": 500, "times_as_fast": 4})


def test_training_stops_at_the_accuracy_or_at_the_limit(learner):
    row = peer_pyro.time_to_accuracy(learner(0.5), None, accuracy=0.3, limit=60, every=25)
    assert row == {"steps": 50, "seconds": 25, "accuracy": 0.5, "reached": 1}
    row = peer_pyro.time_to_accuracy(learner(0.5), None, accuracy=0.3, limit=4, every=5)
    assert row == {"steps": 10, "seconds": 5, "accuracy": 0.1, "reached": 0}


def test_what_is_missing_is_named(example, monkeypatch, capsys):
    def error(*arguments):
        with pytest.raises(SystemExit) as ended:
            peer_pyro.main(["--pyro-air", *map(str, arguments)])
        assert ended.value.code == 2
        return capsys.readouterr().err

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyro" else found(name))
    assert "pip install pyro-ppl" in error(example)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "(0, 1]" in error(example, "--to-accuracy", "90")
    (example / "main.py").unlink()
    assert "no main.py there" in error(example)
