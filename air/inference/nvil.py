"""NVIL: a score-function estimator with a learned baseline."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from air.inference.elbo import Metrics, Terms, bound_with
from air.inference.estimator import SampledCount
from air.inference.estimator_settings import NVILSettings
from air.models.base import CountingModel
from air.models.networks import History
from air.models.settings import checked_by


class NVIL(SampledCount):
    """Sample n; the pathwise part is elbo_n, the score-function part Σ_t log q(z_pres_t) · stop_gradient(signal_t).

    The learning signal of step t is R_t - b_t. R_t = elbo_n - elbo_{t-1} is what continuing from t - 1 objects gains, 0
    where the chain stopped there. b_t = (1 - q_t) g_t, where the learned baseline g_t has seen the image and the
    latents before step t and predicts R_t of the chains that continued: with a perfect g_t, both outcomes of z_pres_t
    give the same gradient. elbo_{t-1} and the baseline are known before z_pres_t is drawn, so the mean gradient remains
    that of Enumerate.

    Optionally the signal is centred by a running mean, which does not change the mean gradient either, divided by a
    running standard deviation (if that exceeds 1) and multiplied by `signal_scale`; the last two rescale the
    score-function part relative to the pathwise part.

    With K particles, R_t is the bound minus the bound with this particle's count replaced by t - 1.

    Source: Mnih & Gregor (2014), section 2.3 and algorithm 1 (except that the running moments are those before the
    batch, so that no signal is compared with itself); Eslami et al. (2016), section 2.3.
    """

    mean: Tensor
    variance: Tensor
    decay = 0.8  # of the running moments, Mnih & Gregor (2014), appendix

    @checked_by(NVILSettings)
    def __init__(self, model: CountingModel, exploration: float = 0.0, particles: int = 1, revive: float = 0.0,
                 draws: int = 5, centre: bool = False, normalise: bool = False, signal_scale: float = 1.0) -> None:
        """Build around a model.

        Args:
            model: no baseline is learned if it was built with `use_baselines=False`.
            exploration, particles, revive, draws: see `SampledCount`.
            centre: subtract a running mean from the signal, as Mnih & Gregor do.
            normalise: divide the signal by a running standard deviation, as Mnih & Gregor do.
            signal_scale: multiplies the signal.
        Raises:
            ValueError: a keyword fails the check that `NVILSettings` declares.
        """
        super().__init__(model, exploration, particles, revive, draws)
        self.baseline = model.make_baseline() if model.use_baselines else None
        self.centre, self.normalise, self.signal_scale = centre, normalise, signal_scale
        unseen = torch.full_like(self.exploration, float("nan"))  # until the first batch
        self.register_buffer("mean", unseen)
        self.register_buffer("variance", unseen.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Metrics]:
        """Images as `CountingModel.rollout` takes them -> loss (scalar, nats, ready for backward) and metrics.

        The loss contains the score-function term and the baseline's squared error, so its value is not the ELBO;
        `metrics["elbo"]` is.
        """
        images = self._images(images)
        rollout, terms = self._rollout(images)
        count, importance = self._draw(terms)  # (M, B K, 1) each
        log_w, bound = self._bound(terms, count)
        steps = torch.arange(self.model.num_steps, device=count.device)
        z_pres, reached = steps < count, steps <= count  # (M, B K, N): step t is drawn where z_pres_{t-1} = 1
        weight, continued = importance * reached, importance * z_pres  # (M, B K, N)

        gain = self._gain(terms, log_w, bound)  # R_t, (M, B K, N)
        predicted_gain = self._predicted_gain(images, rollout.history)  # g_t, (B K, N)
        # R_t - b_t, b_t = (1 - q_t) g_t
        residual = torch.addcmul(gain, (-rollout.logits.detach()).sigmoid(), predicted_gain.detach(), value=-1)
        mean, deviation, total = _moments(torch.stack((gain, residual)), torch.stack((continued, weight)))
        variance = deviation / total
        signal = self._learning_signal(residual, mean[1], variance[1])
        # -Σ_t log q(z_pres_t) signal_t
        score = F.binary_cross_entropy_with_logits(rollout.logits.expand_as(gain), z_pres.to(gain), weight * signal,
                                                   reduction="sum")
        metrics = {**self._metrics(terms, bound), "signal_sd": variance[1].sqrt()}
        if self.baseline is None:
            return (score - bound.sum()) / bound.numel(), metrics
        error = (continued * (gain - predicted_gain).square()).sum()
        r2 = 1 - error.detach() / deviation[0].clamp(min=1)
        return (score + error - bound.sum()) / bound.numel(), {
            **metrics, "baseline_loss": error.detach() / bound.numel(), "baseline_r2": r2}

    def _gain(self, terms: Terms, log_w: Tensor, bound: Tensor) -> Tensor:
        """R_t: what the bound gains because particle k continued at step t, t = 1..N; (M, B K, N)."""
        stop = rearrange(terms.log_w[:, :-1].detach(), "(b k) n -> b k n", k=self.particles)  # log w_k(t - 1)
        gain = self._reward(log_w, bound)[..., None] - bound_with(log_w.detach(), stop)
        return rearrange(gain, "m b k n -> m (b k) n")

    def _predicted_gain(self, images: Tensor, history: History) -> Tensor:
        """g_t, what the baseline expects a chain to gain if it continues at step t: (B K, N); 0 without a baseline.

        Args:
            images: (B, C, H, W).
            history: as in `Rollout`.
        """
        if self.baseline is None:
            return images.new_zeros(())
        return self.baseline(images, [[each.detach() for each in step] for step in history], self.particles)

    def _learning_signal(self, residual: Tensor, batch_mean: Tensor, batch_variance: Tensor) -> Tensor:
        """R_t - b_t and its moments in the batch -> the learning signal, centred, normalised and scaled as set."""
        scaled = residual if self.signal_scale == 1 else self.signal_scale * residual
        if not (self.centre or self.normalise):
            return scaled
        mean = torch.where(self.mean.isnan(), batch_mean, self.mean)
        variance = torch.where(self.variance.isnan(), batch_variance, self.variance)
        if self.training:
            self.mean.copy_(mean.lerp(batch_mean, 1 - self.decay))
            self.variance.copy_(variance.lerp(batch_variance, 1 - self.decay))
        signal = self.signal_scale * (residual - mean) if self.centre else scaled
        return signal / variance.sqrt().clamp(min=1) if self.normalise else signal

    def parameter_groups(self, lr: float, baseline_lr: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(lr, baseline_lr)
        if self.baseline is not None:
            groups.append({"params": list(self.baseline.parameters()), "lr": baseline_lr})
        return groups


def _moments(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted moments over all but the first dimension.

    Args:
        values: (V, ...).
        weight: (V, ...), not negative.
    Returns:
        The mean, the sum of weighted squared deviations from it, and the sum of weights, (V,) each.
    """
    values, weight = values.flatten(1), weight.flatten(1)
    total = weight.sum(1).clamp(min=torch.finfo(weight.dtype).tiny)
    mean = (weight * values).sum(1) / total
    return mean, (weight * (values - mean[:, None]).square()).sum(1), total
