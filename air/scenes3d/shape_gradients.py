"""Gradient estimators for the discrete shapes of a 3D scene.

The guide draws a shape what_t ~ q_t for each object, independently given the poses. Rendering is differentiable in the
poses but not in the shapes. Each estimator returns an unbiased estimate, for n = 0..N, of

    E_{what ~ q} log p(x | z_{1:n})      (nats)

The value of "local" and "nvil" is log p(x | z_{1:n}) for the shapes drawn; terms of value zero, `f - f.detach()`, give
it the gradients in the parameters of q (the shapes' gradient) and in the poses. All estimators have the same expected
gradient. They differ in variance and cost, here the number of scenes composed per image:

    local       N S      exact over each object's shape, with the other objects' shapes as drawn
    nvil        1        score function; the likelihood of the objects before this one is the control variate
    enumerate   S^N      exact sum over all combinations of shapes

Exploration. An object of the wrong shape explains the image worse than an empty table does. If poses learned only from
the shapes that q draws, a shape that is not yet in place would be moved to where it does the least harm. While ε > 0
(`exploration`, 1 at the start of training, 0 from `annealed` on):

    poses learn from shapes drawn from (1-ε) q_t + ε/S, instead of q_t
    the shapes' gradient is scaled by 1-ε, so that places are learned before shapes
    the value is that of q throughout: the bound does not depend on ε

Shape letters: B images, N steps, S shapes, P pixels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from air.models.distributions import CategoricalLatent
from air.models.layers import scale_gradient
from air.models.settings import power_exceeds
from air.scenes3d.composition import Layers
from air.scenes3d.shapes import SHAPES

MAX_COMBINATIONS = 27  # of shapes that "enumerate" renders: memory and time grow with S^N


class Likelihood(Protocol):
    """How well the first n = 0..N objects explain images, in nats."""

    def log_likelihood(self, images: Tensor, objects: Layers) -> Tensor:
        """Images (..., 3, H, W) and objects (..., N, P) -> log p(x | z_{1:n}) for n = 0..N, (..., N+1)."""

    def log_likelihoods_replacing_one(self, images: Tensor, drawn: Layers, candidates: Layers) -> Sequence[Tensor]:
        """Images (B, 3, H, W), objects (B, N, P) and what may replace them (B, N, S, P) -> log p(x | z_{1:n}) with
        shape s in place of object t, (B, n, S) for n = 1..N.
        """


class ShapeSample(NamedTuple):
    """A guide's objects, with their shapes and without a choice of shape."""

    what: CategoricalLatent  # (B, N), the shapes drawn, and their q (B, N, S)
    drawn: Layers  # (B, N, P), each object as the shape that was drawn
    candidates: Layers  # (B, N, S, P), each object as every shape


def draw_shapes(q: Tensor) -> Tensor:
    """Draw from categorical distributions q (..., S): (...,) int64.

    By the inverse of the cumulative distribution: unlike multinomial, it lets a nan through to the loss.
    """
    return (q.cumsum(-1)[..., :-1] < torch.rand_like(q[..., :1])).sum(-1)


def local_expectations(likelihood: Likelihood, images: Tensor, sample: ShapeSample, exploration: Tensor) -> Tensor:
    """Sum over each object's shapes exactly, with the other objects' shapes as drawn.

    Args:
        likelihood: of images given objects.
        images: (B, 3, H, W), intensities.
        sample: the guide's objects.
        exploration: ε in [0, 1].
    Returns:
        (B, N+1), log p(x | z_{1:n}) in nats.
    Source: Titsias & Lázaro-Gredilla (2015), *Local Expectation Gradients for Black Box Variational Inference*.
    """
    # ∇ = Σ_{t<=n} Σ_s ∇q_t(s) log p(x | s instead of what_t, the other shapes as drawn)
    what, q = sample.what.value, scale_gradient(sample.what.log_q.exp(), 1 - exploration)
    steps = what.shape[1]
    replaced = likelihood.log_likelihoods_replacing_one(images, sample.drawn.detach(), sample.candidates.detach())
    per_shape = torch.stack([F.pad(each, (0, 0, 0, steps - each.shape[1])) for each in replaced], 1)  # (B, n, t, S)
    expectation = (q[:, None] * per_shape).sum((-2, -1))  # (B, N), for n = 1..N
    explored = _explored_log_likelihood(likelihood, images, sample, exploration)
    gradient = explored + F.pad(expectation, (1, 0))
    # The value is that of the shapes drawn: with the first object's shape replaced by itself.
    drawn = per_shape[:, :, 0].gather(-1, what[:, :1, None].expand(-1, steps, 1)).squeeze(-1)
    return torch.cat((explored[:, :1].detach(), drawn), -1) + (gradient - gradient.detach())


