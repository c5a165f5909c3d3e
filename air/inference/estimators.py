"""Gradient estimators for the count: modules around a model, `forward(images) -> (loss, metrics)`.

A rollout gives elbo_n for every n = 0..N (`air/inference/elbo.py`), and an estimator says how they become a loss
whose gradient is that of Σ_n q(n) elbo_n or, with K > 1 particles, of the importance-weighted bound

    E log 1/K Σ_k w_k(n_k),   n_k ~ q(n | particle k),   log w_k(n) = elbo_n of particle k

which is the same thing for K = 1. The latents' own gradients are reparameterised throughout. What an estimator has to
find is the gradient of the counts' probabilities, Σ_k ∇q_k(n_k) / q_k(n_k) times a learning signal:

    signal_k = log 1/K Σ_j w_j - share_k - control variate,   share_k = w_k / Σ_j w_j (from ∇ -log q in log w_k)

Metrics are scalars, detached, in nats where they are not counts: `elbo, log_likelihood, kl_pres, kl_where, kl_what`
are the ELBO and its terms averaged over the batch and the particles, n summed out by q(n) whatever the estimator,
`mean_count` the average count, `share_n` how often it is n, `passed_over` the share of images in which a window is
passed over and, for K > 1, `bound` the importance-weighted bound. NVIL adds the learning signal's deviation,
`signal_sd`, `baseline_loss` (nats²) and `baseline_r2`, the share of the gains' variance that the baseline explains,
below 0 where it is worse than a constant; VIMCO adds `signal_sd`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from air.inference.elbo import Metrics, Terms, bound_with, elbo_terms
from air.models.base import CountingModel, Rollout

MAX_COMBINATIONS = 100_000  # of K counts, that Enumerate sums over


class Estimator(nn.Module):
    """A model and the way its count is learned.

    `exploration` ε weights the branches' likelihoods and KLs by (1-ε) q(n) + ε / (N+1) in place of q(n). A branch that
    q(n) has left gets no gradient and never comes back; while ε > 0 every branch goes on learning to explain the image.
    q(n) itself follows the bound throughout, and with ε = 0 all of the gradient is the bound's.

    `rescue` is for a window that is passed over: it paints nothing, and the next one does its work. Nothing moves it,
    since what it painted would be painted twice, in every branch but its own. So in an image where that happens
    (`Terms.passed_over`) the first such window is trained as the last one: its branch gets a share `rescue` of the
    weight, whatever ε is, until it pays. An image's particles are rescued together: the bound's gradient goes to the
    best of them, so beside one that keeps to q(n) the others' rescue would count for nothing.
    """

    exploration: Tensor

    def __init__(self, model: CountingModel, exploration: float = 0.0, particles: int = 1, rescue: float = 0.0) -> None:
        """Build around a model.

        Args:
            exploration: ε, a buffer that a training loop lets fall to 0.
            particles: K.
            rescue: of an image's weight, to the branch of a window that is passed over; less than 1.
        Raises:
            ValueError: there is no particle, or the rescue would leave nothing to q(n).
        """
        super().__init__()
        if particles < 1:
            raise ValueError(f"an estimator needs at least one particle, got {particles}")
        if not 0 <= rescue < 1:
            raise ValueError(f"rescue must satisfy 0 <= rescue < 1, got {rescue}")
        self.model = model
        self.particles = particles
        self.rescue = rescue
        self.register_buffer("exploration", model.count_prior.log_probs.new_tensor(exploration))

    def parameter_groups(self, lr: float, baseline_lr: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: the model's parameters, and those of the baseline, if any, at their own rate."""
        return [{"params": list(self.model.parameters()), "lr": lr}]

    def branch_weights(self, terms: Terms) -> tuple[Tensor, Tensor]:
        """What the branches n = 0..N count for, (B K, N+1) each: as a rule, q(n) where nothing is explored; and in the
        share `rescue` of cases, in which a window that is passed over by a particle of the image is the last one.
        """
        q = terms.log_q.detach().exp()
        weights = q.lerp(torch.full_like(q, 1 / q.shape[-1]), self.exploration)
        passed_over = terms.passed_over().unflatten(0, (-1, self.particles)).any(1, keepdim=True)
        passed_over = passed_over.expand(-1, self.particles, -1).flatten(0, 1)  # (B K, N)
        first = passed_over.int().argmax(-1, keepdim=True) + 1  # such window's branch
        own = (torch.arange(q.shape[-1], device=q.device) == first).to(q.dtype)
        return weights, torch.where(passed_over.any(-1, keepdim=True), own, weights)

    def _rollout(self, images: Tensor) -> tuple[Rollout, Terms]:
        """K particles an image, and their terms: the KLs in closed form where the bound allows, for K = 1."""
        rollout = self.model.rollout(images, particles=self.particles)
        return rollout, elbo_terms(self.model, rollout, sampled=self.particles > 1)

    @staticmethod
    def _reward(log_w: Tensor, bound: Tensor) -> Tensor:
        """The learning signal without a control variate, (..., K), but for a constant that makes it log w for K = 1."""
        return (bound[..., None] - (log_w.softmax(-1) - 1 / log_w.shape[-1])).detach()

    def _metrics(self, terms: Terms, bound: Tensor) -> Metrics:
        metrics = terms.metrics(terms.log_q.detach().exp())
        return metrics if self.particles == 1 else {**metrics, "bound": bound.detach().mean()}


