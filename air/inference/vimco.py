"""VIMCO: a score-function estimator whose particles are one another's control variates."""

from einops import rearrange
from torch import Tensor

from air.inference.elbo import Metrics, bound_with
from air.inference.estimator import SampledCount
from air.inference.estimator_settings import VIMCOSettings
from air.models.base import CountingModel
from air.models.settings import checked_by


class VIMCO(SampledCount):
    """K particles serve as one another's control variates: there is no baseline to learn.

    Particle k's signal is what it adds to the bound: log 1/K Σ_j w_j minus the same with w_k replaced by the geometric
    mean over the others of Σ_n q(n) w_j(n). The source takes the geometric mean of the drawn w_j(n_j). Summing the
    others' counts out costs nothing here, and keeps the noise of their draws out of k's signal.

    Source: Mnih & Rezende (2016), eq. 8-10.
    """

    @checked_by(VIMCOSettings)
    def __init__(self, model: CountingModel, exploration: float = 0.0, particles: int = 3, revive: float = 0.0,
                 draws: int = 5) -> None:
        """Build around a model.

        Args:
            model, exploration, revive, draws: see `SampledCount`.
            particles: K, at least 2.
        Raises:
            ValueError: a keyword fails the check that `VIMCOSettings` declares.
        """
        super().__init__(model, exploration, particles, revive, draws)

    def forward(self, images: Tensor) -> tuple[Tensor, Metrics]:
        """Images as `CountingModel.rollout` takes them -> loss (scalar, nats, ready for backward) and metrics.

        The loss contains the score-function term, so its value is not the bound; `metrics["bound"]` is.
        """
        terms = self._rollout(self._images(images))[1]
        count, importance = self._draw(terms)  # (M, B K, 1) each
        log_w, bound = self._bound(terms, count)  # (M, B, K), (M, B)
        summed_out = terms.log_joint.detach().logsumexp(-1)  # log Σ_n q(n) w_k(n), (B K,)
        summed_out = rearrange(summed_out, "(b k) -> b k", k=self.particles)
        others = (summed_out.sum(-1, keepdim=True) - summed_out) / (self.particles - 1)  # log of their geometric mean
        signal = self._reward(log_w, bound) - bound_with(log_w.detach(), others[..., None]).squeeze(-1)  # (M, B, K)
        log_q = terms.log_q.expand(self.draws, -1, -1).gather(-1, count)  # (M, B K, 1)
        score = rearrange(importance * log_q, "m (b k) 1 -> m b k", k=self.particles) * signal
        return -(bound + score.sum(-1)).mean(), {**self._metrics(terms, bound), "signal_sd": signal.std()}
