"""The machine, software and commit that a measurement was taken with."""

import platform
import subprocess
from pathlib import Path

import torch

RESULTS = ("benchmarks/results", "experiments/results")


def machine(device: str) -> dict[str, str | int]:
    """Describe what a measurement runs on, for the JSON file that holds its result.

    Args:
        device: "cpu" or "cuda".
    Returns:
        device: the processor's or GPU's name; threads: of torch; torch, python: versions; commit: "" outside a
        checkout, with "-dirty" appended if tracked files differ from it. Result files do not count: a series of runs
        rewrites them as it goes.
    """
    commit = git("describe", "--always", "--abbrev=12")
    if git("status", "--porcelain", "--untracked-files=no", "--", ":/", *(f":(top,exclude){each}" for each in RESULTS)):
        commit += "-dirty"
    chip = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {"device": chip, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version(), "commit": commit}


def git(*arguments: str) -> str:
    """The output of a git command run in this file's checkout, without the final newline."""
    return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def cpu_name() -> str:
    """The processor's name from /proc/cpuinfo; its architecture where that file is missing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
