"""The configuration of a run: every setting, declared once; `air/training/command_line.py` makes flags of them.

A field that is None is chosen by `air.recipe.resolve` from the data set and the other settings. Data sets declare their
own settings in `air/data/`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

import tyro
from pydantic import Field
from tyro.conf import Suppress

from air.data import DATASETS, AnyDataSettings, MultiMNIST
from air.data.settings import (
    Finite,
    Fraction,
    LayerSizes,
    NonNegativeInt,
    Positive,
    PositiveFraction,
    PositiveInt,
    SettingsError,
    flat,
    from_dict,
    settings,
)
from air.models.guides import GuideName

Precision = Literal["fp32", "tf32", "bf16"]


def short(*flags: str) -> Any:
    """Short flags for a setting, in addition to its path."""
    return tyro.conf.arg(aliases=flags)


@settings
class AIRSettings:
    """The model of 2D scenes; `air.AIR` documents what each keyword does."""

    name: Suppress[Literal["air"]] = "air"
    guide: Annotated[GuideName, short("--guide")] = "recurrent"
    """What proposes the next object. recurrent: an LSTM that reads the image (the paper's AIR); difference: an LSTM
    that reads the residual (DAIR); search: convolutions over the residual."""
    num_steps: PositiveInt | None = None
    """The most objects an image can hold (None: one more than training shows, or the recipe's where counts are
    unknown)."""
    window_size: PositiveInt = 28
    """Side of a glimpse in pixels."""
    z_what_size: PositiveInt = 50
    """Size of an object's code."""
    rnn_hidden_size: PositiveInt = 256
    """Hidden size of the LSTM and of the baseline's."""
    encoder_net: LayerSizes = (200,)
    """Hidden layers of the encoder."""
    decoder_net: LayerSizes = (200,)
    """Hidden layers of the decoder."""
    predict_net: LayerSizes = ()
    """Hidden layers between the LSTM and z_pres, z_where."""
    embed_net: LayerSizes | None = None
    """Layers between the image and the LSTM (None: it reads the pixels)."""
    bl_predict_net: LayerSizes = ()
    """Hidden layers of nvil's baseline."""
    non_linearity: str = "ReLU"
    """Name of a class in torch.nn."""
    decoder_output_bias: Finite | None = None
    """Added to the decoder's output."""
    decoder_output_use_sigmoid: bool = False
    """Pass the decoder's output through a sigmoid."""
    convolutional: bool = False
    """Convolutional encoder and decoder in place of MLPs."""
    background: bool = False
    """Model what lies behind the objects by a small VAE."""
    z_background_size: PositiveInt = 8
    """Size of the background's code."""
    use_masking: bool = True
    """Leave out the KLs of absent objects."""
    use_baselines: bool = True
    """nvil learns an input-dependent baseline."""
    baseline_scalar: Finite | None = None
    """Multiplies the baseline's output."""
    count_prior: PositiveFraction = 1e-8
    """k of the count prior p(n) ∝ k^n."""
    scale_prior_mean: Positive | None = None
    """Mean of the prior of s in z_where (None: 1 / object_size)."""
    scale_prior_sd: Positive | None = None
    """Standard deviation of the prior of s (None: in proportion to the mean)."""
    pos_prior_mean: Finite = 0.0
    """Mean of the prior of x and y in z_where."""
    pos_prior_sd: Positive = 1.0
    """Standard deviation of the prior of x and y."""
    likelihood_sd: Positive | None = None
    """Standard deviation of a pixel, in intensities (None: the recipe's, less for small objects)."""
    x_size: Suppress[PositiveInt | None] = None
    channels: Suppress[PositiveInt | None] = None


@settings
class SceneSettings:
    """The model of 3D scenes; `air.SceneAIR` documents what each keyword does."""

    name: Suppress[Literal["scene"]] = "scene"
    guide: Annotated[GuideName | None, short("--guide")] = None
    """What proposes the next object (None: search for several objects, recurrent for one)."""
    num_steps: PositiveInt | None = None
    """The most objects a scene can hold (None: as many as there are)."""
    rnn_hidden_size: PositiveInt = 256
    """Hidden size of the LSTM and of the baseline's."""
    features: PositiveInt = 256
    """Size of the code of an image or a glimpse."""
    predict_net: LayerSizes = (200,)
    """Hidden layers of the network that predicts a step's latents."""
    bl_embed_net: LayerSizes = (200,)
    """Layers between the image and the baseline's LSTM."""
    bl_predict_net: LayerSizes = ()
    """Hidden layers of nvil's baseline."""
    non_linearity: str = "ReLU"
    """Name of a class in torch.nn."""
    use_masking: bool = True
    """Leave out the KLs of absent objects."""
    use_baselines: bool = True
    """nvil learns an input-dependent baseline."""
    likelihood_sd: Positive = 0.1
    """Standard deviation of a pixel, in intensities."""
    count_prior: PositiveFraction = 1e-8
    """k of the count prior p(n) ∝ k^n."""
    identity: Literal["local", "nvil", "enumerate"] | None = None
    """Gradient estimator of the shapes (None: enumerate for one object, local for several)."""
    first_sharpness: Positive = 5.0
    """Sharpness of the renderer at the start of training."""
    annealed: Fraction = 0.5
    """Share of the training by the end of which the renderer is sharp and shapes are no longer explored."""
    object_size: Suppress[Positive | None] = None


@settings
class EstimatorSettings:
    """Settings that all estimators share."""

    particles: PositiveInt = 1
    """K of the importance-weighted bound."""
    exploration: Fraction = 1.0
    """Weight ε of the uniform distribution over counts, for half of the exploration steps; then it falls to 0."""
    exploration_steps: NonNegativeInt | None = None
    """Steps until the exploration has fallen to 0 (None: half of the training)."""
    revive: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """Weight of the branch that ends with a skipped window, in images that have one."""


@settings
class EnumerateSettings(EstimatorSettings):
    """Sums over all counts: exact, no score function."""

    name: Suppress[Literal["enumerate"]] = "enumerate"


@settings
class NVILSettings(EstimatorSettings):
    """Samples the count; score-function gradient with a learned baseline."""

    name: Suppress[Literal["nvil"]] = "nvil"
    draws: PositiveInt = 5
    """Counts drawn from each rollout."""
    centre: bool = False
    """Subtract a running mean from the learning signal."""
    normalise: bool = False
    """Divide the learning signal by a running standard deviation."""
    signal_scale: Finite = 1.0
    """Multiplies the learning signal."""


@settings
class VIMCOSettings(EstimatorSettings):
    """Samples the count of each particle; the other particles are its control variate."""

    name: Suppress[Literal["vimco"]] = "vimco"
    particles: Annotated[int, Field(ge=2)] = 3
    """K of the importance-weighted bound."""
    draws: PositiveInt = 5
    """Counts drawn from each rollout."""


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
    learn_count_prior: bool = False
    """Let the count prior follow the inferred counts from half of the training on."""
    learn_count_prior_from: Suppress[NonNegativeInt | None] = None


@settings
class RunSettings:
    """Where and how the run is executed."""

    seed: Annotated[NonNegativeInt, short("--seed")] = 0
    """Seed of weights, batches and latents; the scenes do not depend on it."""
    device: Annotated[Literal["auto", "cpu", "cuda"], short("--device")] = "auto"
    """auto: cuda where torch sees a device."""
    precision: Annotated[Precision, short("--precision")] = "fp32"
    """fp32; tf32: matrix products on CUDA; bf16: the networks' layers."""
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


def default_config(dataset: str = "multi-mnist", estimator: str = DEFAULT_ESTIMATOR) -> Config:
    """The recipe's settings for a data set and an estimator, by their names.

    Raises:
        SettingsError: there is no such data set or estimator.
    """
    for kind, name, names in (("data set", dataset, DATASETS), ("estimator", estimator, ESTIMATOR_SETTINGS)):
        if name not in names:
            raise SettingsError(f"there is no {kind} {name!r}; choose from {', '.join(names)}")
    model = SceneSettings() if dataset.startswith("scenes-") else AIRSettings()
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
            raise SettingsError(f"there is no setting {path!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        group, _, name = path.partition(".")
        config = replace(config, **{group: replace(getattr(config, group), **{name: value})})
    return config
