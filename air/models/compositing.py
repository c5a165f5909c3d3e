"""How objects, and the ground behind them, make up an image: by adding intensities, or as opaque layers.

    add     canvas_n = ground + Σ_{t<=n} object_t,    x ~ Normal(canvas_n, sd²)
    over    objects are layers that hide the ground and one another. Each claims a pixel with odds against the ground:
            where two meet, the one with higher odds is in front, in whatever order they are found:

                odds_t = alpha_t / (1 - alpha_t),   scope_n = 1 / (1 + Σ_{t<=n} odds_t),   own_t = odds_t scope_n
                p(x_p | n, z) = Σ_{t<=n} own_t Normal(x_p; rgb_t, sd²) + scope_n Normal(x_p; ground, sd²) + floor

            a mixture over who owns the pixel; the owner's colour may be anything with the density `floor`. An uncertain
            edge costs log 2 a pixel at most, whereas a squared error around the mean canvas would pay for a further
            object there.

AIR asks its compositing what a decoder's window has besides colours, what a guide sees at each step, for the
likelihoods of n = 0..N objects, and whose pixel is whose. Estimators do not know which one it is.

Shapes: E channels of a painted object, F channels of what a guide sees. A ground that is None is black.
Source: Eslami et al. (2016), section 2, for "add"; Greff et al. (2019), "IODINE", section 2, for the mixture, whose
masks are a softmax: odds are its exponentials, 1 for the ground.
"""

import math
from abc import abstractmethod
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from air.models import likelihoods
from air.models.constants import Constants
from air.models.layers import clamp_both_ways
from air.models.networks import fold
from air.models.spatial import painted_boxes

CompositingName = Literal["add", "over"]
# A painted pixel belongs to its object if it exceeds this share of the object's peak. On training scenes 0.15 gives the
# best IoU and 0.25 the best AP50; this lies between them.
INK = 0.2
OPAQUE = 0.5  # the same, of an object's largest alpha
# alpha = sigmoid(STEEPNESS (a - OFFSET)) of a decoder's output a: at first windows are rather transparent.
STEEPNESS, OFFSET = 4.0, 0.3
FLOOR = 1e-6  # of a pixel's density, over that of a perfect reconstruction
MARGIN = 1e-4  # what the most opaque object leaves of a pixel to the ground
SURPRISE = 10.0  # nats, the unit in which guides see what a pixel costs
FALLING = 0.4  # share of training in which the sd falls,
UNSURE = 2.0  # and logits of z_pres lie within this on either side of 0


