"""Checkpoints: written atomically, read with `weights_only=True`."""

import pickle
from pathlib import Path
from typing import Any

import torch

from air.files import atomic_write
from air.kinds import build
from air.models.air import AIR
from air.models.base import CountingModel
from air.scenes3d.model import SceneAIR

FILE_NAME = "checkpoint.pt"
FORMAT = 7


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged or not one of ours."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: plain containers and tensors; the old file stays until the new one is whole.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with atomic_write(path) as file:
        try:
            torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:  # torch's archive, closed after a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Args:
        path: the file, or the folder of its run.
    Raises:
        CheckpointError: there is none, it is damaged, or it is not one of this version.
    """
    path = checkpoint_path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is not a checkpoint that can be read: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise CheckpointError(f"{path} is not a checkpoint of this version: expected format {FORMAT}, found {found}")
    return content


def checkpoint_path(path: str | Path) -> Path:
    """The checkpoint of a run's folder, or the file itself.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(f"there is no checkpoint at {file}")
    return file


def load(path: str | Path) -> AIR:
    """A trained model of 2D scenes, in eval mode on the CPU.

    Args:
        path: a checkpoint that train.py wrote, or the folder of its run.
    Raises:
        CheckpointError: there is none, it is damaged, it is not one of this version, or it is of 3D scenes.
    """
    model = _load(path)
    if not isinstance(model, AIR):
        raise CheckpointError(f"{path} is a model of 3D scenes: load it with air.load_scene_model")
    return model


def load_scene_model(path: str | Path) -> SceneAIR:
    """A trained model of 3D scenes, in eval mode on the CPU; arguments and errors as of `load`."""
    model = _load(path)
    if not isinstance(model, SceneAIR):
        raise CheckpointError(f"{path} is a model of 2D scenes: load it with air.load")
    return model


def _load(path: str | Path) -> CountingModel:
    content = load_checkpoint(path)
    model = build(content["kind"], content["model"])
    prefix = "model."
    model.load_state_dict({name.removeprefix(prefix): value for name, value in content["objective"].items()
                           if name.startswith(prefix)})
    return model.eval()
