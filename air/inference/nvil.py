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
        terms, logits = terms.repeat(self.draws), rollout.logits.repeat(self.draws, 1)
        count, importance = self._draw(terms)  # (B K, 1) each
        log_w, bound = self._bound(terms, count)
        steps = torch.arange(self.model.num_steps, device=count.device)
        z_pres, reached = steps < count, steps <= count  # (B K, N): step t is drawn where z_pres_{t-1} = 1
        weight = reached * importance  # (B K, N)

        gain = self._gain(terms, log_w, bound)  # R_t, (B K, N)
        predicted_gain, baseline = self._predict_gain(gain, weight * z_pres, images, rollout.history)
        # R_t - b_t, b_t = (1 - q_t) g_t
        signal, signal_sd = self._learning_signal(gain - (-logits.detach()).sigmoid() * predicted_gain, weight)
        log_q_steps = F.logsigmoid(torch.where(z_pres, logits, -logits))  # log q(z_pres_t)
        score = (weight * log_q_steps * signal).sum() / len(bound)
        metrics = {**self._metrics(terms, bound), "signal_sd": signal_sd,
                   **{name: value.detach() for name, value in baseline.items()}}
        return baseline["baseline_loss"] - bound.mean() - score, metrics

    def _gain(self, terms: Terms, log_w: Tensor, bound: Tensor) -> Tensor:
        """R_t: what the bound gains because particle k continued at step t, t = 1..N; (B K, N)."""
        stop = rearrange(terms.elbo()[:, :-1].detach(), "(b k) n -> b k n", k=self.particles)  # log w_k(t - 1)
        gain = self._reward(log_w, bound)[..., None] - bound_with(log_w.detach(), stop)
        return rearrange(gain, "b k n -> (b k) n")

    def _predict_gain(self, gain: Tensor, weight: Tensor, images: Tensor, history: Tensor) -> tuple[Tensor, Metrics]:
        """Let the baseline predict the gain of continuing.

        Args:
            gain: R_t, (B K, N).
            weight: (B K, N), importance weight where the chain continued, else 0.
            images: (B, C, H, W).
            history: (B K, N, L), as in `Rollout`.
        Returns:
            g_t, (B K, N); and the baseline's mean squared error where the chain continued ("baseline_loss"), with the
            share of the gain's variance that it predicts there ("baseline_r2").
        """
        if self.baseline is None:
            return torch.zeros_like(gain), {"baseline_loss": gain.new_zeros(())}
        predicted_gain = self.baseline(images, history.detach()).repeat(self.draws, 1)
        error = (weight * (gain - predicted_gain).square()).sum()
        mean = (weight * gain).sum() / weight.sum().clamp(min=1)
        variance = (weight * (gain - mean).square()).sum()
        return predicted_gain.detach(), {"baseline_loss": error * self.particles / len(gain),
                                         "baseline_r2": 1 - error / variance.clamp(min=1)}

    def _learning_signal(self, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """R_t - b_t (B K, N) -> the learning signal (B K, N), and its standard deviation before any rescaling."""
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
