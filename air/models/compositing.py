"""How objects, and the ground behind them, make up an image: by adding intensities, or as opaque layers.

    add     canvas_n = ground + Σ_{t<=n} object_t,    x ~ Normal(canvas_n, sd²)
    over    objects are layers that hide the ground and one another, see air/models/opaque.py

AIR asks its compositing what a decoder's window has besides colours, what a guide sees at each step, for the
likelihoods of n = 0..N objects, and whose pixel is whose. Estimators do not know which one it is.

Shapes: E channels of a painted object, F channels of what a guide sees. A ground that is None is black.
Source: Eslami et al. (2016), section 2, for "add".
"""

from abc import abstractmethod
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from air.models import likelihoods
from air.models.constants import Constants
from air.models.distributions import CountPrior
from air.models.networks import fold
from air.models.spatial import painted_boxes

CompositingName = Literal["add", "over"]
# A painted pixel belongs to its object if it exceeds this share of the object's peak. On training scenes 0.15 gives the
# best IoU and 0.25 the best AP50; this lies between them.
INK = 0.2


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

    def discounted(self, price: Tensor | None, count_prior: CountPrior, steps: int) -> Tensor | None:
        """What objects cost beyond log p(n): `price` as training may have it, (B, N) or (1, N) in nats.

        Args:
            price: (B, N); None: nothing.
            count_prior: p(n).
            steps: N here, which need not be the prior's.
        """
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
