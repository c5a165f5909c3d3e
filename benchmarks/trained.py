"""Trained models that several benchmarks look at."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import air

ROOT = Path(__file__).parent.parent


def trained(out: Path, arguments: Sequence[str], data_root: str) -> air.AIR:
    """The model of a run, see `train_unless_there`."""
    train_unless_there(out, arguments, data_root)
    return air.load(out)


def train_unless_there(out: Path, arguments: Sequence[str], data_root: str) -> None:
    """A run by train.py with these arguments; one that was stopped goes on."""
    if not (out / "metrics.json").exists():
        how = ["--resume", str(out)] if (out / "checkpoint.pt").exists() else [*arguments, "--out", str(out)]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *how, "--data-root", data_root], check=True)
