"""The fuzz script can fail: each fault is shown to it once; and a few of its trials."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fuzzing.arrays import ARRAYS
from tests.fuzzing.checkpoints import same_records
from tests.fuzzing.flags import is_wrong, settings_of
from tests.fuzzing.sandbox import Outcome, Sandbox, faults, not_finite

ROOT = Path(__file__).parent.parent


def stand_in(source):
    """A program: Python with the modules above."""
    def run():
        exec(source, globals())
    return run


@pytest.mark.parametrize("source, found", [
    ("", []), ("print('done')", []), ("print('train.py: WARNING: dark', file=sys.stderr)", []),
    ("sys.exit('train.py: the disk is full')", []),
    ("print('train.py: error: no', file=sys.stderr); sys.exit(2)", []),
    ("1 / 0", ["traceback: ZeroDivisionError: division by zero", "lines on stderr with exit code 1"]),
    ("raise KeyboardInterrupt", ["traceback: KeyboardInterrupt", "exit code 130"]),
    ("time.sleep(9)", ["hang"]), ("sys.exit(3)", ["exit code 3"]),
    ("sys.exit(2)", ["0 lines on stderr with exit code 2"]),
    ("os.kill(os.getpid(), signal.SIGUSR1)", [f"exit code -{signal.SIGUSR1.value}"]),
    ("print('one\\ntwo', file=sys.stderr); sys.exit(2)", ["2 lines on stderr with exit code 2"]),
    ("print('something', file=sys.stderr)", ["complaints on stderr with exit code 0"]),
    ("print('\\x1b[31m')", ["control characters are echoed"]),
    ("print('9' * 5000, file=sys.stderr); sys.exit(2)", ["more than 3,000 characters in a sentence"]),
    ("np.ones(3 * 2**25)", ["memory: "]), ("np.ones(2**40)", ["traceback: numpy", "lines on stderr"]),
    ("Path('.found.json.a1b2c3d4').touch()", ["temporary files left behind"])])
def test_each_fault_is_seen(tmp_path, monkeypatch, source, found):
    monkeypatch.setattr("tests.fuzzing.sandbox.MEMORY", 2**27)
    limit = 2 if "sleep" in source else 30
    outcome = Sandbox(tmp_path, {"train": stand_in(source)}).run("train", [], tmp_path, limit)
    seen = faults(outcome, "train")
    assert len(seen) == len(found) or (found and "traceback" in found[0] and len(seen) <= 2), (seen, outcome)
    assert all(any(words in each for each in seen) for words in found), (seen, outcome)


def test_what_must_be_refused_may_not_be_accepted_and_the_other_way_round():
    accepted, refused = (Outcome([], code, "", "train.py: error: no\n" * (code == 2), 0.1, 0, []) for code in (0, 2))
    assert faults(accepted, "train", refused=True) == ["accepted nonsense: exit code 0 where 2 is right"]
    assert faults(refused, "train", refused=False) == ["refused what is right"]
    assert not faults(accepted, "train", refused=False) and not faults(refused, "train", refused=True)


def test_signals_reach_the_program(tmp_path):
    source = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); time.sleep(9)"
    sandbox = Sandbox(tmp_path, {"train": stand_in(source)})
    assert sandbox.run("train", [], tmp_path, signals=[(0.5, signal.SIGTERM)]).code == 7
    assert sandbox.run("train", [], tmp_path, signals=[(0.5, signal.SIGKILL)]).code == -signal.SIGKILL


def test_other_results_are_told_apart():
    one = [{"count": 1, "boxes": [[1.0, 2, 3, 4]]}, {"count": 0, "boxes": []}]
    assert same_records(one, json.loads(json.dumps(one)))
    assert not same_records(one, [{"count": 0, "boxes": []}] * 2) and not same_records(one, one[:1])
    assert not same_records(one, [{"count": 1, "boxes": [[1.0, 2, 3, 5]]}, one[1]])
    assert not_finite({"a": [1, {"b": float("nan")}]}) and not not_finite({"a": [1, {"b": 2.0, "c": "nan"}]})


def test_which_values_are_wrong():
    from air.config import default_config
    config = default_config("sprites", "nvil")
    assert {"model.likelihood_sd", "optim.steps", "data.counts"} <= {setting.path for setting in settings_of(config)}
    assert is_wrong(config, "optim.lr", float("nan")) and is_wrong(config, "optim.lr", -1.0)
    assert not is_wrong(config, "optim.lr", 0.1)


def test_arrays_are_changed_as_their_names_say():
    rng = np.random.default_rng(0)
    for change in ARRAYS:
        arrays = {"images": rng.integers(0, 256, (40, 48, 48), np.uint8), "counts": np.arange(40) % 3,
                  "boxes": rng.uniform(20, 48, (40, 2, 4)).astype(np.float32)}
        before = {name: array.copy() for name, array in arrays.items()}
        change.apply(rng, arrays)
        same = before.keys() == arrays.keys() and all(
            arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array) for name, array in before.items())
        assert same == (change.name == "as it is"), change.name


def test_some_trials_of_each_kind(tmp_path):
    """The script itself, to the table; whether the programs fail is its own matter."""
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), "--trials", "5", "--minutes", "1", "--steps", "60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode in (0, 1), ended.stderr
    table = ended.stdout.splitlines()[-7:]
    assert table[0].split() == ["kind", "trials", "failures", "seconds"], ended.stdout
    assert [line.split()[:2] for line in table[1:-1]] == [
        [kind, "1"] for kind in ("flags", "arrays", "checkpoints", "images", "signals")]
    assert table[-1].split()[:2] == ["all", "5"] and ended.returncode == (table[-1].split()[2] != "0")
    assert time.monotonic() - began < 200
