"""Which objects have others made redundant?

A guide adds one object after the other and takes none back. Where objects meet, a window may explain parts of two; once
each of them has a window of its own, it explains nothing more. An object is left out if the bound is higher without it,

    log p(x | n, z) - log p(x | n - 1, z without object t)  <  KL_t + price_t + log p(n - 1) - log p(n)

the one that is worth least first, until all that are left are worth what they cost.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from air.models.distributions import NormalLatent
from air.models.opaque import Over

if TYPE_CHECKING:
    from air.models.air import AIR


def redundant(model: "AIR", images: Tensor, painted: Tensor, ground: Tensor | None, latents: Mapping[str, NormalLatent],
              count: Tensor) -> Tensor | None:
    """Find the redundant ones of each image's first n objects.

    Args:
        model: trained.
        images: (B, C, H, W), intensities.
        painted: (B, N, E, H, W), each object alone.
        ground: (B, C, H, W), what lies behind them; None: black.
        latents: "where" (B, N, 3) and "what" (B, N, D), with which they were painted.
        count: (B,), n.
    Returns:
        (B, N) bool; None of intensities that add up: there, later objects explain what earlier ones have left.
    """
    if not isinstance(model.compositing, Over):
        return None
    ground = torch.zeros_like(images) if ground is None else ground
    cost = latents["where"].kl() + latents["what"].kl()  # (B, N)
    prices = model.prices(painted)
    cost = cost if prices is None else cost + prices
    fewer = -model.count_prior.log_ratios(painted.shape[1])  # (N,), log p(n - 1) - log p(n)
    present = counted = torch.arange(painted.shape[1], device=count.device) < count[:, None]
    for _ in range(painted.shape[1]):
        worth = model.compositing.worth(images, painted, ground, present.to(images))
        of_count = fewer[(present.sum(-1) - 1).clamp(min=0)]
        gain = (worth - cost - of_count[:, None]).masked_fill(~present, torch.inf)
        least, index = gain.min(-1)
        drop = (least < 0)[:, None] & (torch.arange(gain.shape[1], device=index.device) == index[:, None])
        if not _is_traced(images) and not drop.any():
            break
        present = present & ~drop
    return counted & ~present


def _is_traced(images: Tensor) -> bool:
    """Whether torch compiles, exports or captures a CUDA graph, so that no value is known."""
    return torch.compiler.is_compiling() or images.is_cuda and torch.cuda.is_current_stream_capturing()
