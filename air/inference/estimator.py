"""What gradient estimators for the count share; an estimator is a module with `forward(images) -> (loss, metrics)`.

A rollout gives elbo_n for every n = 0..N (air/inference/elbo.py). An estimator turns these into a loss whose gradient
is that of -Σ_n q(n) elbo_n or, with K > 1 particles, of minus the importance-weighted bound

    E log 1/K Σ_k w_k(n_k),   n_k ~ q(n | particle k),   log w_k(n) = elbo_n of particle k

The two agree for K = 1. The gradients of z_where and z_what are reparameterised in all estimators. Estimators differ in
the gradient of the counts' probabilities, Σ_k ∇q_k(n_k) / q_k(n_k) times a learning signal:

    signal_k = log 1/K Σ_j w_j - share_k - control variate,   share_k = w_k / Σ_j w_j (from ∇ -log q in log w_k)

Metrics are scalars, detached, in nats unless they are counts or shares:

    elbo, log_likelihood, kl_pres, kl_where, kl_what   averaged over batch and particles; n summed out by q(n).
                            kl_pres is KL(q(n) || p(n)), and with it what objects cost (`Rollout.price`)
    mean_count, share_n     mean of the count under q(n), and q(n) itself, averaged over batch and particles
    skipped                 share of images in which a window is skipped (`Terms.skipped`)
    bound                   the importance-weighted bound, for K > 1
    signal_sd               standard deviation of the learning signal (NVIL, VIMCO)
    baseline_loss           the baseline's squared error in nats² (NVIL)
    baseline_r2             share of the gains' variance that the baseline predicts; < 0: worse than a constant (NVIL)
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from air.inference.elbo import Metrics, Terms, elbo_terms, log_mean_exp
from air.inference.estimator_settings import EstimatorSettings, SampledCountSettings
from air.models.base import CountingModel, Rollout
from air.models.settings import checked_by


def exploration_weights(q: Tensor, exploration: Tensor) -> Tensor:
    """(1-ε) q(n) + ε / (N+1): the weight of branch n while exploring.

    Args:
        q: (B, N+1).
        exploration: ε in [0, 1], a scalar.
    Returns:
        (B, N+1), detached; each row sums to 1.
    """
    q = q.detach()
    return torch.addcmul(q, exploration, 1 / q.shape[-1] - q)


def revival_weights(terms: Terms, otherwise: Tensor, particles: int) -> Tensor:
    """All weight on the branch that ends with the first skipped window, in the images that have one.

    An image's particles are revived together, as soon as one of them skips a window: the bound's gradient goes to the
    best particle, so next to one that follows q(n) the revival of the others would have no effect.

    Args:
        terms: of B K rows.
        otherwise: (B K, N+1), the weights in all other images.
        particles: K.
    Returns:
        (B K, N+1); each row sums to 1.
    """
    skipped, skips = terms.skipped, terms.skips
    if particles > 1:
        skipped, skips = (repeat(reduce(each, "(b k) n -> b n", "any", k=particles), "b n -> (b k) n", k=particles)
                          for each in (skipped, skips))
    first = skipped.cumsum(-1).cumsum(-1) == 1  # (B K, N), only there are both sums 1
    return torch.where(skips, F.pad(first, (1, 0)), otherwise)


class Estimator(nn.Module):
    """A model and the way in which its count is learned.

    Exploration: a branch n that q(n) has abandoned gets no gradient and never recovers. While ε > 0, the likelihood and
    the KLs of branch n are weighted by (1-ε) q(n) + ε / (N+1) instead of q(n), so every branch keeps learning to
    explain the image. q(n) itself always follows the bound; with K > 1, the other particles' counts have these weights
    there as well. With ε and `revive` both 0, the whole gradient is the bound's, unless the model holds some back
    (`Guide.teaches`, `Rollout.price`).

    Revival: a skipped window paints nothing, and the next window does its work. No gradient changes that, because in
    every branch but its own, whatever it painted would be painted twice. So in such images the branch that ends with
    the first skipped window gets a share `revive` of the weight, whatever ε is, until the window pays.
    """

    exploration: Tensor

    @checked_by(EstimatorSettings)
    def __init__(self, model: CountingModel, exploration: float = 0.0, particles: int = 1, revive: float = 0.0
                 ) -> None:
        """Build around a model.

        Args:
            model: whose rollouts are read.
            exploration: ε, a buffer that the training loop decreases to 0.
            particles: K.
            revive: share of an image's weight for the branch of a skipped window, 0 <= revive < 1.
        Raises:
            ValueError: a keyword fails the check that `EstimatorSettings` declares.
        """
        super().__init__()
        self.model = model
        self.particles = particles
        self.revive = revive
        self.checked = False  # whether a batch has been
        self.register_buffer("exploration", model.count_prior.log_probs.new_tensor(exploration))

    def parameter_groups(self, lr: float, baseline_lr: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: the model's, and those of a baseline at a rate of their own."""
        return [{"params": list(self.model.parameters()), "lr": lr}]

    def _images(self, images: Tensor) -> Tensor:
        """Convert a batch as `CountingModel.as_images` does, and check it as `infer` does.

        Each check waits for a GPU, so there only the first batch is checked.

        Raises:
            ValueError: there is no image, or the images are such as `infer` refuses.
        """
        if not len(images):
            raise ValueError("expected at least one image: an empty batch has no loss")
        converted = self.model.as_images(images, intensities=not self.checked or self.exploration.device.type == "cpu")
        if not torch.compiler.is_compiling():
            self.checked = True
        return converted

    def _rollout(self, images: Tensor) -> tuple[Rollout, Terms]:
        """Roll out K particles per image, and collect their terms (B K rows).

        The KLs are closed forms for K = 1; an importance weight needs log q - log p at the draw.
        """
        rollout = self.model.rollout(images, particles=self.particles)
        return rollout, elbo_terms(self.model, rollout, sampled=self.particles > 1)

    def _branch_weights(self, terms: Terms) -> tuple[Tensor, Tensor]:
        """The weights of the branches n = 0..N, and those in a revival: (B K, N+1) each."""
        explored = exploration_weights(terms.q, self.exploration)
        return explored, revival_weights(terms, explored, self.particles)

    @staticmethod
    def _reward(log_w: Tensor, bound: Tensor) -> Tensor:
        """The learning signal without a control variate, (..., K).

        A constant 1/K is added, so that it is log w for K = 1.
        """
        if log_w.shape[-1] == 1:
            return log_w.detach()
        return (bound[..., None] - (log_w.softmax(-1) - 1 / log_w.shape[-1])).detach()

    def _metrics(self, terms: Terms, bound: Tensor) -> Metrics:
        metrics = terms.metrics()
        return metrics if self.particles == 1 else {**metrics, "bound": bound.detach().mean()}


