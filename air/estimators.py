"""Gradient estimators for the count: modules around a model, `forward(images) -> (loss, metrics)`.

Given the image, the chain of latents is only ever continued from z_pres = 1. So one rollout of all N steps gives, for
every n = 0..N,

    elbo_n = log p(x | z_{1:n}) - Σ_{t<=n} KL_t + log p(n) - log q(n)

and an estimator says how the N+1 of them become a loss whose gradient is that of Σ_n q(n) elbo_n. The latents' own
gradients are reparameterised throughout.

Metrics are scalars, detached, in nats where they are not counts: `elbo, log_likelihood, kl_pres, kl_where, kl_what`
are the ELBO and its terms averaged over the batch, n summed out by q(n) whatever the estimator, and `mean_count` the
average count. NVIL adds the learning signal's deviation, `signal_sd`, and `baseline_loss` (nats²).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from air.distributions import log_at_least, log_count_probs
from air.model import AIR, Rollout

Metrics = dict[str, Tensor]


class Terms(NamedTuple):
    """The ELBO's terms for each count n = 0..N, in nats."""

    log_likelihood: Tensor  # (B, N+1), log p(x | n, z_{1:n})
    kl_steps: dict[str, Tensor]  # latent's name -> (B, N+1), Σ_{t<=n} KL_t
    log_p: Tensor  # (N+1,), log p(n)
    log_q: Tensor  # (B, N+1), log q(n)
    masked: bool  # whether the KLs of absent objects (t > n) are left out

    def kl(self) -> dict[str, Tensor]:
        """Latent's name -> the KL that elbo_n counts, (B, N+1), or (B, 1) where it is the same for every n."""
        return self.kl_steps if self.masked else {name: kl[:, -1:] for name, kl in self.kl_steps.items()}

    def explained(self) -> Tensor:
        """How well n objects explain the image, (B, N+1): log p(x | z_{1:n}) - Σ_{t<=n} KL_t."""
        return self.log_likelihood - sum(self.kl().values())

    def elbo(self) -> Tensor:
        """elbo_n, (B, N+1)."""
        return self.explained() + self.log_p - self.log_q

    def per_image(self, q: Tensor) -> Metrics:
        """The ELBO and its terms, (B,) each, with n summed out by q(n), (B, N+1)."""
        counts = torch.arange(q.shape[-1], device=q.device)
        terms = {"elbo": self.elbo(), "log_likelihood": self.log_likelihood, "kl_pres": self.log_q - self.log_p,
                 **{f"kl_{name}": kl for name, kl in self.kl().items()}, "mean_count": counts}
        return {name: (q * term).sum(-1).detach() for name, term in terms.items()}

    def metrics(self, q: Tensor) -> Metrics:
        """`per_image`, averaged over the batch."""
        return {name: value.mean() for name, value in self.per_image(q).items()}


def elbo_terms(model: AIR, rollout: Rollout) -> Terms:
    """Collect the terms of elbo_n from a rollout.

    With `use_masking=False` the KLs of absent objects count as well, as in the reference: then every Σ runs to N.
    """
    kl_steps = {name: F.pad(latent.kl().cumsum(-1), (1, 0)) for name, latent in rollout.latents.items()}
    return Terms(rollout.log_likelihood, kl_steps, model.count_prior.log_probs, log_count_probs(rollout.logits),
                 model.use_masking)


