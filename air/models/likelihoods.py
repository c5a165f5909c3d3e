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


def of_layers(images: Tensor, painted: Tensor, ground: Tensor, sd: Tensor, floor: float) -> Tensor:
    """log p(x | n, z_{1:n}) = Σ_pixels log p(x_p | n, z_{1:n}) of opaque layers, front to back, for n = 0..N: a mixture
    over who owns each pixel, with the equations of air/models/compositing.py.

    Args:
        images: (B, C, P), intensities.
        painted: (B, N, C + 1, P), colours and alpha of each object alone.
        ground: (B, C, P), what lies behind the objects.
        sd: of a pixel, in intensities, a scalar.
        floor: of a pixel's density, over that of a perfect reconstruction.
    Returns:
        (B, N+1) in nats.
    """
    log_likelihood: Tensor = _OfLayers.apply(images, painted, ground, sd, floor)
    channels, pixels = images.shape[1:]
    return log_likelihood - channels * pixels * (sd.log() + math.log(2 * math.pi) / 2)


class _OfLayers(torch.autograd.Function):
    """See `of_layers`; less the constant."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, painted: Tensor, ground: Tensor, sd: Tensor, floor: float) -> Tensor:
        precision = sd**-2
        colours, alpha = painted[:, :, :-1], painted[:, :, -1]  # (B, N, C, P), (B, N, P)
        error = torch.cat((colours, ground[:, None]), 1) - images[:, None]  # (B, N+1, C, P)
        like = (error.square().sum(2) * (-precision / 2)).exp()  # (B, N+1, P), 1 where a layer has the pixel's colour
        scope = torch.cat((torch.ones_like(alpha[:, :1]), (1 - alpha).cumprod(1)), 1)  # (B, N+1, P)
        by_objects = F.pad((scope[:, :-1] * alpha * like[:, :-1]).cumsum(1), (0, 0, 1, 0))
        density = torch.addcmul(by_objects, scope, like[:, -1:]) + floor
        ctx.save_for_backward(error, alpha, like, scope, density, precision)
        return density.log().sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        error, alpha, like, scope, density, precision = ctx.saved_tensors
        of_density = gradient[:, :, None] / density  # (B, N+1, P), for n
        later = of_density.flip(1).cumsum(1).flip(1)[:, 1:]  # (B, N, P), of own_t like_t: Σ_{n>=t}
        of_like = torch.cat((later * scope[:, :-1] * alpha, (of_density * scope).sum(1, keepdim=True)), 1)
        of_own, of_scope_n = later * like[:, :-1], of_density * like[:, -1:]
        of_alpha, of_scope = torch.empty_like(alpha), of_scope_n[:, -1]
        for t in range(alpha.shape[1] - 1, -1, -1):
            of_alpha[:, t] = scope[:, t] * (of_own[:, t] - of_scope)
            of_scope = of_scope_n[:, t] + of_own[:, t] * alpha[:, t] + of_scope * (1 - alpha[:, t])
        of_error = (of_like * like * -precision)[:, :, None] * error  # (B, N+1, C, P)
        of_painted = torch.cat((of_error[:, :-1], of_alpha[:, :, None]), 2)
        of_images = -of_error.sum(1) if ctx.needs_input_grad[0] else None
        return of_images, of_painted, of_error[:, -1], None, None
