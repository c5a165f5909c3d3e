"""Checkpoints of runs: written atomically, read with `weights_only=True`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from air.config import Config, config_from_dict
from air.data.settings import SettingsError, to_dict
from air.files import CheckpointError, atomic_write, load_tensors
from air.models.air import AIR
from air.models.base import CountingModel
from air.recipe import build_model
from air.scenes3d.model import SceneAIR

FILE_NAME = "checkpoint.pt"
FORMAT = 9
# Which versions read the formats before this one.
READERS = {**dict.fromkeys(range(1, 7), "an earlier commit of air 0.1.0"), 7: "air 0.1.0 (commit a34ee63)",
           8: "commit 3f59a48"}


PARTS = ("objective", "optimizer", "step", "seconds", "gradient_norms", "processes")  # of a run's state


def save_checkpoint(path: Path, config: Config, state: dict[str, Any]) -> None:
    """Write a checkpoint; an existing file is replaced once the new one is complete.

    Args:
        path: the file.
        config: the run's.
        state: plain containers and tensors by the names in PARTS; "objective" is the estimator's state_dict.
    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with atomic_write(path, regular=True) as file:
        try:
            torch.save({**state, "format": FORMAT, "config": to_dict(config)}, file)
        except RuntimeError as error:  # torch's archive, closed after a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: str | Path) -> tuple[Config, dict[str, Any]]:
    """Read what `save_checkpoint` wrote: the run's configuration and its state, on the CPU.

    Args:
        path: the file, or the run's folder.
    Raises:
        CheckpointError: the file is missing, damaged, of another version, or not a checkpoint of this package.
    """
    path = checkpoint_path(path)
    content = load_tensors(path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        reader = READERS.get(found) if isinstance(found, int) else None
        raise CheckpointError(f"{path} has checkpoint format {found}, expected {FORMAT}"
                              + (f": read it with {reader}" if reader else ""))
    if missing := {"config", *PARTS} - content.keys():
        raise CheckpointError(f"{path} is incomplete: it holds no {', '.join(sorted(missing))}")
    try:
        return config_from_dict(content["config"]), {part: content[part] for part in PARTS}
    except SettingsError as error:
        raise CheckpointError(f"{path} holds settings that this version does not know: {error}") from error


def checkpoint_path(path: str | Path) -> Path:
    """The checkpoint file of a run's folder, or the file itself."""
    path = Path(path)
    return path / FILE_NAME if path.is_dir() else path


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a state_dict from a checkpoint. Raises CheckpointError: it is not that of this module."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the model: {' '.join(str(error).split())}") from None


def load(path: str | Path) -> AIR:
    """A trained model of 2D scenes, in eval mode on the CPU.

    Args:
        path: a checkpoint that train.py wrote, or the folder of its run.
    Raises:
        CheckpointError: the file is missing, damaged, of another version, or holds a model of 3D scenes.
    """
    return load_with_config(path)[0]


def load_with_config(path: str | Path) -> tuple[AIR, Config]:
    """A trained model of 2D scenes with its run's configuration; arguments and errors as of `load`."""
    model, config = _load(path)
    if not isinstance(model, AIR):
        raise CheckpointError(f"{path} is a model of 3D scenes: load it with air.load_scene_model")
    return model, config


def load_scene_model(path: str | Path) -> SceneAIR:
    """A trained model of 3D scenes, in eval mode on the CPU; arguments and errors as of `load`."""
    model, _ = _load(path)
    if not isinstance(model, SceneAIR):
        raise CheckpointError(f"{path} is a model of 2D scenes: load it with air.load")
    return model


def _load(path: str | Path) -> tuple[CountingModel, Config]:
    config, content = load_checkpoint(path)
    model = build_model(config.model)
    prefix = "model."
    load_weights(model, {name.removeprefix(prefix): value for name, value in content["objective"].items()
                         if name.startswith(prefix)})
    return model.eval(), config
