"""What a guide is: given the image, it proposes one object after the other.

AIR runs a guide with every z_pres set to 1:

    state = guide.start(images, particles)
    for t in range(N):
        proposal, state = guide.step(state, residual, previous_latents)
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Proposal(NamedTuple):
    """q(z_pres_t) and q(z_where_t) of one step; z_where relative to its prior, whose loc and scale AIR puts back.

    The numbers of z_where are those in which the guide has it Normal, see `Guide.z_where`.
    """

    logits: Tensor  # (B, 1), of q(z_pres_t = 1 | z_pres_{t-1} = 1)
    loc: Tensor  # (B, 3), added to the prior's loc
    scale: Tensor  # (B, 3), > 0, multiplies the prior's scale


class Guide(nn.Module, ABC):
    """The protocol of a guide. Both methods are pure: what a step remembers is in the state, a NamedTuple."""

    reads_residual: bool  # False: every step is given the image itself, and objects need not be painted in between
    reads_latents: bool  # whether a step depends on `previous_latents`
    teaches = True  # whether a step's gradient reaches the objects before it through the residual
    reads_any_size = False  # whether images may have another size than those of training

    @abstractmethod
    def start(self, images: Tensor, particles: int) -> Any:
        """The state before the first step.

        Args:
            images: (B, C, H, W).
            particles: K; every step has B K rows, row b K + k being particle k of image b.
        """

    @abstractmethod
    def step(self, state: Any, residual: Tensor, previous_latents: Sequence[Tensor]) -> tuple[Proposal, Any]:
        """Propose the next object.

        Args:
            state: from `start` or from the previous step.
            residual: (B K, C, H, W), the image less the objects so far if `reads_residual`, else the image.
            previous_latents: z_where (B K, 3), z_what (B K, D) and z_pres = 1 (B K, 1) of the previous step; one row
                each at the first step.
        Returns:
            The step's proposal and the next state.
        """

    def z_where(self, where: Tensor) -> Tensor:
        """z_where = (s, x, y) from the numbers that are Normal, (..., 3) each: the same, unless a guide has others."""
        return where

    def normal_where(self, z_where: Tensor) -> Tensor:
        """The inverse of `z_where`."""
        return z_where
