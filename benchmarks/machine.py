"""What a benchmark's figures were measured on."""

import platform
import subprocess
from pathlib import Path

import torch


def machine(device: str) -> dict[str, str | int]:
    """What the figures were measured on, and at which commit; results that were just written do not make it dirty."""
    commit = git("describe", "--always", "--abbrev=12")
    if git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)results"):
        commit += "-dirty"
    chip = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {"device": chip, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version(), "commit": commit}


def git(*arguments: str) -> str:
    """What a git command says, run in the folder of the benchmarks."""
    return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def cpu_name() -> str:
    """The processor's own name where /proc tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
