"""Attend, Infer, Repeat (Eslami et al., 2016) in pure PyTorch."""

from air import pairing  # noqa: F401  first, so that a torchvision that does not load is named as such
from air.checkpoints import load, load_scene_model
from air.estimators import ESTIMATORS, NVIL, VIMCO, Enumerate
from air.exporting import export
from air.model import AIR
from air.pyro_checkpoints import load_pyro_checkpoint
from air.refinement import refine
from air.scene_model import SceneAIR

__all__ = ["AIR", "ESTIMATORS", "NVIL", "VIMCO", "Enumerate", "SceneAIR", "export", "load", "load_pyro_checkpoint",
           "load_scene_model", "refine"]
__version__ = "0.1.0"
