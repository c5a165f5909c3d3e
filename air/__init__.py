"""Attend, Infer, Repeat (Eslami et al., 2016) in pure PyTorch."""

from air import pairing  # noqa: F401  first, so that a torchvision that does not load is named as such
from air.checkpoints import load, load_scene_model
from air.inference.estimators import ESTIMATORS, NVIL, VIMCO, Enumerate
from air.inference.refine import refine
from air.models.air import AIR
from air.models.export import export
from air.models.pyro import load_pyro_checkpoint
from air.scenes3d.model import SceneAIR

__all__ = ["AIR", "ESTIMATORS", "NVIL", "VIMCO", "Enumerate", "SceneAIR", "export", "load", "load_pyro_checkpoint",
           "load_scene_model", "refine"]
__version__ = "0.1.0"
