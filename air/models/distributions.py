"""Latents with closed-form KLs, z_pres as a distribution over counts, and the count prior.

z_pres is a unary code of the count n: z_pres_t = 1 for t <= n, else 0. So a chain of logits of
q(z_pres_t = 1 | z_pres_{t-1} = 1) is a distribution over n.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from air.models.settings import PositiveFraction

GeometricFactor = Annotated[PositiveFraction, Field(ge=1e-30)]  # k of p(n) ∝ k^n; its powers are float32


class NormalLatent(NamedTuple):
    """A diagonal Normal posterior, its prior, and one reparameterised draw; all (..., D) or broadcastable to that."""

    value: Tensor
    loc: Tensor
    scale: Tensor
    prior_loc: Tensor
    prior_scale: Tensor

    def kl(self) -> Tensor:
        """KL(q || p) in nats, (...): summed over the last dimension."""
        return normal_kl(self.loc, self.scale, self.prior_loc, self.prior_scale).sum(-1)

    def log_ratio(self) -> Tensor:
        """log p(value) - log q(value) in nats, (...): its mean under q is -KL(q || p)."""
        log_p = normal_log_prob(self.value, self.prior_loc, self.prior_scale)
        return (log_p - normal_log_prob(self.value, self.loc, self.scale)).sum(-1)


class CategoricalLatent(NamedTuple):
    """A categorical posterior over S values, with a uniform prior, and one draw."""

    value: Tensor  # (...,) int64
    log_q: Tensor  # (..., S)

    def kl(self) -> Tensor:
        """KL(q || p) in nats, (...)."""
        return (self.log_q.exp() * self.log_q).sum(-1) + math.log(self.log_q.shape[-1])

    def log_ratio(self) -> Tensor:
        """log p(value) - log q(value) in nats, (...): its mean under q is -KL(q || p)."""
        return -math.log(self.log_q.shape[-1]) - self.log_q.gather(-1, self.value[..., None]).squeeze(-1)


Latent = NormalLatent | CategoricalLatent


def normal_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """KL(Normal(loc, scale²) || Normal(prior_loc, prior_scale²)), elementwise, in nats.

    Source: Kingma & Welling (2014), appendix B, for any prior.
    """
    # KL = log(σ_p/σ) + (σ² + (μ - μ_p)²) / 2σ_p² - 1/2
    ratio = scale / prior_scale
    return (ratio.square() + ((loc - prior_loc) / prior_scale).square() - 1) / 2 - ratio.log()


def normal_log_prob(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log Normal(value; loc, scale²), elementwise, in nats."""
    return -((value - loc) / scale).square() / 2 - scale.log() - math.log(2 * math.pi) / 2


def log_at_least(logits: Tensor) -> Tensor:
    """log q(n >= m) for m = 0..N, in nats.

    Args:
        logits: (..., N), of q(z_pres_t = 1 | z_pres_{t-1} = 1).
    Returns:
        (..., N+1), Σ_{t<=m} log q_t.
    """
    return F.pad(F.logsigmoid(logits).cumsum(-1), (1, 0))


def log_count_probs(logits: Tensor) -> Tensor:
    """log q(n) for n = 0..N, in nats.

    Args:
        logits: (..., N), of q(z_pres_t = 1 | z_pres_{t-1} = 1).
    Returns:
        (..., N+1); its exponentials sum to 1.
    """
    # log q(n) = Σ_{t<=n} log q_t + log(1 - q_{n+1}), no last factor at n = N
    return log_at_least(logits) + F.pad(F.logsigmoid(-logits), (0, 1))


class CountPrior(nn.Module):
    """p(n) for n = 0..N, kept in the buffer `log_probs`, (N+1,) in nats."""

    log_probs: Tensor

    def __init__(self, log_probs: Tensor) -> None:
        """Build from log-probabilities (N+1,), which are normalised here."""
        super().__init__()
        self.register_buffer("log_probs", log_probs.log_softmax(-1))

    @classmethod
    def geometric(cls, num_steps: int, k: float) -> "CountPrior":
        """p(n) ∝ k^n: each additional object costs log(1/k) nats.

        Raises:
            ValueError: k is not in (0, 1].
        Source: Eslami et al. (2016), section 2.1, truncated at N.
        """
        if not 0 < k <= 1:
            raise ValueError(f"the geometric count prior needs 0 < k <= 1, got k = {k}")
        return cls(torch.arange(num_steps + 1) * math.log(k))

    @classmethod
    def from_steps(cls, num_steps: int, z_pres_prior_p: Callable[[int], float]) -> "CountPrior":
        """Build p(n) of a chain that continues at step t = 0..N-1 with probability z_pres_prior_p(t).

        Raises:
            ValueError: a probability is not in [0, 1].
        """
        p = torch.tensor([float(z_pres_prior_p(t)) for t in range(num_steps)])
        if not ((0 <= p) & (p <= 1)).all():
            raise ValueError(f"z_pres_prior_p must give probabilities in [0, 1], got {p.tolist()}")
        return cls(F.pad(p.log().cumsum(-1), (1, 0)) + F.pad((1 - p).log(), (0, 1)))

    def follow(self, counts: Tensor, rate: float = 0.01) -> None:
        """Empirical Bayes: move p(n) towards the mean of q(n), which is the p(n) that maximises the ELBO.

        Args:
            counts: (N+1,), q(n) averaged over images.
            rate: in (0, 1], fraction of the difference to close.
        """
        self.log_probs.copy_(self.log_probs.exp().lerp(counts, rate).log())

    def sample(self, size: int) -> Tensor:
        """Draw counts from p(n): (size,) int64."""
        if size == 0:  # which multinomial refuses
            return self.log_probs.new_empty(0, dtype=torch.int64)
        return torch.multinomial(self.log_probs.exp(), size, replacement=True)
