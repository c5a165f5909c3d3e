"""Opaque layers: objects of any colour that hide the ground and one another.

Each object claims a pixel with odds against the ground. Where two meet, the one with higher odds is in front, in
whatever order they are found:

    odds_t = alpha_t / (1 - alpha_t),   scope_n = 1 / (1 + Σ_{t<=n} odds_t),   own_t = odds_t scope_n
    p(x_p | n, z) = Σ_{t<=n} own_t Normal(x_p; rgb_t, sd²) + scope_n Normal(x_p; ground, sd²) + floor

This is a mixture over who owns the pixel; the owner's colour may be anything with the density `floor`. An uncertain
edge costs log 2 a pixel at most, whereas a squared error around the mean canvas would pay for a further object there.

Source: Greff et al. (2019), "IODINE", section 2, for the mixture, whose masks are a softmax: odds are its exponentials,
1 for the ground.
"""

import math
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from air.models import likelihoods
from air.models.compositing import Add, Compositing, CompositingName
from air.models.distributions import CountPrior
from air.models.layers import clamp_both_ways
from air.models.networks import fold

OPAQUE = 0.5  # a painted pixel belongs to its object if its alpha exceeds this share of the object's largest
# alpha = sigmoid(STEEPNESS (a - OFFSET)) of a decoder's output a: at first windows are rather transparent.
STEEPNESS, OFFSET = 4.0, 0.3
FLOOR = 1e-6  # of a pixel's density, over that of a perfect reconstruction
MARGIN = 1e-4  # what the most opaque object leaves of a pixel to the ground
SURPRISE = 10.0  # nats, the unit in which guides see what a pixel costs
FALLING = 0.4  # share of training in which the sd falls,
UNSURE = 2.0  # and logits of z_pres lie within this on either side of 0


class Layers(NamedTuple):
    """What the objects so far have made of an image, with the ground's odds of 1."""

    images: Tensor  # (B, C, H, W)
    odds: Tensor  # (B, 1, H, W), 1 + Σ odds_t
    colours: Tensor  # (B, C, H, W), ground + Σ odds_t rgb_t
    density: Tensor  # (B, 1, H, W), like of the ground + Σ odds_t like_t


def odds_of(alpha: Tensor) -> Tensor:
    """An object's odds against the ground; at most 1 / MARGIN."""
    return alpha / (1 + MARGIN - alpha)


def _sum_of_others(values: Tensor) -> Tensor:
    """Σ_{s≠t} value_s for each t: (B, N, H, W) -> (B, N, H, W).

    Not the sum less value_t: where an object has nearly all of a pixel, rounding would leave nothing of the others.
    """
    padded = F.pad(values, (0, 0, 0, 0, 1, 1))
    before, after = padded[:, :-2].cumsum(1), padded[:, 2:].flip(1).cumsum(1).flip(1)
    return before + after


