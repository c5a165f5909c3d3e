"""The configuration of a run: every setting, declared once; `air/training/command_line.py` makes flags of them.

A field that is None is chosen by `air.recipe.resolve` from the data set and the other settings. Models, estimators and
data sets declare their own settings beside their code, where the constructors check them as well.
"""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Field
from tyro.conf import Suppress

from air.data import DATASETS, AnyDataSettings, MultiMNIST
from air.inference.estimator_settings import EnumerateSettings, NVILSettings, VIMCOSettings
from air.models.air_settings import AIRSettings
from air.models.settings import (
    Fraction,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Seed,
    SettingsError,
    flat,
    from_dict,
    settings,
    short,
    shown,
)
from air.scenes3d.scene_settings import SceneSettings

Precision = Literal["fp32", "tf32", "bf16"]


@settings
class OptimSettings:
    """Optimisation."""

    steps: Annotated[PositiveInt | None, short("--steps")] = None
    """Training steps (None: the recipe's number for the estimator or for 3D scenes)."""
    batch_size: Annotated[PositiveInt, short("--batch-size")] = 64
    """Images a step, of all processes together."""
    lr: Positive = 1e-3
    """Adam's learning rate at the first step; it falls along a cosine."""
    final_lr: Fraction = 0.0
    """The learning rate at the last step, as a share of that at the first."""
    baseline_lr: Positive = 1e-2
    """The learning rate of nvil's baseline at the first step."""
    shift: NonNegativeInt = 0
    """Move each training image at random by up to this many pixels along each axis."""
    crop: Annotated[NonNegativeInt, Field(le=10**4), short("--crop")] = 0
    """Train on random square crops with this side in pixels (0: on whole images); needs --guide search."""
    learn_count_prior: bool = False
    """Let the count prior follow the inferred counts from half of the training on."""
    learn_count_prior_from: Suppress[NonNegativeInt | None] = None
    learn_scale_prior: bool = False
    """Let the prior of object sizes follow the inferred sizes from half of the training on."""
    learn_scale_prior_from: Suppress[NonNegativeInt | None] = None


@settings
class RunSettings:
    """Where and how the run is executed."""

    seed: Annotated[Seed, short("--seed")] = 0
    """Seed of weights, batches and latents; the scenes do not depend on it."""
    device: Annotated[Literal["auto", "cpu", "cuda"], short("--device")] = "auto"
    """auto: cuda where torch sees a device."""
    precision: Annotated[Precision, short("--precision")] = "fp32"
    """fp32; tf32: matrix products and convolutions on CUDA; bf16: the networks' layers."""
    compile: Annotated[bool, short("--compile")] = False
    """torch.compile the objective."""
    eval_every: PositiveInt = 500
    """Steps between evaluations."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints."""


ModelSettings = AIRSettings | SceneSettings
AnyEstimatorSettings = NVILSettings | EnumerateSettings | VIMCOSettings
ESTIMATOR_SETTINGS: dict[str, type[AnyEstimatorSettings]] = {kind.name: kind for kind in get_args(AnyEstimatorSettings)}

DEFAULT_ESTIMATOR = "nvil"  # the paper's


@settings
class Config:
    """All that determines a run, as written to config.json and the checkpoint."""

    data: AnyDataSettings = MultiMNIST()
    model: Annotated[ModelSettings, Field(discriminator="name")] = AIRSettings()
    estimator: Annotated[AnyEstimatorSettings, Field(discriminator="name")] = NVILSettings()
    optim: OptimSettings = OptimSettings()
    run: RunSettings = RunSettings()


def default_config(dataset: str = "multi-mnist", estimator: str = DEFAULT_ESTIMATOR, flat: bool = False) -> Config:
    """The recipe's settings for a data set and an estimator, by their names.

    Args:
        flat: 3D scenes are for the model of 2D scenes as well, which knows no renderer.
    Raises:
        SettingsError: there is no such data set or estimator.
    """
    for kind, name, names in (("data set", dataset, DATASETS), ("estimator", estimator, ESTIMATOR_SETTINGS)):
        if name not in names:
            raise SettingsError(f"there is no {kind} {shown(name)}; choose from {', '.join(names)}")
    model = SceneSettings() if dataset.startswith("scenes-") and not flat else AIRSettings()
    return Config(data=DATASETS[dataset](), model=model, estimator=ESTIMATOR_SETTINGS[estimator]())


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`. Raises SettingsError: a setting has a wrong name or value."""
    return from_dict(Config, values)


def with_settings(config: Config, changes: Mapping[str, Any]) -> Config:
    """Change settings by their paths, such as {"optim.lr": 1e-4, "model.guide": "search"}.

    Raises:
        SettingsError: a path does not exist, or a value fails its check.
    """
    known = flat(config)
    for path, value in changes.items():
        if path not in known:
            close = difflib.get_close_matches(path, known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise SettingsError(f"there is no setting {shown(path)}{meant}")
        group, _, name = path.partition(".")
        config = replace(config, **{group: replace(getattr(config, group), **{name: value})})
    return config
