"""What a benchmark's figures were measured on."""

import platform
import subprocess
from pathlib import Path

import torch


def machine(device: str) -> dict[str, str | int]:
    """What the figures were measured on, and at which commit."""
    commit = subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
                            capture_output=True, text=True).stdout.strip()
    chip = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {"device": chip, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version(), "commit": commit}


def cpu_name() -> str:
    """The processor's own name where /proc tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