class Over(Compositing):
    """Opaque layers.

    like = exp(-|x - rgb|² / 2 sd²) is the density of a pixel's colour over that of a colour that is met.

    As long as objects are not drawn well, windows on every edge pay if the sd is small. So it may fall during training,
    until the share FALLING of it is done. What an object explains is worth less at a larger sd, so it costs less in
    proportion. Until then z_pres stays unsure: while the ground is not known, windows that
    paint it gain thousands of nats, and q(n) would follow them to N; before small or faint objects are drawn they do
    not pay, and q(n) would follow them to 0; either so surely that it would never come back.
    """

    threshold = OPAQUE
    sd: Tensor
    surest: Tensor  # the largest logit of z_pres, and the least one negated

    def __init__(self, channels: int, likelihood_sd: float, first_sd: float | None = None) -> None:
        """Args: channels, likelihood_sd: as of Compositing; first_sd: the sd at the first step; None: the same."""
        super().__init__(channels, likelihood_sd)
        self.first_sd, self.share = first_sd, 1.0
        self.place_constants()

    def constants(self) -> dict[str, Tensor]:
        """What training changes follows from the share that is done."""
        sd, left = self.likelihood_sd, 1 - min(1.0, self.share / FALLING)
        if self.first_sd is not None:
            sd *= (self.first_sd / sd)**left
        surest = UNSURE if self.share < FALLING else math.inf
        return {"sd": torch.tensor(sd, dtype=torch.float64), "surest": torch.tensor(surest, dtype=torch.float64)}

    @property
    def painted_channels(self) -> int:
        return self.channels + 1

    @property
    def seen_channels(self) -> int:
        return 2 * self.channels + 2

    def windows(self, window: Tensor) -> Tensor:
        colours, alpha = self._parts(window)
        return torch.cat((colours, (STEEPNESS * (alpha - OFFSET)).sigmoid()), -3)

    def start(self, images: Tensor, ground: Tensor | None, teaches: bool = True) -> Layers:
        ground = torch.zeros_like(images) if ground is None else ground if teaches else ground.detach()
        return Layers(images, torch.ones_like(images[:, :1]), ground, self._like(images, ground))

    def fold(self, state: Layers, particles: int) -> Layers:
        return Layers(*(fold(each, particles) for each in state))

    def add(self, state: Layers, painted: Tensor) -> Layers:
        colours, alpha = self._parts(painted)
        odds = odds_of(alpha)
        return Layers(state.images, state.odds + odds, torch.addcmul(state.colours, odds, colours),
                      torch.addcmul(state.density, odds, self._like(state.images, colours)))

    def view(self, state: Layers) -> Tensor:
        """What is left of the image, the image, the scope, and what each pixel costs."""
        scope = state.odds.reciprocal()
        surprise = (state.density * scope + FLOOR).log() / -SURPRISE
        return torch.cat((state.images - state.colours * scope, state.images, scope, surprise), 1)

    def log_likelihood(self, images: Tensor, painted: Tensor, ground: Tensor | None, contains: Tensor) -> Tensor:
        ground = torch.zeros_like(images) if ground is None else ground
        colours, alpha = painted.flatten(3).split((self.channels, 1), 2)
        layers = torch.cat((colours, ground.flatten(2)[:, None]), 1)
        return likelihoods.of_layers(images.flatten(2), layers, odds_of(alpha.squeeze(2)), self.sd, FLOOR)

    def canvases(self, painted: Tensor, ground: Tensor) -> Tensor:
        state = self.start(ground, ground)
        states = accumulate(painted.unbind(1), self.add, initial=state)
        return torch.stack([each.colours / each.odds for each in states], 1)

    def alone(self, painted: Tensor, level: float = 0.0) -> Tensor:
        colours, alpha = self._parts(painted)
        return alpha * colours + (1 - alpha) * level

    def silhouettes(self, painted: Tensor) -> Tensor:
        return self._parts(painted)[1]

    def shares(self, images: Tensor, painted: Tensor, ground: Tensor, z_pres: Tensor) -> Tensor:
        """Who owns a pixel, given its colour: own_t (like_t + floor) / p(x_p | n, z)."""
        colours, alpha = self._parts(painted)
        layers = torch.cat((colours, alpha * z_pres[..., None, None, None]), 2)
        *_, last = accumulate(layers.unbind(1), self.add, initial=self.start(images, ground))
        odds = odds_of(layers[:, :, -1])  # (B, N, H, W)
        like = self._like(images[:, None], colours).squeeze(2)
        return odds * (like + FLOOR) / (last.density + FLOOR * last.odds)

    def worth(self, images: Tensor, painted: Tensor, ground: Tensor, z_pres: Tensor) -> Tensor:
        """What each object explains that the others do not: log p(x | n, z) less what it is without that object.

        Args:
            images, painted, ground, z_pres: as of `shares`.
        Returns:
            (B, N) in nats.
        """
        colours, alpha = self._parts(painted)
        odds = odds_of(alpha).squeeze(2) * z_pres[..., None, None]  # (B, N, H, W)
        claims = torch.cat((self._like(images, ground), odds * self._like(images[:, None], colours).squeeze(2)), 1)
        odds = F.pad(odds, (0, 0, 0, 0, 1, 0), value=1.0)  # (B, N+1, H, W), with the ground's
        explained = claims.sum(1, keepdim=True) / odds.sum(1, keepdim=True)
        without = _sum_of_others(claims) / _sum_of_others(odds)
        return ((explained + FLOOR) / (without + FLOOR)).log()[:, 1:].sum((-2, -1))

    def held_back(self, logits: Tensor) -> Tensor:
        return clamp_both_ways(logits, self.surest)

    def discounted(self, price: Tensor | None, count_prior: CountPrior, steps: int) -> Tensor:
        less = ((1 - (self.likelihood_sd / self.sd)**2) * count_prior.log_ratios(steps))[None]  # below 0
        return less if price is None else price + less

    def anneal(self, share: float) -> None:
        """The sd falls from `first_sd` to `likelihood_sd`, by equal factors, until FALLING; then z_pres may be sure."""
        self.share = share
        for name, value in self.constants().items():
            getattr(self, name).fill_(value.item())  # which does not wait for a GPU, and a graph reads

    def _parts(self, painted: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (..., C, H, W) and alpha (..., 1, H, W)."""
        colours, alpha = painted.split((self.channels, 1), -3)
        return colours, alpha

    def _like(self, images: Tensor, colours: Tensor) -> Tensor:
        """(..., C, H, W) each -> (..., 1, H, W)."""
        return ((images - colours).square().sum(-3, keepdim=True) * (-self.sd**-2 / 2)).exp()


def make_compositing(name: CompositingName, channels: int, likelihood_sd: float, first_sd: float | None,
                     uses_sigmoid: bool) -> Compositing:
    """Build by name.

    Args:
        name, channels, likelihood_sd, first_sd: as of AIR.
        uses_sigmoid: whether decoders squash what they paint.
    Raises:
        ValueError: `first_sd` without layers or below the sd at the end, or a second sigmoid for alpha.
    """
    if name == "add":
        if first_sd is not None:
            raise ValueError("first_sd is for compositing='over': intensities that add up need no falling sd")
        return Add(channels, likelihood_sd)
    if first_sd is not None and first_sd < likelihood_sd:
        raise ValueError(f"first_sd falls to likelihood_sd, so it must be at least as large: got {first_sd:g} and "
                         f"{likelihood_sd:g}")
    if uses_sigmoid:
        raise ValueError("decoder_output_use_sigmoid is for compositing='add': of layers, alpha has a sigmoid already")
    return Over(channels, likelihood_sd, first_sd)
