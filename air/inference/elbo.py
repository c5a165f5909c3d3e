"""From a rollout to elbo_n and the importance-weighted bound, which estimators and evaluation work with.

Given the image, the chain of latents only ever continues from z_pres = 1. So one rollout of all N steps gives, for
every n = 0..N,

    elbo_n = log p(x | z_{1:n}) - Σ_{t<=n} KL_t + log p(n) - log q(n)

A model whose prior depends on how objects lie to one another, p(n, z) ∝ p(n) Π_{t<=n} exp(-price_t) p(z_t), has
log p(n) - Σ_{t<=n} price_t in place of log p(n). The log of its normaliser is left out; as that is at most 0, elbo_n
remains a bound from below.

With log p(z_t) - log q(z_t) at the draw in place of -KL_t, this is a log importance weight log w(n), and K particles
give the bound log 1/K Σ_k w_k(n_k).

Source: Burda et al. (2016), eq. 8, for the bound.
"""

import math
from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from air.models.base import CountingModel, Rollout
from air.models.distributions import divergences, log_count_probs

Metrics = dict[str, Tensor]


class Terms(NamedTuple):
    """The ELBO's terms for each count n = 0..N, in nats."""

    log_likelihood: Tensor  # (B, N+1), log p(x | n, z_{1:n})
    kl: dict[str, Tensor]  # latent -> (B, N+1), Σ_{t<=n} KL_t or Σ_{t<=n} log q(z_t) - log p(z_t); (B, 1) for any n
    log_joint: Tensor  # (B, N+1), elbo_n + log q(n): log p(x | n, z_{1:n}) - Σ_{t<=n} KL_t + log p(n)
    log_w: Tensor  # (B, N+1), elbo_n without the gradient of -log q(n)
    log_p: Tensor  # (N+1,), log p(n); with prices (B, N+1), log p(n) - Σ_{t<=n} price_t
    log_q: Tensor  # (B, N+1), log q(n)
    q: Tensor  # (B, N+1), q(n)
    skipped: Tensor  # (B, N) bool, which windows explain nothing although q(n) continues past them
    skips: Tensor  # (B, 1) bool, whether any window is skipped

    @classmethod
    def of(cls, log_likelihood: Tensor, kl: dict[str, Tensor], log_p: Tensor, log_q: Tensor,
           price: Tensor | None = None) -> "Terms":
        """Compute the other fields from these, log_p without prices.

        Window t is skipped if it does not pay, log_joint_t < log_joint_{t-1} without prices, and q(n > t) > 1/2.
        """
        log_joint = log_likelihood + log_p - reduce(torch.add, kl.values())
        q = log_q.exp()
        pays_not = log_joint[:, 1:] < log_joint[:, :-1]
        if price is not None:
            prices = F.pad(price.cumsum(-1), (1, 0))
            log_joint, log_p = log_joint - prices, log_p - prices
        skipped = pays_not & (q.detach().cumsum(-1)[:, 1:] < 0.5)
        return cls(log_likelihood, kl, log_joint, log_joint - log_q.detach(), log_p, log_q, q, skipped,
                   skipped.any(-1, keepdim=True))

    def elbo(self) -> Tensor:
        """elbo_n, (B, N+1)."""
        return self.log_joint - self.log_q

    def per_image(self) -> Metrics:
        """The ELBO, its terms and the mean count, (B,) each, with n summed out by q(n)."""
        names, values = self._by_count()
        return dict(zip(names, values.sum(-1)))

    def metrics(self) -> Metrics:
        """Batch means of `per_image`, of q(n) ("share_0" to "share_N") and of images with a skipped window ("skipped").
        """
        names, values = self._by_count(skipped=self.skips)
        shares = {f"share_{n}": share for n, share in enumerate(self.q.detach().mean(0))}
        return {**dict(zip(names, values.mean(1).sum(-1))), **shares}

    def _by_count(self, **others: Tensor) -> tuple[Iterable[str], Tensor]:
        """Names and q(n) times the values of the metrics in `per_image` and of others (B, 1): (metrics, B, N+1)."""
        with torch.no_grad():
            counts = torch.arange(self.q.shape[-1], device=self.q.device)
            terms = {"elbo": self.log_w, "log_likelihood": self.log_likelihood, "kl_pres": self.log_q - self.log_p,
                     **{f"kl_{name}": kl for name, kl in self.kl.items()}, "mean_count": counts, **others}
            return terms, torch.stack(torch.broadcast_tensors(*terms.values())) * self.q


def elbo_terms(model: CountingModel, rollout: Rollout, sampled: bool = False, masked: bool | None = None) -> Terms:
    """Collect the terms of elbo_n from a rollout.

    Args:
        model: gives p(n).
        rollout: of the model.
        sampled: use log q - log p at the draw instead of its mean, the KL; elbo_n is then a log importance weight.
        masked: leave out the KLs of absent objects (t > n). The reference code does not, and every Σ runs to N. None:
            the model's `use_masking`.
    """
    masked = model.use_masking if masked is None else masked
    kl = divergences(rollout.latents, sampled)
    names = [name for name, each in kl.items() if each.ndim == 2]  # the others are of the scene as a whole
    of_steps = torch.stack([kl[name] for name in names], -1)  # (B, N, names)
    contains = model.contains if masked else torch.ones_like(model.contains)
    up_to = (of_steps[:, None] * contains[..., None]).sum(2)  # (B, N+1, names), Σ_{t<=n} KL_t
    kl = {name: each[:, None] for name, each in kl.items()} | dict(zip(names, up_to.unbind(-1)))
    return Terms.of(rollout.log_likelihood, kl, model.count_prior.log_probs, log_count_probs(rollout.logits),
                    rollout.price)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log 1/K Σ_k w_k: (..., K) -> (...)."""
    if log_w.shape[-1] == 1:
        return log_w.squeeze(-1)
    return log_w.logsumexp(-1) - math.log(log_w.shape[-1])


def bound_with(log_w: Tensor, stand_in: Tensor) -> Tensor:
    """log 1/K Σ_j w_j with w_k replaced, for every k.

    Args:
        log_w: (..., K).
        stand_in: (..., K, S), S values of log w_k to replace it by.
    Returns:
        (..., K, S).
    """
    particles = log_w.shape[-1]
    if particles == 1:
        return stand_in
    own = torch.eye(particles, dtype=torch.bool, device=log_w.device)
    others = log_w[..., None, :].masked_fill(own, -math.inf).logsumexp(-1)  # (..., K)
    return torch.logaddexp(others[..., None], stand_in) - math.log(particles)
