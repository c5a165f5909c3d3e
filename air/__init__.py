"""Attend, Infer, Repeat (Eslami et al., 2016) in pure PyTorch."""

import torch

try:
    import torchvision  # noqa: F401  a build that does not match torch fails here, before anything obscure does
except (ImportError, RuntimeError, OSError) as error:
    raise ImportError(
        f"torch {torch.__version__} and the installed torchvision are not a matching pair ({error}). Install one with: "
        "pip install --upgrade torch torchvision (both in one command, neither pinned)") from error

from air.checkpoints import load, load_scene_model  # noqa: E402
from air.inference import ESTIMATORS, NVIL, VIMCO, Enumerate  # noqa: E402
from air.inference.refine import refine  # noqa: E402
from air.models.air import AIR  # noqa: E402
from air.models.export import export  # noqa: E402
from air.models.pyro import load_pyro_checkpoint  # noqa: E402
from air.scenes3d.model import SceneAIR  # noqa: E402

__all__ = ["AIR", "ESTIMATORS", "NVIL", "VIMCO", "Enumerate", "SceneAIR", "export", "load", "load_pyro_checkpoint",
           "load_scene_model", "refine"]
__version__ = "0.2.0"