class Compositing(Constants):
    """What depends on how objects combine."""

    def __init__(self, channels: int, likelihood_sd: float) -> None:
        """Args: channels: C; likelihood_sd: of a pixel, in intensities."""
        super().__init__()
        self.channels, self.likelihood_sd = channels, likelihood_sd

    def constants(self) -> dict[str, Tensor]:
        return {}

    @property
    @abstractmethod
    def painted_channels(self) -> int:
        """E, of a decoder's window and of a painted object."""

    @property
    @abstractmethod
    def seen_channels(self) -> int:
        """F, of what guides and encoders see."""

    def windows(self, window: Tensor) -> Tensor:
        """What to paint for a decoder's output: (B, E, w, w) each."""
        return window

    def take_off(self, images: Tensor, ground: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images and a ground that are equivalent to these, (B, C, H, W) each."""
        return images, ground

    @abstractmethod
    def start(self, images: Tensor, ground: Tensor | None, teaches: bool = True) -> Any:
        """The state before the first object.

        Args:
            images, ground: (B, C, H, W).
            teaches: whether its gradient reaches the ground.
        """

    @abstractmethod
    def fold(self, state: Any, particles: int) -> Any:
        """The state for K particles an image: B K rows."""

    @abstractmethod
    def add(self, state: Any, painted: Tensor) -> Any:
        """The state with one more object, (B, E, H, W)."""

    @abstractmethod
    def view(self, state: Any) -> Tensor:
        """What guides and encoders see in a state: (B, F, H, W)."""

    @abstractmethod
    def log_likelihood(self, images: Tensor, painted: Tensor, ground: Tensor | None, contains: Tensor) -> Tensor:
        """log p(x | n, z_{1:n}) for n = 0..N.

        Args:
            images, ground: (B, C, H, W).
            painted: (B, N, E, H, W), each object alone.
            contains: (N+1, N), 1 for t <= n, else 0.
        Returns:
            (B, N+1) in nats.
        """

    @abstractmethod
    def canvases(self, painted: Tensor, ground: Tensor) -> Tensor:
        """The canvas after n = 0..N objects, (B, N+1, C, H, W); arguments as above."""

    @abstractmethod
    def alone(self, painted: Tensor, level: float = 0.0) -> Tensor:
        """Each object alone, complete, on a ground of this level: (..., E, H, W) -> (..., C, H, W)."""

    @abstractmethod
    def silhouettes(self, painted: Tensor) -> Tensor:
        """Where objects are, whether or not others hide them: (..., E, H, W) -> (..., X, H, W), 0 where they are not.
        """

    @abstractmethod
    def shares(self, images: Tensor, painted: Tensor, ground: Tensor, z_pres: Tensor) -> Tensor:
        """The share that each object has in each pixel.

        Args:
            images, painted, ground: as above.
            z_pres: (B, N), 1 for t <= n, else 0.
        Returns:
            (B, N, H, W), at most 1 in sum; what is missing is the ground's.
        """

    @property
    @abstractmethod
    def threshold(self) -> float:
        """The share of a silhouette's peak from which on a pixel belongs to its object."""

    def boxes(self, painted: Tensor, z_where: Tensor, unit: int) -> Tensor:
        """Tight boxes around what objects (..., E, H, W) paint, hidden or not; see `painted_boxes`."""
        return painted_boxes(self.silhouettes(painted), z_where, self.threshold, unit)

    def held_back(self, logits: Tensor) -> Tensor:
        """The logits of z_pres, (B, N), as training may have them."""
        return logits

    def discounted(self, price: Tensor | None, log_p: Tensor) -> Tensor | None:
        """What objects cost beyond log p(n), (N+1,): `price` as training may have it, (B, N) or (1, N) in nats."""
        return price

    def anneal(self, share: float) -> None:
        """Adapt to the share of training that is done, in [0, 1]."""


class Add(Compositing):
    """Intensities add up; the state is the residual."""

    threshold = INK

    @property
    def painted_channels(self) -> int:
        return self.channels

    @property
    def seen_channels(self) -> int:
        return self.channels

    def take_off(self, images: Tensor, ground: Tensor) -> tuple[Tensor, Tensor | None]:
        return images - ground, None

    def start(self, images: Tensor, ground: Tensor | None, teaches: bool = True) -> Tensor:
        left = images if ground is None else images - ground
        return left if teaches else left.detach()

    def fold(self, state: Tensor, particles: int) -> Tensor:
        return fold(state, particles)

    def add(self, state: Tensor, painted: Tensor) -> Tensor:
        return state - painted

    def view(self, state: Tensor) -> Tensor:
        return state

    def log_likelihood(self, images: Tensor, painted: Tensor, ground: Tensor | None, contains: Tensor) -> Tensor:
        left = self.start(images, ground).flatten(1)
        return likelihoods.given_each_count(left, painted.flatten(2), contains, self.likelihood_sd)

    def canvases(self, painted: Tensor, ground: Tensor) -> Tensor:
        return torch.stack(list(accumulate((ground, *painted.unbind(1)), torch.add)), 1)

    def alone(self, painted: Tensor, level: float = 0.0) -> Tensor:
        return painted + level

    def silhouettes(self, painted: Tensor) -> Tensor:
        return painted

    def shares(self, images: Tensor, painted: Tensor, ground: Tensor, z_pres: Tensor) -> Tensor:
        """By brightness in units of each object's brightest pixel, in which the ground has INK everywhere."""
        ink = painted.amax(2).clamp(min=0)  # (B, N, H, W)
        ink = z_pres[..., None, None] * ink / ink.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(ink.dtype).tiny)
        return ink / (ink.sum(1, keepdim=True) + INK)


class Layers(NamedTuple):
    """What the objects so far have made of an image, with the ground's odds of 1."""

    images: Tensor  # (B, C, H, W)
    odds: Tensor  # (B, 1, H, W), 1 + Σ odds_t
    colours: Tensor  # (B, C, H, W), ground + Σ odds_t rgb_t
    density: Tensor  # (B, 1, H, W), like of the ground + Σ odds_t like_t


def odds_of(alpha: Tensor) -> Tensor:
    """An object's odds against the ground; at most 1 / MARGIN."""
    return alpha / (1 + MARGIN - alpha)


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

    def held_back(self, logits: Tensor) -> Tensor:
        return clamp_both_ways(logits, self.surest)

    def discounted(self, price: Tensor | None, log_p: Tensor) -> Tensor:
        less = ((1 - (self.likelihood_sd / self.sd)**2) * log_p.diff())[None]  # below 0
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
