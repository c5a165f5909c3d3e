"""The models by kind, as runs and checkpoints name them."""

from typing import Any

from air.models.air import AIR
from air.models.base import CountingModel
from air.scenes3d.model import SceneAIR

MODELS: dict[str, type[CountingModel]] = {"air": AIR, "scene": SceneAIR}


def build(kind: str, keywords: dict[str, Any]) -> CountingModel:
    """A fresh model of a kind, with the keywords of its constructor."""
    return MODELS[kind](**keywords)