class Estimator(nn.Module):
    """A model and the way its count is learned.

    `exploration` ε weights the branches' likelihoods and KLs by (1-ε) q(n) + ε/(N+1) in place of q(n). A branch that
    q(n) has left gets no gradient and never comes back; while ε > 0 every branch goes on learning to explain the image,
    the first object as much of it as it can. q(n) itself follows the ELBO throughout, and with ε = 0 all of the
    gradient is the ELBO's.
    """

    exploration: Tensor

    def __init__(self, model: AIR, exploration: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("exploration", model.count_prior.log_probs.new_tensor(exploration))

    def parameter_groups(self, lr: float, baseline_lr: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: the model's parameters, and those of the baseline, if any, at their own rate."""
        return [{"params": list(self.model.parameters()), "lr": lr}]

    def explored(self, q: Tensor) -> Tensor:
        """(1-ε) q(n) + ε/(N+1): (B, N+1) -> (B, N+1)."""
        return torch.lerp(q, torch.full_like(q, 1 / q.shape[-1]), self.exploration)


class Enumerate(Estimator):
    """Σ_n q(n) elbo_n, differentiated as it stands: exact in n, no score function, no baseline."""

    def forward(self, images: Tensor) -> tuple[Tensor, Metrics]:
        """Images as `AIR.rollout` takes them -> loss (scalar, nats, ready for backward) and metrics."""
        terms = elbo_terms(self.model, self.model.rollout(images))
        q = terms.log_q.exp()  # (B, N+1)
        # Exploration moves the weights of likelihoods and KLs by a constant share: q's own gradient is that of q·elbo.
        explored = q + (self.explored(q) - q).detach()  # (B, N+1)
        branches = explored * terms.explained() + q * (terms.log_p - terms.log_q)
        return -branches.sum(-1).mean(), terms.metrics(q)


class NVIL(Estimator):
    """Sample n; elbo_n is the pathwise part, Σ_t log q(z_pres_t) · stop_grad(signal_t) the score-function part.

    The learning signal of step t is R_t - b_t, where R_t is what elbo_n owes to step t and those after it, and b_t a
    learned baseline that has seen the image and the latents before step t; then centred by a running mean, divided by
    a running deviation (where that exceeds 1) and multiplied by `signal_scale`. The baseline and the running mean are
    known before z_pres_t is drawn, so they leave the mean gradient as it is; dividing and multiplying rescale the
    score-function part against the pathwise part. With those two off, the mean gradient is that of Enumerate.

    While exploration ε > 0, n is drawn from (1-ε) q(n) + ε/(N+1), which is what the pathwise part wants, and the
    score-function part carries the importance weight of q(n).

    Source: Mnih & Gregor (2014), section 2.3 and algorithm 1 (the running moments are those from before the batch, so
    that no signal is compared with itself); Eslami et al. (2016), section 2.3.
    """

    mean: Tensor
    variance: Tensor
    decay = 0.8  # of the running moments, Mnih & Gregor (2014), appendix

    def __init__(self, model: AIR, exploration: float = 0.0, centre: bool = True, normalise: bool = True,
                 signal_scale: float = 1.0) -> None:
        """Args: model: `use_baselines=False` in its constructor means no learned baseline."""
        super().__init__(model, exploration)
        self.baseline = model.make_baseline() if model.use_baselines else None
        self.centre, self.normalise, self.signal_scale = centre, normalise, signal_scale
        unseen = torch.full_like(self.exploration, float("nan"))  # until the first batch
        self.register_buffer("mean", unseen)
        self.register_buffer("variance", unseen.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Metrics]:
        """Images as `AIR.rollout` takes them -> loss (scalar, nats, ready for backward) and metrics.

        The loss holds the score-function term and the baseline's squared error: its value is not the ELBO,
        `metrics["elbo"]` is.
        """
        images = self.model.as_images(images)
        rollout = self.model.rollout(images)
        terms = elbo_terms(self.model, rollout)
        q = terms.log_q.detach().exp()  # (B, N+1)
        explored = self.explored(q)
        # The inverse of the cumulative distribution: unlike multinomial, it lets a nan through to the loss.
        count = (explored.cumsum(-1)[:, :-1] < torch.rand_like(q[:, :1])).sum(-1, keepdim=True)  # (B, 1)
        importance = (q / explored).gather(-1, count)  # (B, 1), 1 where ε = 0
        steps = torch.arange(self.model.num_steps, device=count.device)
        z_pres, reached = steps < count, steps <= count  # (B, N): step t is drawn where z_pres_{t-1} = 1
        weight = reached * importance  # (B, N)

        # ∇ -log q(n) has mean 0: it would add noise to the pathwise part, and a bias while n is not drawn from q.
        elbo = (terms.explained() + (terms.log_p - terms.log_q).detach()).gather(-1, count)  # (B, 1), elbo_n
        reward = elbo.detach() - self._decided(terms, rollout.logits)  # R_t, (B, N)
        signal, metrics, baseline_loss = self._learning_signal(reward, weight, images, rollout.history)
        log_q_steps = F.logsigmoid(torch.where(z_pres, rollout.logits, -rollout.logits))  # log q(z_pres_t)
        score = (weight * log_q_steps * signal).sum(-1)  # (B,)
        return baseline_loss - (elbo.squeeze(-1) + score).mean(), {**terms.metrics(q), **metrics}

    @staticmethod
    def _decided(terms: Terms, logits: Tensor) -> Tensor:
        """What elbo_n owes to the steps before t, for t = 1..N: (B, N). z_pres_t cannot change it."""
        log_p = terms.log_p.flip(-1).logcumsumexp(-1).flip(-1)  # log p(n >= m), m = 0..N
        before = log_p - log_at_least(logits) - sum(terms.kl_steps.values())
        return before[:, :-1].detach()  # Σ_{s<t}: log p_s - log q_s - KL_s

    def _learning_signal(self, reward: Tensor, weight: Tensor, images: Tensor, history: Tensor
                         ) -> tuple[Tensor, Metrics, Tensor]:
        """R_t, (B, N) -> the learning signal (B, N), its metrics, and the baseline's loss (masked squared error)."""
        residual = reward  # R_t - b_t
        if self.baseline is not None:
            residual = reward - self.baseline(images, history.detach())
        steps = weight.sum()
        batch_mean = (weight * residual.detach()).sum() / steps
        batch_variance = (weight * (residual.detach() - batch_mean).square()).sum() / steps
        mean = torch.where(self.mean.isnan(), batch_mean, self.mean)
        variance = torch.where(self.variance.isnan(), batch_variance, self.variance)
        if self.training:
            self.mean.copy_(mean.lerp(batch_mean, 1 - self.decay))
            self.variance.copy_(variance.lerp(batch_variance, 1 - self.decay))

        if self.centre:
            residual = residual - mean
        signal = self.signal_scale * residual.detach()
        if self.normalise:
            signal = signal / variance.sqrt().clamp(min=1)
        baseline_loss = residual.new_zeros(())
        if self.baseline is not None:
            baseline_loss = (weight * residual.square()).sum(-1).mean()
        metrics = {"signal_sd": batch_variance.sqrt(), "baseline_loss": baseline_loss.detach()}
        return signal, metrics, baseline_loss

    def parameter_groups(self, lr: float, baseline_lr: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(lr, baseline_lr)
        if self.baseline is not None:
            groups.append({"params": list(self.baseline.parameters()), "lr": baseline_lr})
        return groups


ESTIMATORS: dict[str, type[Estimator]] = {"nvil": NVIL, "enumerate": Enumerate}
