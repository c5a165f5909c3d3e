"""Trained models shared by the studies: a run is trained once and kept under runs/."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import air
from experiments.records import ROOT

RUNS = ROOT / "runs" / "trained"
# The sharper likelihood and the shifted images make the codes more informative than counting needs.
DIGITS = "--dataset multi-mnist --estimator enumerate --steps 4000 --optim.shift 2 --model.likelihood-sd 0.15"
KINDS = {"AIR": DIGITS, "DAIR": f"{DIGITS} --guide difference",
         "sprites": "--dataset sprites --estimator enumerate --steps 4000 --optim.shift 2"}


def trained(kind: str, seed: int, runs: Path, data_root: str) -> air.AIR:
    """Load a model, training it first if `runs` does not hold it.

    Args:
        kind: a key of KINDS.
        data_root: the folder that holds MNIST.
    """
    out = run_folder(kind, seed, runs)
    place = [] if kind == "sprites" else ["--data.root", data_root]
    train_if_missing(out, [*shlex.split(KINDS[kind]), "--seed", str(seed)], place)
    return air.load(out)


def final_metrics(kind: str, seed: int, runs: Path) -> dict[str, Any]:
    """The final evaluation of a run: the content of its metrics.json."""
    return json.loads((run_folder(kind, seed, runs) / "metrics.json").read_text())


def run_folder(kind: str, seed: int, runs: Path) -> Path:
    """Where `trained` keeps a run."""
    return runs / f"{kind}-{seed}"


def train_if_missing(out: Path, arguments: Sequence[str], place: Sequence[str] = ()) -> None:
    """Train a run into `out` unless it is complete; an interrupted run is resumed.

    Args:
        arguments: of train.py for a new run, without --out.
        place: further arguments that a resumed run needs as well: where the data are.
    Raises:
        subprocess.CalledProcessError: train.py failed.
    """
    if not (out / "metrics.json").exists():
        resume = (out / "checkpoint.pt").exists()
        how = ["--resume", str(out)] if resume else [*arguments, "--out", str(out)]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *how, *place], check=True)