class Enumerate(Estimator):
    """The bound's mean over the counts, differentiated as it stands: exact in n, no score function, no baseline.

    With K particles that is a sum over the (N+1)^K combinations of their counts.
    """

    def __init__(self, model: CountingModel, exploration: float = 0.0, particles: int = 1, rescue: float = 0.0
                 ) -> None:
        """Raises ValueError: the combinations are more than MAX_COMBINATIONS."""
        super().__init__(model, exploration, particles, rescue)
        combinations = (model.num_steps + 1)**particles
        if combinations > MAX_COMBINATIONS:
            raise ValueError(f"enumerate sums over (N+1)^K = {model.num_steps + 1}^{particles} = {combinations} "
                             f"combinations of counts, at most {MAX_COMBINATIONS}: use fewer particles, or vimco")

    def forward(self, images: Tensor) -> tuple[Tensor, Metrics]:
        """Images as `CountingModel.rollout` takes them -> loss (scalar, nats, ready for backward) and metrics."""
        _, terms = self._rollout(images)
        weights, rescued = map(self._combinations, self.branch_weights(terms))  # (B, N+1, ..., N+1, K) each
        log_w = self._combinations(terms.explained + terms.log_p - terms.log_q.detach())
        bound = log_w.logsumexp(-1) - math.log(self.particles)
        # ∇q_k beside the other particles' weights, 0 but for its gradient: q(n) follows the bound, whatever is rescued.
        q = self._combinations(terms.log_q.exp()) / weights.clamp(min=torch.finfo(weights.dtype).tiny)
        score = ((q - q.detach()) * self._reward(log_w, bound)).sum(-1)
        as_a_rule = weights.prod(-1)
        drawn = as_a_rule.lerp(rescued.prod(-1), self.rescue)
        mean_bound = (drawn * bound + as_a_rule * score).flatten(1).sum(-1)  # (B,)
        return -mean_bound.mean(), self._metrics(terms, mean_bound)

    def _combinations(self, per_count: Tensor) -> Tensor:
        """(B K, N+1) -> (B, N+1, ..., N+1, K): each particle's along an axis of its own, repeated along the others'."""
        shapes = [[per_count.shape[-1] if axis == k else 1 for axis in range(self.particles)]
                  for k in range(self.particles)]
        return torch.stack(torch.broadcast_tensors(*(per_count[k::self.particles].reshape(-1, *shape)
                                                     for k, shape in enumerate(shapes))), -1)


