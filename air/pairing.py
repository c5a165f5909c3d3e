"""Fails early, in words, where torchvision does not load beside the installed torch."""

from importlib.metadata import PackageNotFoundError, version

import torch

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError, OSError) as error:
    try:
        found = f"torchvision {version('torchvision')}"
    except PackageNotFoundError:
        found = "no torchvision"
    raise ImportError(
        f"torch {torch.__version__} and {found} are not a matching pair ({error}). Install one with: "
        "pip install --upgrade torch torchvision (both in one command, neither pinned)") from error
