"""Enumerate: the count summed out exactly."""

import torch
from torch import Tensor

from air.inference.elbo import Metrics, Terms, log_mean_exp
from air.inference.estimator import Estimator
from air.models.base import CountingModel
from air.models.settings import power_exceeds

MAX_COMBINATIONS = 100_000  # of K counts


class Enumerate(Estimator):
    """The bound's mean over the counts, differentiated exactly: no score function, no baseline, no noise from n.

    For K = 1, with sg = stop_gradient, the loss is minus the batch mean of

        Σ_n weight(n) (log_joint_n - sg log q(n))  +  Σ_n (q(n) - sg q(n)) sg elbo_n

    The first sum trains the likelihood and the latents, by the weights of the branches: q(n), unless exploration
    or revival changes it. The second has the value 0 and trains q(n): its gradient is Σ_n ∇q(n) elbo_n, that
    of Σ_n q(n) elbo_n, since Σ_n q(n) ∇log q(n) = 0.

    With K particles, n becomes a combination (n_1, ..., n_K) and elbo_n the bound log 1/K Σ_k w_k(n_k): a sum over
    (N+1)^K combinations.
    """

    def __init__(self, model: CountingModel, exploration: float = 0.0, particles: int = 1, revive: float = 0.0
                 ) -> None:
        """Build around a model.

        Args:
            model, exploration, particles, revive: see `Estimator`.
        Raises:
            ValueError: a keyword fails the check that `EstimatorSettings` declares, or there are more than
                MAX_COMBINATIONS combinations of counts.
        """
        super().__init__(model, exploration, particles, revive)
        if power_exceeds(model.num_steps + 1, particles, MAX_COMBINATIONS):
            raise ValueError(f"enumerate sums over (N+1)^K = {model.num_steps + 1}^{particles} combinations of counts, "
                             f"at most {MAX_COMBINATIONS}: use fewer particles, or vimco")

    def forward(self, images: Tensor) -> tuple[Tensor, Metrics]:
        """Images as `CountingModel.rollout` takes them -> loss (scalar, nats, ready for backward) and metrics."""
        _, terms = self._rollout(self._images(images))
        bound = self._mean_bound(terms) if self.particles > 1 else self._mean_elbo(terms)
        return -bound.mean(), self._metrics(terms, bound)

    def _mean_elbo(self, terms: Terms) -> Tensor:
        """The equation in the class's docstring, for K = 1: (B,)."""
        explored, revived = self._branch_weights(terms)
        weight = explored.lerp(revived, self.revive)
        return (weight * terms.log_w + (terms.q - terms.q.detach()) * terms.log_w.detach()).sum(-1)

    def _mean_bound(self, terms: Terms) -> Tensor:
        """The bound's mean over the combinations of K counts, (B,).

        Below, a row of "combinations" has the shape (B, N+1, ..., N+1, K), with one axis per particle's count.
        """
        explored, revived = map(self._combinations, self._branch_weights(terms))
        log_w = self._combinations(terms.log_w)
        bound = log_mean_exp(log_w)  # (B, N+1, ..., N+1)

        # q(n) follows the bound among explored counts, whatever is revived. Of a product of K weights, the score of
        # particle k replaces its own, w_k: Π_j w_j (q_k - sg q_k) / w_k. For K = 1 that is q - sg q.
        q = self._combinations(terms.q) / explored.clamp(min=torch.finfo(explored.dtype).tiny)
        score = ((q - q.detach()) * self._reward(log_w, bound)).sum(-1)

        weight = explored.prod(-1)
        revived_weight = weight.lerp(revived.prod(-1), self.revive)
        return (revived_weight * bound + weight * score).flatten(1).sum(-1)

    def _combinations(self, per_count: Tensor) -> Tensor:
        """Values for each particle's count (B K, N+1) -> values for each combination (B, N+1, ..., N+1, K).

        Particle k's values vary along axis 1 + k and are repeated along the axes of the other particles.
        """
        shapes = [[per_count.shape[-1] if axis == k else 1 for axis in range(self.particles)]
                  for k in range(self.particles)]
        along = [per_count[k::self.particles].reshape(-1, *shape) for k, shape in enumerate(shapes)]
        return torch.stack(torch.broadcast_tensors(*along), -1)