def score_function(likelihood: Likelihood, images: Tensor, sample: ShapeSample, exploration: Tensor) -> Tensor:
    """Score-function (REINFORCE) gradient of the shapes. Arguments and result as for `local_expectations`.

    Source: Mnih & Gregor (2014), section 2.2.
    """
    explored = _explored_log_likelihood(likelihood, images, sample, exploration)
    # ∇ = Σ_{t<=n} ∇log q_t(what_t) (log p(x | z_{1:n}) - log p(x | z_{1:t-1}))
    log_p = likelihood.log_likelihood(images, sample.drawn.detach())  # (B, N+1)
    log_q = scale_gradient(sample.what.log_q, 1 - exploration).gather(-1, sample.what.value[..., None])  # (B, N, 1)
    gains = log_p[:, None] - log_p[:, :-1, None]  # (B, N, N+1), of n objects over the first t - 1
    contains = torch.ones_like(gains[0]).triu(1)  # (N, N+1), 1 for t <= n
    gradient = explored + (log_q * gains * contains).sum(1)
    return log_p + (gradient - gradient.detach())


def enumerate_shapes(likelihood: Likelihood, images: Tensor, sample: ShapeSample, exploration: Tensor) -> Tensor:
    """Sum over all combinations of shapes. Arguments as for `local_expectations`.

    Returns:
        (B, N+1), E log p(x | z_{1:n}) over the shapes, in nats, whatever shapes were drawn.
    """
    steps = sample.what.value.shape[1]

    def on_axis(t: int, value: Tensor) -> Tensor:
        """(B, S, ...) -> (B, 1, ..., S, ..., 1, ...): the shapes of object t on the t-th of N axes."""
        axes = [1] * steps
        axes[t] = value.shape[1]
        return value.reshape(len(value), *axes, *value.shape[2:])

    def combinations(field: Tensor, dim: int) -> Tensor:
        """(B, N, S, ...) -> (B, S, ..., S, N, ...), with N as dimension `dim`."""
        return torch.stack(torch.broadcast_tensors(*(on_axis(t, each) for t, each in enumerate(field.unbind(1)))), dim)

    opacity, depth, colour = sample.candidates
    objects = Layers(combinations(opacity, -2), combinations(depth, -2), combinations(colour, -3))
    images = on_axis(0, images[:, None])
    # Σ_{s_1..s_N} Π_t q_t(s_t) log p(x | s_{1:n}); poses learn with (1-ε) q + ε/S instead of q
    log_q = sample.what.log_q
    q = log_q.detach().exp()
    q_explored = q.lerp(torch.full_like(q, 1 / len(SHAPES)), exploration)
    weight = scale_gradient(combinations(log_q, -1).sum(-1, keepdim=True).exp(), 1 - exploration)  # (B, S, ..., S, 1)
    pose_weight = combinations(q_explored, -1).prod(-1, keepdim=True)
    log_p = likelihood.log_likelihood(images, objects)  # (B, S, ..., S, N+1)
    return (weight * log_p.detach() + pose_weight * (log_p - log_p.detach())).flatten(1, -2).sum(1)


def _explored_log_likelihood(likelihood: Likelihood, images: Tensor, sample: ShapeSample, exploration: Tensor
                             ) -> Tensor:
    """log p(x | z_{1:n}) for explored shapes, (B, N+1), from which poses learn."""
    # what'_t ~ (1-ε) q_t + ε/S: a uniform shape with probability ε, else the shape that was drawn
    what = sample.what.value
    uniform = torch.randint_like(what, len(SHAPES))
    explored = torch.where(torch.rand_like(sample.drawn.opacity[..., 0]) < exploration, uniform, what)
    return likelihood.log_likelihood(images, sample.candidates.select(explored))


ShapeEstimator = Callable[[Likelihood, Tensor, ShapeSample, Tensor], Tensor]
SHAPE_ESTIMATORS: dict[str, ShapeEstimator] = {
    "local": local_expectations, "nvil": score_function, "enumerate": enumerate_shapes}


def shape_estimator(name: str, num_steps: int) -> ShapeEstimator:
    """Look up an estimator by name.

    Args:
        name: one of SHAPE_ESTIMATORS.
        num_steps: N, the largest number of objects.
    Raises:
        ValueError: it would have to render too many combinations of shapes.
    """
    if name == "enumerate" and power_exceeds(len(SHAPES), num_steps, MAX_COMBINATIONS):
        raise ValueError(f"identity='enumerate' renders {len(SHAPES)}^{num_steps} combinations of shapes, at most "
                         f"{MAX_COMBINATIONS} are allowed: use 'local'")
    return SHAPE_ESTIMATORS[name]
