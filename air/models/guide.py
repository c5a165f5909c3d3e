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

from air.models.distributions import NormalLatent
from air.models.networks import History


class Proposal(NamedTuple):
    """q(z_pres_t) and q(z_where_t) of one step; z_where relative to a reference, the prior that AIR was built with.

    AIR puts the reference's loc and scale back. The numbers of z_where are those in which the guide has it Normal, see
    `Guide.z_where`.
    """

    logits: Tensor  # (B, 1), of q(z_pres_t = 1 | z_pres_{t-1} = 1)
    loc: Tensor  # (B, 3), added to the reference's loc
    scale: Tensor  # (B, 3), > 0, multiplies the reference's scale


class Step(NamedTuple):
    """One step of the guide with z_pres = 1; stacked over steps, (B, N, ...)."""

    logits: Tensor  # (B, 1), of q(z_pres_t = 1 | z_pres_{t-1} = 1)
    z_where: Tensor  # (B, 3)
    z_what: Tensor  # (B, D)
    where_loc: Tensor  # (B, 3), relative to the reference, see `Proposal`
    where_scale: Tensor  # (B, 3), relative to the reference
    what_loc: Tensor  # (B, D)
    what_scale: Tensor  # (B, D)


class Attended(NamedTuple):
    """The guide's N steps and their objects: a Rollout before its likelihoods."""

    logits: Tensor  # (B, N)
    latents: dict[str, NormalLatent]  # "where" (B, N, 3) and "what" (B, N, D)
    history: History  # (z_where, z_what, z_pres) of the step before, N times
    z_where: Tensor  # (B, N, 3)
    z_what: Tensor  # (B, N, D)
    painted: Tensor  # (B, N, E, H, W)


class Guide(nn.Module, ABC):
    """The protocol of a guide. Both methods are pure: what a step remembers is in the state, a NamedTuple."""

    reads_residual: bool  # False: every step is given the image itself, and objects need not be painted in between
    reads_latents: bool  # whether a step depends on `previous_latents`
    teaches = True  # whether a step's gradient reaches the ground and the objects before it through the residual
    reads_any_size = False  # whether images may have another size than those of training

    @abstractmethod
    def start(self, images: Tensor, particles: int) -> Any:
        """The state before the first step.

        Args:
            images: (B, F, H, W), what the compositing shows before the first object.
            particles: K; every step has B K rows, row b K + k being particle k of image b.
        """

    @abstractmethod
    def step(self, state: Any, residual: Tensor, previous_latents: Sequence[Tensor]) -> tuple[Proposal, Any]:
        """Propose the next object.

        Args:
            state: from `start` or from the previous step.
            residual: (B K, F, H, W), what the compositing shows (`Compositing.view`): after the objects so far if
                `reads_residual`, else before the first. With intensities that add up, the image less the objects.
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

    def size_unit(self, size: Tensor) -> Tensor:
        """What divides small differences of the first number of z_where, here s, into differences of log s: (...)."""
        return size.abs()