class SampledCount(Estimator):
    """Draws each particle's count; what its probability's gradient is multiplied by is for the heirs to say.

    A rollout costs much and a count nothing: M = `draws` counts are drawn from each, as if it had been rolled out M
    times (M B in place of B below). While exploring, n is drawn by the branches' weights, which is what the pathwise
    part wants, and the score-function part carries the importance weight of q(n).
    """

    def __init__(self, model: CountingModel, exploration: float = 0.0, particles: int = 1, rescue: float = 0.0,
                 draws: int = 5) -> None:
        """Raises ValueError: nothing would be drawn."""
        super().__init__(model, exploration, particles, rescue)
        if draws < 1:
            raise ValueError(f"at least one count must be drawn from a rollout, got {draws}")
        self.draws = draws

    def _draw(self, terms: Terms) -> tuple[Tensor, Tensor]:
        """The counts drawn, and the importance weights of q(n), 1 where nothing is explored: (B K, 1) each."""
        q, (weights, rescued) = terms.log_q.detach().exp(), self.branch_weights(terms)
        rescuing = (torch.rand_like(q[::self.particles, :1]) < self.rescue).repeat_interleave(self.particles, 0)
        drawn_by = torch.where(rescuing, rescued, weights)
        # The inverse of the cumulative distribution: unlike multinomial, it lets a nan through to the loss.
        count = (drawn_by.cumsum(-1)[:, :-1] < torch.rand_like(q[:, :1])).sum(-1, keepdim=True)
        weights = weights.clamp(min=torch.finfo(q.dtype).tiny)
        ratio = (rescued / weights).gather(-1, count).view(-1, self.particles).prod(-1)  # (B,)
        together = (1 + self.rescue * (ratio - 1)).repeat_interleave(self.particles)[:, None]
        return count, (q / weights).gather(-1, count) / together

    def _bound(self, terms: Terms, count: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k and the bound at the drawn counts, (B, K) and (B,), with the pathwise gradients.

        That of -log q(n) is left to the learning signal: it would add noise, and a bias while n is not drawn from q.
        """
        log_w = terms.explained + (terms.log_p - terms.log_q).detach()  # (B K, N+1)
        log_w = log_w.gather(-1, count).view(-1, self.particles)
        return log_w, log_w.logsumexp(-1) - math.log(self.particles)


class NVIL(SampledCount):
    """Sample n; elbo_n is the pathwise part, Σ_t log q(z_pres_t) · stop_grad(signal_t) the score-function part.

    The learning signal of step t is R_t - b_t: R_t = elbo_n - elbo_{t-1} is what going on from t - 1 objects gains, 0
    where the chain stopped there. b_t = (1 - q_t) g_t, where the learned baseline g_t has seen the image and the
    latents before step t, and learns R_t of the chains that went on: with a perfect one both outcomes of z_pres_t give
    the same gradient. Where asked for, the signal is then centred by a running mean, divided by a running deviation
    (where that exceeds 1) and multiplied by `signal_scale`. elbo_{t-1}, the baseline and the running mean are known
    before z_pres_t is drawn, so they leave the mean gradient, that of Enumerate, as it is; dividing and multiplying
    rescale the score-function part against the pathwise part.

    With K particles, R_t is the bound less the bound with this particle's count replaced by t - 1.

    Source: Mnih & Gregor (2014), section 2.3 and algorithm 1 (the running moments are those from before the batch, so
    that no signal is compared with itself); Eslami et al. (2016), section 2.3.
    """

    mean: Tensor
    variance: Tensor
    decay = 0.8  # of the running moments, Mnih & Gregor (2014), appendix

    def __init__(self, model: CountingModel, exploration: float = 0.0, particles: int = 1, rescue: float = 0.0,
                 draws: int = 5, centre: bool = False, normalise: bool = False, signal_scale: float = 1.0) -> None:
        """Args:
            model: `use_baselines=False` in its constructor means no learned baseline.
            centre, normalise, signal_scale: what else is done to the signal, as Mnih & Gregor do. By default nothing:
                in the mean, the gradient is that of Enumerate.
        """
        super().__init__(model, exploration, particles, rescue, draws)
        self.baseline = model.make_baseline() if model.use_baselines else None
        self.centre, self.normalise, self.signal_scale = centre, normalise, signal_scale
        unseen = torch.full_like(self.exploration, float("nan"))  # until the first batch
        self.register_buffer("mean", unseen)
        self.register_buffer("variance", unseen.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Metrics]:
        """Images as `CountingModel.rollout` takes them -> loss (scalar, nats, ready for backward) and metrics.

        The loss holds the score-function term and the baseline's squared error: its value is not the ELBO,
        `metrics["elbo"]` is.
        """
        images = self.model.as_images(images)
        rollout, terms = self._rollout(images)
        terms, logits = terms.repeat(self.draws), rollout.logits.repeat(self.draws, 1)
        count, importance = self._draw(terms)  # (B K, 1) each
        log_w, bound = self._bound(terms, count)
        steps = torch.arange(self.model.num_steps, device=count.device)
        z_pres, reached = steps < count, steps <= count  # (B K, N): step t is drawn where z_pres_{t-1} = 1
        weight = reached * importance  # (B K, N)

        gain = self._gain(terms, log_w, bound)  # R_t, (B K, N)
        foreseen, baseline = self._foresee(gain, weight * z_pres, images, rollout.history)
        signal, signal_sd = self._learning_signal(gain - (-logits.detach()).sigmoid() * foreseen, weight)
        log_q_steps = F.logsigmoid(torch.where(z_pres, logits, -logits))  # log q(z_pres_t)
        score = (weight * log_q_steps * signal).sum() / len(bound)
        metrics = {**self._metrics(terms, bound), "signal_sd": signal_sd,
                   **{name: value.detach() for name, value in baseline.items()}}
        return baseline["baseline_loss"] - bound.mean() - score, metrics

    def _gain(self, terms: Terms, log_w: Tensor, bound: Tensor) -> Tensor:
        """What the bound gains by particle k's going on from step t, whatever it drew there: (B K, N), t = 1..N."""
        stop = terms.elbo()[:, :-1].detach()  # log w_k(t - 1)
        stop = bound_with(log_w.detach(), stop.view(*log_w.shape, -1))  # (B, K, N)
        return (self._reward(log_w, bound)[..., None] - stop).flatten(0, 1)

    def _foresee(self, gain: Tensor, weight: Tensor, images: Tensor, history: Tensor) -> tuple[Tensor, Metrics]:
        """The gain of going on that the baseline foresees, (B K, N), its mean squared error where going on was drawn,
        and the share of the gain's variance there that it explains.
        """
        if self.baseline is None:
            return torch.zeros_like(gain), {"baseline_loss": gain.new_zeros(())}
        foreseen = self.baseline(images, history.detach()).repeat(self.draws, 1)
        error = (weight * (gain - foreseen).square()).sum()
        mean = (weight * gain).sum() / weight.sum().clamp(min=1)
        variance = (weight * (gain - mean).square()).sum()
        return foreseen.detach(), {"baseline_loss": error * self.particles / len(gain),
                                   "baseline_r2": 1 - error / variance.clamp(min=1)}

    def _learning_signal(self, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """R_t - b_t, (B K, N) -> the learning signal (B K, N), and the deviation it had before it was rescaled."""
        steps = weight.sum()
        batch_mean = (weight * residual).sum() / steps
        batch_variance = (weight * (residual - batch_mean).square()).sum() / steps
        mean = torch.where(self.mean.isnan(), batch_mean, self.mean)
        variance = torch.where(self.variance.isnan(), batch_variance, self.variance)
        if self.training:
            self.mean.copy_(mean.lerp(batch_mean, 1 - self.decay))
            self.variance.copy_(variance.lerp(batch_variance, 1 - self.decay))

        signal = self.signal_scale * (residual - mean if self.centre else residual)
        if self.normalise:
            signal = signal / variance.sqrt().clamp(min=1)
        return signal, batch_variance.sqrt()

    def parameter_groups(self, lr: float, baseline_lr: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(lr, baseline_lr)
        if self.baseline is not None:
            groups.append({"params": list(self.baseline.parameters()), "lr": baseline_lr})
        return groups


class VIMCO(SampledCount):
    """K particles that serve as one another's control variate: no baseline to learn.

    Particle k's signal is what it adds to the bound: log 1/K Σ_j w_j less the same with w_k replaced by the geometric
    mean over the others of Σ_n q(n) w_j(n). In the source it is that of w_j(n_j): with the others' counts summed out,
    which costs nothing here, what they happened to draw is no part of k's signal.

    Source: Mnih & Rezende (2016), eq. 8-10.
    """

    def __init__(self, model: CountingModel, exploration: float = 0.0, particles: int = 3, rescue: float = 0.0,
                 draws: int = 5) -> None:
        """Raises ValueError: there is no other particle to compare with."""
        if particles < 2:
            raise ValueError(f"vimco compares particles with one another: it needs at least 2, got {particles}")
        super().__init__(model, exploration, particles, rescue, draws)

    def forward(self, images: Tensor) -> tuple[Tensor, Metrics]:
        """Images as `CountingModel.rollout` takes them -> loss (scalar, nats, ready for backward) and metrics.

        The loss holds the score-function term: its value is not the bound, `metrics["bound"]` is.
        """
        terms = self._rollout(images)[1].repeat(self.draws)
        count, importance = self._draw(terms)  # (B K, 1) each
        log_w, bound = self._bound(terms, count)  # (B, K), (B,)
        summed_out = (terms.elbo() + terms.log_q).detach().logsumexp(-1).view_as(log_w)  # log Σ_n q(n) w_k(n)
        others = (summed_out.sum(-1, keepdim=True) - summed_out) / (self.particles - 1)  # log of their geometric mean
        signal = self._reward(log_w, bound) - bound_with(log_w.detach(), others)  # (B, K)
        log_q = terms.log_q.gather(-1, count)  # (B K, 1)
        score = (importance * log_q).view_as(signal) * signal  # (B, K)
        return -(bound + score.sum(-1)).mean(), {**self._metrics(terms, bound), "signal_sd": signal.std()}


ESTIMATORS: dict[str, type[Estimator]] = {"nvil": NVIL, "enumerate": Enumerate, "vimco": VIMCO}
