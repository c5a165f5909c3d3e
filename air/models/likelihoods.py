"""Likelihoods of an image given its first n objects, for every n at once."""

import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def from_squared_error(squared_error: Tensor, ceiling: float, sd: float) -> Tensor:
    """Σ_pixels log Normal(x; canvas, sd²) in nats, from Σ_pixels (x - canvas)² and what it is where that is 0."""
    return torch.rsub(squared_error, ceiling, alpha=1 / (2 * sd**2))


def ceiling_of(pixels: int, sd: float) -> float:
    """The log-likelihood of a perfect reconstruction of so many pixels and channels, in nats."""
    return -pixels * (math.log(sd) + math.log(2 * math.pi) / 2)


def given_each_count(images: Tensor, painted: Tensor, contains: Tensor, sd: float) -> Tensor:
    """log p(x | n, z_{1:n}) = Σ_pixels log Normal(x; canvas_n, sd²) with canvas_n = Σ_{t<=n} painted_t, for n = 0..N.

    Args:
        images: (B, P), intensities.
        painted: (B, N, P), each object alone.
        contains: (N+1, N), 1 for t <= n, else 0.
        sd: of a pixel, in intensities.
    Returns:
        (B, N+1) in nats.
    """
    log_likelihood: Tensor = _GivenEachCount.apply(images, painted, contains, sd)
    return log_likelihood


class _GivenEachCount(torch.autograd.Function):
    """See `given_each_count`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, painted: Tensor, contains: Tensor, sd: float) -> Tensor:
        # x - canvas_n, many times faster on a CPU than by cumsum
        residual = torch.stack(list(accumulate((images, *painted.unbind(1)), torch.sub)), 1)
        ctx.save_for_backward(residual, contains)
        ctx.sd = sd
        squared_error = torch.linalg.vector_norm(residual, dim=-1).square()
        return from_squared_error(squared_error, ceiling_of(images.shape[1], sd), sd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        residual, contains = ctx.saved_tensors
        weight = (gradient / ctx.sd**2)[:, None]  # (B, 1, N+1); of -residual for the image, of residual for an object
        of_images, of_painted, *_ = ctx.needs_input_grad
        return (torch.bmm(-weight, residual).squeeze(1) if of_images else None,
                torch.bmm(contains.T * weight, residual) if of_painted else None, None, None)
