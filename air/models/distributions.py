"""Latents with closed-form KLs, z_pres as a distribution over counts, and the count prior.

z_pres is a unary code of the count n: z_pres_t = 1 for t <= n, else 0. So a chain of logits of
q(z_pres_t = 1 | z_pres_{t-1} = 1) is a distribution over n.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from air.models.settings import PositiveFraction

LEAST_FACTOR = 1e-300
GeometricFactor = Annotated[PositiveFraction, Field(ge=LEAST_FACTOR)]  # k of p(n) ∝ k^n


class NormalLatent(NamedTuple):
    """A diagonal Normal posterior, its prior, and one reparameterised draw.

    The posterior is held in units of its prior, in which the KL is simplest. Offset, ratio and noise are (..., D); the
    prior may have to be broadcast.
    """

    offset: Tensor  # (loc - prior_loc) / prior_scale
    ratio: Tensor  # scale / prior_scale
    noise: Tensor  # standard Normal; 0 for a draw at the mean
    prior_loc: Tensor
    prior_scale: Tensor

    @property
    def loc(self) -> Tensor:
        """The posterior's mean."""
        return torch.addcmul(self.prior_loc, self.prior_scale, self.offset)

    @property
    def scale(self) -> Tensor:
        """The posterior's standard deviation."""
        return self.prior_scale * self.ratio

    @property
    def value(self) -> Tensor:
        """The draw, loc + scale · noise."""
        return torch.addcmul(self.prior_loc, self.prior_scale, self._drawn)

    @property
    def _drawn(self) -> Tensor:
        return torch.addcmul(self.offset, self.ratio, self.noise)

    def at(self, loc: Tensor) -> "NormalLatent":
        """The posterior moved to another mean, with the draw there."""
        offset = (loc - self.prior_loc) / self.prior_scale
        return self._replace(offset=offset, noise=torch.zeros_like(offset))

    def of_rows(self, row: Tensor) -> "NormalLatent":
        """The posteriors of some rows of the batch; the prior is the same for all rows."""
        return self._replace(offset=self.offset[row], ratio=self.ratio[row], noise=self.noise[row])

    def kl(self) -> Tensor:
        """KL(q || p) in nats, (...): summed over the last dimension."""
        return standard_normal_kl(self.offset, self.ratio).sum(-1)

    def log_ratio(self) -> Tensor:
        """log p(value) - log q(value) in nats, (...): its mean under q is -KL(q || p)."""
        return ((self.noise.square() - self._drawn.square()) / 2 + self.ratio.log()).sum(-1)


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


def draw(loc: Tensor, scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A reparameterised draw from Normal(loc, scale²), loc + scale · noise, and its loc and scale.

    Whoever reads loc and scale as well, to compute a KL, should read those returned: the backward pass then adds up
    their gradients and the draw's at once.
    """
    value, loc, scale = _Draw.apply(loc, scale, noise)
    return value, loc, scale


class _Draw(torch.autograd.Function):
    """See `draw`."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(scale, noise)
        ctx.set_materialize_grads(False)
        return torch.addcmul(loc, scale, noise), loc, scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_value: Tensor | None, of_loc: Tensor | None, of_scale: Tensor | None
                 ) -> tuple[Tensor | None, ...]:
        scale, noise = ctx.saved_tensors
        if of_value is None:
            return of_loc, of_scale, None
        return (of_value if of_loc is None else of_value + of_loc,
                of_value * noise if of_scale is None else torch.addcmul(of_scale, of_value, noise),
                of_value * scale if ctx.needs_input_grad[2] else None)


