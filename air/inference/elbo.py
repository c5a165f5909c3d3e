"""From a rollout to elbo_n and the importance-weighted bound, which estimators and evaluation work with.

Given the image, the chain of latents only ever continues from z_pres = 1. So one rollout of all N steps gives, for
every n = 0..N,

    elbo_n = log p(x | z_{1:n}) - Σ_{t<=n} KL_t + log p(n) - log q(n)

With log p(z_t) - log q(z_t) at the draw in place of -KL_t, this is a log importance weight log w(n), and K particles
give the bound log 1/K Σ_k w_k(n_k).

Source: Burda et al. (2016), eq. 8, for the bound.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from air.models.base import CountingModel, Rollout
from air.models.distributions import log_count_probs

Metrics = dict[str, Tensor]


class Terms(NamedTuple):
    """The ELBO's terms for each count n = 0..N, in nats."""

    log_likelihood: Tensor  # (B, N+1), log p(x | n, z_{1:n})
    kl: dict[str, Tensor]  # latent -> (B, N+1), Σ_{t<=n} KL_t or Σ_{t<=n} log q(z_t) - log p(z_t); (B, 1) for any n
    conditional_elbo: Tensor  # (B, N+1), the ELBO given n: log p(x | n, z_{1:n}) - Σ_{t<=n} KL_t
    log_p: Tensor  # (N+1,), log p(n)
    log_q: Tensor  # (B, N+1), log q(n)

    @classmethod
    def of(cls, log_likelihood: Tensor, kl: dict[str, Tensor], log_p: Tensor, log_q: Tensor) -> "Terms":
        """Compute the conditional ELBO from the other fields."""
        conditional_elbo = log_likelihood
        for each in kl.values():
            conditional_elbo = conditional_elbo - each
        return cls(log_likelihood, kl, conditional_elbo, log_p, log_q)

    def elbo(self) -> Tensor:
        """elbo_n, (B, N+1)."""
        return self.conditional_elbo + self.log_p - self.log_q

    def skipped(self) -> Tensor:
        """Which windows explain nothing although q(n) continues past them, (B, N) bool.

        Window t is skipped if it does not pay, conditional_elbo_t + log p(t) < conditional_elbo_{t-1} + log p(t-1), and
        q(n > t) > 1/2.
        """
        gain = (self.conditional_elbo + self.log_p).detach().diff(dim=-1)
        return (gain < 0) & (self.log_q.detach().exp().cumsum(-1)[:, 1:] < 0.5)

    def repeat(self, times: int) -> "Terms":
        """Repeat the batch: rows 0..B-1, then again 0..B-1, and so on."""
        return Terms(self.log_likelihood.repeat(times, 1), {name: kl.repeat(times, 1) for name, kl in self.kl.items()},
                     self.conditional_elbo.repeat(times, 1), self.log_p, self.log_q.repeat(times, 1))

    def per_image(self, q: Tensor) -> Metrics:
        """The ELBO, its terms and the mean count, (B,) each, with n summed out by q (B, N+1)."""
        return dict(zip(*self._summed_out(q)))

    def _summed_out(self, q: Tensor) -> tuple[Iterable[str], Tensor]:
        """Names and values (names, B) of the metrics in `per_image`."""
        counts = torch.arange(q.shape[-1], device=q.device)
        terms = {"elbo": self.elbo(), "log_likelihood": self.log_likelihood, "kl_pres": self.log_q - self.log_p,
                 **{f"kl_{name}": kl for name, kl in self.kl.items()}, "mean_count": counts}
        return terms, (torch.stack(torch.broadcast_tensors(*terms.values())) * q).sum(-1).detach()

    def metrics(self, q: Tensor) -> Metrics:
        """Batch means of `per_image`, of q(n) ("share_0" to "share_N") and of images with a skipped window ("skipped").
        """
        names, values = self._summed_out(q)
        shares = {f"share_{n}": share for n, share in enumerate(q.detach().mean(0))}
        shares["skipped"] = self.skipped().any(-1).to(q.dtype).mean()
        return {**dict(zip(names, values.mean(-1))), **shares}


def elbo_terms(model: CountingModel, rollout: Rollout, sampled: bool = False, masked: bool | None = None) -> Terms:
    """Collect the terms of elbo_n from a rollout.

    Args:
        model: gives the count prior.
        rollout: of the model.
        sampled: use log q - log p at the draw instead of its mean, the KL; elbo_n is then a log importance weight.
        masked: leave out the KLs of absent objects (t > n). The reference code does not, and every Σ runs to N. None:
            the model's `use_masking`.
    """
    masked = model.use_masking if masked is None else masked
    kl = {}
    for name, latent in rollout.latents.items():
        each = -latent.log_ratio() if sampled else latent.kl()  # (B, N), or (B,) if one per image
        up_to = each.cumsum(-1) if each.ndim == 2 else each[:, None]
        kl[name] = F.pad(up_to, (1, 0)) if masked and each.ndim == 2 else up_to[:, -1:]
    return Terms.of(rollout.log_likelihood, kl, model.count_prior.log_probs, log_count_probs(rollout.logits))


def bound_with(log_w: Tensor, stand_in: Tensor) -> Tensor:
    """log 1/K Σ_j w_j with w_k replaced, for every k.

    Args:
        log_w: (B, K).
        stand_in: (B, K, ...), one or several values of log w_k to replace it by.
    Returns:
        (B, K, ...).
    """
    particles = log_w.shape[-1]
    own = torch.eye(particles, dtype=torch.bool, device=log_w.device)
    others = log_w[:, None].masked_fill(own, -math.inf).logsumexp(-1)  # (B, K)
    others = others.reshape(*others.shape, *[1] * (stand_in.ndim - 2))
    return torch.logaddexp(others, stand_in) - math.log(particles)
