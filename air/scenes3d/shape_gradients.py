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
from typing import NamedTuple

import torch
from torch import Tensor

from air.models.distributions import CategoricalLatent
from air.models.settings import power_exceeds
from air.scenes3d.renderer import Layers
from air.scenes3d.shapes import SHAPES

MAX_COMBINATIONS = 27  # of shapes that "enumerate" renders: memory and time grow with S^N

# images (..., 3, H, W) and N objects (..., P) that broadcast -> log p(x | z_{1:n}) for n = 0..N, (...,) each.
LogLikelihoods = Callable[[Tensor, Sequence[Layers]], list[Tensor]]


class ShapeSample(NamedTuple):
    """A guide's objects, with their shapes and without a choice of shape."""

    what: CategoricalLatent  # (B, N), the shapes drawn, and their q (B, N, S)
    drawn: Layers  # (B, N, P), each object as the shape that was drawn
    candidates: Layers  # (B, N, S, P), each object as every shape


def scale_gradient(value: Tensor, factor: Tensor | float) -> Tensor:
    """Return `value` unchanged, with its gradient multiplied by `factor`."""
    return value.detach().lerp(value, factor)


def local_expectations(log_likelihoods: LogLikelihoods, images: Tensor, sample: ShapeSample, exploration: Tensor
                       ) -> Tensor:
    """Sum over each object's shapes exactly, with the other objects' shapes as drawn.

    Args:
        log_likelihoods: of images given N objects.
        images: (B, 3, H, W), intensities.
        sample: the guide's objects.
        exploration: ε in [0, 1].
    Returns:
        (B, N+1), log p(x | z_{1:n}) in nats.
    Source: Titsias & Lázaro-Gredilla (2015), *Local Expectation Gradients for Black Box Variational Inference*.
    """
    pose_term = _pose_gradient(log_likelihoods, images, sample, exploration)
    # ∇ = Σ_{t<=n} Σ_s ∇q_t(s) log p(x | s instead of what_t, the other shapes as drawn)
    q = scale_gradient(sample.what.log_q.exp(), 1 - exploration)
    drawn, candidates = sample.drawn.detach().unbind(), sample.candidates.detach().unbind()
    expanded = [Layers(*(field[:, None] for field in layer)) for layer in drawn]  # (B, 1, P), broadcast over S
    totals = log_likelihoods(images, drawn)
    for t, candidate in enumerate(candidates):  # (B, S, P)
        per_shape = log_likelihoods(images[:, None], [*expanded[:t], candidate, *expanded[t + 1:]])
        for n in range(t + 1, len(totals)):  # images of n > t objects contain object t (t counts from 0)
            expectation = (q[:, t] * per_shape[n]).sum(-1)
            totals[n] = totals[n] + expectation - expectation.detach()
    return pose_term + torch.stack(totals, -1)


def score_function(log_likelihoods: LogLikelihoods, images: Tensor, sample: ShapeSample, exploration: Tensor
                   ) -> Tensor:
    """Score-function (REINFORCE) gradient of the shapes. Arguments and result as for `local_expectations`.

    Source: Mnih & Gregor (2014), section 2.2.
    """
    pose_term = _pose_gradient(log_likelihoods, images, sample, exploration)
    # ∇ = Σ_{t<=n} ∇log q_t(what_t) (log p(x | z_{1:n}) - log p(x | z_{1:t-1}))
    log_p = torch.stack(log_likelihoods(images, sample.drawn.detach().unbind()), -1)  # (B, N+1)
    log_q = scale_gradient(sample.what.log_q, 1 - exploration).gather(-1, sample.what.value[..., None])  # (B, N, 1)
    gains = log_p[:, None] - log_p[:, :-1, None]  # (B, N, N+1), of n objects over the first t - 1
    contains = torch.ones_like(gains[0]).triu(1)  # (N, N+1), 1 for t <= n
    return pose_term + (log_p + ((log_q - log_q.detach()) * gains * contains).sum(1))


def enumerate_shapes(log_likelihoods: LogLikelihoods, images: Tensor, sample: ShapeSample, exploration: Tensor
                     ) -> Tensor:
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

    candidates = [Layers(*(on_axis(t, field) for field in layer))
                  for t, layer in enumerate(sample.candidates.unbind())]
    images = on_axis(0, images[:, None])
    q = sample.what.log_q.exp()
    q_explored = q.detach().lerp(torch.full_like(q, 1 / len(SHAPES)), exploration)
    q = scale_gradient(q, 1 - exploration)
    # Σ_{s_1..s_n} Π_{t<=n} q_t(s_t) log p(x | s_{1:n}); poses learn with (1-ε) q + ε/S instead of q
    weight, pose_weight, totals = images.new_ones(()), images.new_ones(()), []
    for n, log_p in enumerate(log_likelihoods(images, candidates)):
        if n:
            weight = weight * on_axis(n - 1, q[:, n - 1])
            pose_weight = pose_weight * on_axis(n - 1, q_explored[:, n - 1])
        total = weight * log_p.detach() + pose_weight * (log_p - log_p.detach())
        totals.append(total.flatten(1).sum(1))
    return torch.stack(totals, -1)


def _pose_gradient(log_likelihoods: LogLikelihoods, images: Tensor, sample: ShapeSample, exploration: Tensor
                   ) -> Tensor:
    """Zeros, (B, N+1), with the poses' gradient of log p(x | z_{1:n}) for explored shapes."""
    # what'_t ~ (1-ε) q_t + ε/S: a uniform shape with probability ε, else the shape that was drawn
    what = sample.what.value
    uniform = torch.randint_like(what, len(SHAPES))
    explored = torch.where(torch.rand_like(sample.drawn.opacity[..., 0]) < exploration, uniform, what)
    log_p = torch.stack(log_likelihoods(images, sample.candidates.select(explored).unbind()), -1)
    return log_p - log_p.detach()


ShapeEstimator = Callable[[LogLikelihoods, Tensor, ShapeSample, Tensor], Tensor]
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
