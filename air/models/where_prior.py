"""The prior of z_where, what proposals are relative to, and empirical Bayes for the prior's sizes.

The first number of z_where is an object's size: s, or the search guide's log s. With q_t = Normal(loc_t, scale_t²), the
prior of it that maximises the ELBO is Normal(m, v),

    m = E[loc],  v = E[(loc - m)² + scale²],  E over images and steps t, weighted by q(n >= t)

The guide's proposals are relative to the prior that the model was built with, the reference. If they were relative to a
prior that moves, every move would shift and scale all objects.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from air.models.base import CountingModel
from air.models.constants import Constants
from air.models.distributions import NormalLatent
from air.models.guide import Guide

FEWEST_OBJECTS = 0.01  # per image: a batch with fewer on average says nothing about sizes


class Reference(Constants):
    """The prior that a model was built with. It follows from the settings, so no checkpoint holds it."""

    loc: Tensor  # (3,)
    scale: Tensor  # (3,)

    def __init__(self, loc: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.built_with = {"loc": tuple(loc), "scale": tuple(scale)}
        self.place_constants()

    def constants(self) -> dict[str, Tensor]:
        # Rounded as the prior's buffers are: nothing lies between the two until the prior moves.
        return {name: torch.tensor(value).double() for name, value in self.built_with.items()}


class LocatingModel(CountingModel):
    """A counting model whose guide proposes z_where, with a Normal prior whose sizes may be learned.

    Estimators know nothing of sizes. So while `prior_moves` is set, a rollout in training writes the moments that
    `follow_sizes` needs into the buffer `size_moments`, which a captured or compiled step writes as well.
    """

    guide_net: Guide
    reference: Reference
    z_where_prior_loc: Tensor  # (3,)
    z_where_prior_scale: Tensor  # (3,)
    size_moments: Tensor  # (3,), of the last rollout in training
    # Whether the prior may differ from the reference. To learn it, set this before the first step; weights whose prior
    # has moved set it when they are loaded.
    prior_moves = False

    def place_where_prior(self, loc: Sequence[float], scale: Sequence[float]) -> None:
        """Set the prior of z_where, three numbers each, and with it the reference."""
        self.register_buffer("z_where_prior_loc", torch.tensor(loc))
        self.register_buffer("z_where_prior_scale", torch.tensor(scale))
        self.register_buffer("size_moments", torch.zeros(3), persistent=False)
        self.reference = Reference(loc, scale)
        self.prior_moves = False

    def where_posterior(self, loc: Tensor, scale: Tensor, noise: Tensor) -> NormalLatent:
        """q(z_where) in units of its prior, with the draw of this noise.

        Args:
            loc, scale: (B, N, 3), relative to the reference, see `Proposal`.
            noise: (B, N, 3), standard Normal.
        """
        prior_loc, prior_scale = self.z_where_prior_loc, self.z_where_prior_scale
        if self.prior_moves:
            loc, scale = loc + (self.reference.loc - prior_loc), scale * (self.reference.scale / prior_scale)
        return NormalLatent(loc / prior_scale, scale, noise, prior_loc, prior_scale)

    def record_sizes(self, where: NormalLatent, logits: Tensor) -> None:
        """Write `size_moments`, if they are needed; arguments as of the function of that name."""
        if self.prior_moves and self.training:
            self.size_moments.copy_(size_moments(where, logits))

    def follow_sizes(self, moments: Tensor, least_spread: float, rate: float = 0.01) -> None:
        """Empirical Bayes: move the prior of sizes towards the one that maximises the ELBO; the places' stays.

        The prior's first two moments move. If its variance did instead, the variance between batches would be lost,
        which is most of it where a batch has few objects. A batch with hardly any object moves nothing, and no
        computation waits for the device.

        Args:
            moments: (3,), `size_moments`, averaged over the processes.
            least_spread: the prior's sd over its mean (the search guide's: the sd of log s) does not fall below it.
                Without a limit the prior and the posteriors make each other ever narrower.
            rate: in (0, 1], fraction of the difference to close.
        """
        loc, scale = self.z_where_prior_loc[0], self.z_where_prior_scale[0]
        objects, first, second = moments
        rates = rate * (objects > FEWEST_OBJECTS)
        first, second = (each / objects.clamp(min=FEWEST_OBJECTS) for each in (first, second))
        shift = rates * first  # of the mean, in units of the prior
        variance = 1 + rates * (second - 1) - shift.square()
        loc.add_(scale * shift)
        scale.copy_((scale * variance.sqrt()).clamp(min=least_spread * self.guide_net.size_unit(loc)))

    def prior_sides(self) -> dict[str, float]:
        """An object's side in pixels under the scale prior: "mean", at the prior's mean, and "sd", to first order."""
        loc, scale = self.z_where_prior_loc, self.z_where_prior_scale
        side = self.x_size / self.guide_net.z_where(loc)[0].item()
        return {"mean": side, "sd": side * (scale[0] / self.guide_net.size_unit(loc[0])).item()}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """What `load_state_dict` calls."""
        super()._load_from_state_dict(*args, **kwargs)
        self.prior_moves |= not (torch.equal(self.z_where_prior_loc, self.reference.loc)
                                 and torch.equal(self.z_where_prior_scale, self.reference.scale))


@torch.no_grad()
def size_moments(where: NormalLatent, logits: Tensor) -> Tensor:
    """The moments of a batch that `LocatingModel.follow_sizes` follows, means over the batch.

    Args:
        where: q(z_where), (B, N, 3).
        logits: (B, N), of q(z_pres_t = 1 | z_pres_{t-1} = 1).
    Returns:
        (3,): Σ_t q(n >= t), the number of objects; and Σ_t q(n >= t) times the first and second moment of the size
        under q_t, in units of the prior.
    """
    present = logits.sigmoid().cumprod(-1)  # q(n >= t)
    loc, scale = where.offset[..., 0], where.ratio[..., 0]
    return (present * torch.stack((torch.ones_like(loc), loc, loc.square() + scale.square()))).mean(1).sum(-1)
