"""Trained models that several benchmarks look at: a run of each seed serves all of them."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import air

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "trained"
# A likelihood that asks for more detail than counting needs, and images that move, make codes that say more.
DIGITS = "--dataset multi-mnist --estimator enumerate --steps 4000 --set shift=2 model.likelihood_sd=0.15"
KINDS = {"AIR": DIGITS, "DAIR": f"{DIGITS} --difference",
         "sprites": "--dataset sprites --estimator enumerate --steps 4000 --set shift=2"}


def trained(kind: str, seed: int, runs: Path, data_root: str) -> air.AIR:
    """The model of a run by KINDS, trained where `runs` does not hold it."""
    out = folder(kind, seed, runs)
    train_unless_there(out, [*shlex.split(KINDS[kind]), "--seed", str(seed)], data_root)
    return air.load(out)


def final_metrics(kind: str, seed: int, runs: Path) -> dict[str, Any]:
    """What that run's last evaluation found, as in metrics.json."""
    return json.loads((folder(kind, seed, runs) / "metrics.json").read_text())


def folder(kind: str, seed: int, runs: Path) -> Path:
    """A run's, under that of all of them."""
    return runs / f"{kind}-{seed}"


def train_unless_there(out: Path, arguments: Sequence[str], data_root: str) -> None:
    """A run by train.py with these arguments; one that was stopped goes on."""
    if not (out / "metrics.json").exists():
        how = ["--resume", str(out)] if (out / "checkpoint.pt").exists() else [*arguments, "--out", str(out)]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *how, "--data-root", data_root], check=True)
