"""Likelihoods of an image given its first n objects, for every n at once."""

import math
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
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


def of_layers(images: Tensor, colours: Tensor, odds: Tensor, sd: Tensor, floor: float) -> Tensor:
    """log p(x | n, z_{1:n}) = Σ_pixels log p(x_p | n, z_{1:n}) of opaque layers, for n = 0..N: a mixture over who owns
    each pixel, with the equations of air/models/opaque.py.

    Args:
        images: (B, C, P), intensities.
        colours: (B, N+1, C, P), of each object alone, and of the ground.
        odds: (B, N, P), of each object against the ground.
        sd: of a pixel, in intensities, a scalar.
        floor: of a pixel's density, over that of a perfect reconstruction.
    Returns:
        (B, N+1) in nats.
    """
    log_likelihood: Tensor = _OfLayers.apply(images, colours, odds, sd, floor)
    channels, pixels = images.shape[1:]
    return log_likelihood - channels * pixels * (sd.log() + math.log(2 * math.pi) / 2)


class _OfLayers(torch.autograd.Function):
    """See `of_layers`; less the constant."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, colours: Tensor, odds: Tensor, sd: Tensor, floor: float) -> Tensor:
        precision = sd**-2
        error = colours - images[:, None]
        like = (error.square().sum(2) * (-precision / 2)).exp()  # (B, N+1, P), 1 where a layer has the pixel's colour
        with_ground = torch.cat((like[:, -1:], odds * like[:, :-1]), 1), F.pad(odds, (0, 0, 1, 0), value=1.0)
        claims, scope = with_ground[0].cumsum(1), with_ground[1].cumsum(1).reciprocal()  # (B, N+1, P), for n
        density = claims * scope
        ctx.save_for_backward(error, odds, like, scope, density, precision)
        ctx.floor = floor
        return (density + floor).log().sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        error, odds, like, scope, density, precision = ctx.saved_tensors
        of_claims = gradient[:, :, None] * scope / (density + ctx.floor)  # (B, N+1, P), for n
        # object t has a part in all n >= t, the ground in all
        later, owned = (each.flip(1).cumsum(1).flip(1) for each in (of_claims, of_claims * density))
        of_odds = later[:, 1:] * like[:, :-1] - owned[:, 1:]
        of_like = torch.cat((later[:, 1:] * odds, later[:, :1]), 1)
        of_colours = (of_like * like * -precision)[:, :, None] * error  # (B, N+1, C, P)
        return -of_colours.sum(1) if ctx.needs_input_grad[0] else None, of_colours, of_odds, None, None