def divergences(latents: Mapping[str, Latent], sampled: bool = False) -> dict[str, Tensor]:
    """Every latent's KL(q || p) in nats, (...); the elementwise part of Normal latents of one shape is taken together.

    Args:
        latents: by name.
        sampled: log q(value) - log p(value) instead of its mean, the KL.
    """
    if sampled:
        return {name: -latent.log_ratio() for name, latent in latents.items()}
    shapes: dict[torch.Size, dict[str, NormalLatent]] = {}
    for name, latent in latents.items():
        if isinstance(latent, NormalLatent):
            shapes.setdefault(latent.offset.shape[:-1], {})[name] = latent
    found: dict[str, Tensor] = {}
    for alike in shapes.values():
        offset, ratio = (torch.cat(fields, -1) for fields in zip(*(latent[:2] for latent in alike.values())))
        sizes = [latent.offset.shape[-1] for latent in alike.values()]
        found |= dict(zip(alike, (each.sum(-1) for each in standard_normal_kl(offset, ratio).split(sizes, -1))))
    return {name: found[name] if name in found else latent.kl() for name, latent in latents.items()}


def standard_normal_kl(loc: Tensor, scale: Tensor) -> Tensor:
    """KL(Normal(loc, scale²) || Normal(0, 1)), elementwise, in nats.

    Source: Kingma & Welling (2014), appendix B.
    """
    kl: Tensor = _StandardNormalKL.apply(*torch.broadcast_tensors(loc, scale))
    return kl


class _StandardNormalKL(torch.autograd.Function):
    """See `standard_normal_kl`; its backward pass is the closed form."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(loc, scale)
        # KL = -log σ - 1/2 + (σ² + μ²) / 2
        kl = torch.rsub(scale.log(), -0.5)
        return kl.addcmul_(scale, scale, value=0.5).addcmul_(loc, loc, value=0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = ctx.saved_tensors
        return gradient * loc, gradient * (scale - scale.reciprocal())


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
    log_q: Tensor = _LogCountProbs.apply(logits)
    return log_q


def settled(logits: Tensor) -> Tensor:
    """Whether steps after step t cannot change the most probable count: q(n >= t) is below a q(n) with n < t.

    Args:
        logits: (B, N), N > 0, of q(z_pres_t = 1 | z_pres_{t-1} = 1).
    Returns:
        (B, N) bool, for t = 1..N; once true, it stays true.
    """
    at_least = log_at_least(logits)
    ends = at_least[:, :-1] + F.logsigmoid(-logits)  # log q(n), n < t
    return at_least[:, 1:] < ends.cummax(-1).values


class _LogCountProbs(torch.autograd.Function):
    """See `log_count_probs`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        # log q(n) = Σ_{t<=n} log q_t + log(1 - q_{n+1}), no last factor at n = N
        at_least, stops = log_at_least(logits), F.logsigmoid(-logits)
        return torch.cat((at_least[..., :-1] + stops, at_least[..., -1:]), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # ∂ log q(n) / ∂ logit_t = [n >= t] - q_t [n >= t - 1]
        at_least = gradient.flip(-1).cumsum(-1).flip(-1)  # Σ_{m>=n} gradient_m
        return torch.addcmul(at_least[..., 1:], ctx.saved_tensors[0].sigmoid(), at_least[..., :-1], value=-1)


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
        kept = math.log1p(-rate) if rate < 1 else -math.inf
        # in logs, since a probability such as 1e-60 is 0 in float32
        self.log_probs.copy_(torch.logaddexp(self.log_probs + kept, counts.log() + math.log(rate)))

    def log_ratios(self, steps: int) -> Tensor:
        """log p(n) - log p(n - 1) for n = 1..steps, in nats, (steps,): beyond N, the same as at N."""
        ratios = self.log_probs.diff()
        return ratios[torch.arange(steps, device=ratios.device).clamp(max=len(ratios) - 1)]

    def sample(self, size: int) -> Tensor:
        """Draw counts from p(n): (size,) int64."""
        if size == 0:  # which multinomial refuses
            return self.log_probs.new_empty(0, dtype=torch.int64)
        return torch.multinomial(self.log_probs.exp(), size, replacement=True)
