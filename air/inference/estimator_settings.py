"""The settings of the estimators."""

from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import Suppress

from air.models.settings import Draws, Finite, Fraction, NonNegativeInt, settings


@settings
class EstimatorSettings:
    """Settings that all estimators share."""

    particles: Draws = 1
    """K of the importance-weighted bound."""
    exploration: Fraction = 1.0
    """Weight ε of the uniform distribution over counts, for half of the exploration steps; then it falls to 0."""
    exploration_steps: NonNegativeInt | None = None
    """Steps until the exploration has fallen to 0 (None: half of the training)."""
    revive: Annotated[Fraction, Field(lt=1)] = 0.8
    """Weight of the branch that ends with a skipped window, in images that have one."""


@settings
class EnumerateSettings(EstimatorSettings):
    """Sums over all counts: exact, no score function."""

    name: Suppress[Literal["enumerate"]] = "enumerate"


@settings
class SampledCountSettings(EstimatorSettings):
    """Settings that the estimators which sample the count share."""

    draws: Draws = 5
    """Counts drawn from each rollout."""


@settings
class NVILSettings(SampledCountSettings):
    """Samples the count; score-function gradient with a learned baseline."""

    name: Suppress[Literal["nvil"]] = "nvil"
    centre: bool = False
    """Subtract a running mean from the learning signal."""
    normalise: bool = False
    """Divide the learning signal by a running standard deviation."""
    signal_scale: Finite = 1.0
    """Multiplies the learning signal."""


@settings
class VIMCOSettings(SampledCountSettings):
    """Samples the count of each particle; the other particles are its control variate."""

    name: Suppress[Literal["vimco"]] = "vimco"
    particles: Annotated[Draws, Field(ge=2)] = 3
    """K of the importance-weighted bound."""