class SampledCount(Estimator):
    """Base of the estimators that sample counts; subclasses choose the control variate.

    A rollout is expensive and a count is free. So M = `draws` counts are drawn per rollout, as if there had been M
    rollouts. Counts are drawn by the branches' weights, as the pathwise part of the gradient requires. Where these
    differ from q(n), importance weights correct the score-function part.
    """

    @checked_by(SampledCountSettings)
    def __init__(self, model: CountingModel, exploration: float = 0.0, particles: int = 1, revive: float = 0.0,
                 draws: int = 5) -> None:
        """Build around a model.

        Args:
            model, exploration, particles, revive: see `Estimator`.
            draws: M, counts drawn per rollout.
        Raises:
            ValueError: a keyword fails the check that `SampledCountSettings` declares.
        """
        super().__init__(model, exploration, particles, revive)
        self.draws = draws

    def _draw(self, terms: Terms) -> tuple[Tensor, Tensor]:
        """Draw M counts per particle: the counts, and their importance weights under q(n), (M, B K, 1) each.

        With ρ = `revive`, an image's K counts are drawn from the mixture (1-ρ) Π_k explored_k + ρ Π_k revived_k. The
        importance weight of particle k follows q instead of its factor, the other particles being drawn as explored:

            q_k(n_k) Π_{j≠k} explored_j(n_j) / mixture = q_k / explored_k / (1 + ρ (Π_j revived_j / explored_j - 1))
        """
        q, (explored, revived) = terms.q.detach(), self._branch_weights(terms)
        q, explored, revived = (each.expand(self.draws, -1, -1) for each in (q, explored, revived))
        revives = torch.rand_like(q[:, ::self.particles, :1]) < self.revive  # (M, B, 1)
        drawn_by = torch.where(repeat(revives, "m b 1 -> m (b k) 1", k=self.particles), revived, explored)
        # Inverse of the cumulative distribution: unlike multinomial, it lets a nan through to the loss.
        count = (drawn_by.cumsum(-1)[..., :-1] < torch.rand_like(q[..., :1])).sum(-1, keepdim=True)
        at_count = [each.gather(-1, count) for each in (q, explored.clamp(min=torch.finfo(q.dtype).tiny), revived)]
        q, explored, revived = (rearrange(each, "m (b k) 1 -> m b k", k=self.particles) for each in at_count)
        mixture = 1 + self.revive * ((revived / explored).prod(-1, keepdim=True) - 1)
        return count, rearrange(q / explored / mixture, "m b k -> m (b k) 1")

    def _bound(self, terms: Terms, count: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k (M, B, K) and the bound (M, B) at the drawn counts, with their pathwise gradients.

        The gradient of -log q(n), which `Terms.log_w` leaves out, is part of the learning signal. Here it would add
        noise, and bias where n is not drawn from q.
        """
        log_w = terms.log_w.expand(self.draws, -1, -1).gather(-1, count)  # (M, B K, 1)
        log_w = rearrange(log_w, "m (b k) 1 -> m b k", k=self.particles)
        return log_w, log_mean_exp(log_w)
