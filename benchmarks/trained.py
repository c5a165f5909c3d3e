"""Trained models that several benchmarks look at."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import air

ROOT = Path(__file__).parent.parent


def trained(out: Path, arguments: Sequence[str], data_root: str) -> air.AIR:
    """The model of a run, trained by train.py with these arguments unless it is there; one that was stopped goes on."""
    if not (out / "metrics.json").exists():
        how = ["--resume", str(out)] if (out / "checkpoint.pt").exists() else [*arguments, "--out", str(out)]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *how, "--data-root", data_root], check=True)
    return air.load(out)
