"""Attend, Infer, Repeat (Eslami et al., 2016) in pure PyTorch."""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from air.checkpoints import load, load_scene_model
    from air.inference import ESTIMATORS, NVIL, VIMCO, Enumerate
    from air.inference.refine import refine
    from air.inference.tiles import infer_tiles
    from air.models.air import AIR
    from air.models.export import export
    from air.models.pyro import load_pyro_checkpoint
    from air.scenes3d.model import SceneAIR

__all__ = ["AIR", "ESTIMATORS", "NVIL", "VIMCO", "Enumerate", "SceneAIR", "export", "infer_tiles", "load",
           "load_pyro_checkpoint", "load_scene_model", "refine"]
__version__ = "0.2.0"

# Where each name is from. It is imported when it is first asked for: torch takes seconds, in which the programs already
# answer to Ctrl-C.
_HOMES = {"AIR": "models.air", **dict.fromkeys(("ESTIMATORS", "NVIL", "VIMCO", "Enumerate"), "inference"),
          "SceneAIR": "scenes3d.model", "export": "models.export", "infer_tiles": "inference.tiles",
          "load": "checkpoints", "load_pyro_checkpoint": "models.pyro", "load_scene_model": "checkpoints",
          "refine": "inference.refine"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import_module("air.files.startup").check_torch()
        value = getattr(import_module(f"air.{_HOMES[name]}"), name)
    elif any(module.name == name for module in iter_modules(__path__)):
        value = import_module(f"air.{name}")  # `import air` makes air.data usable
    else:
        raise AttributeError(f"module 'air' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *(module.name for module in iter_modules(__path__))})
