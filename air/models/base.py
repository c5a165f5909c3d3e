"""What AIR and SceneAIR share: the interface that estimators and evaluation use, image checks, the count prior."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from air.models import likelihoods
from air.models.compositing import Compositing
from air.models.constants import Constants
from air.models.distributions import CountPrior, Latent
from air.models.networks import Baseline, History

Fields = TypeVar("Fields", bound=tuple[Any, ...])  # a NamedTuple of tensors

SLACK = 0.05  # intensities outside [0, 1] by more than this cause a warning
LOWEST, HIGHEST = -1.0, 2.0  # intensities outside are on another scale


class Rollout(NamedTuple):
    """All N steps of the guide with every z_pres set to 1, and the N+1 likelihoods that follow.

    Estimators read nothing else, so they do not depend on what an object's latents are.
    """

    logits: Tensor  # (B, N), of q(z_pres_t = 1 | z_pres_{t-1} = 1)
    latents: Mapping[str, Latent]  # name -> (B, N, size): "where", "what", SceneAIR's "turn"; (B, size): "background"
    history: History  # of N steps: what the guide has read besides the image
    painted: Tensor  # (B, N, E, H, W), each object alone: E is C, and C + 1 of layers, with alpha
    log_likelihood: Tensor  # (B, N+1), log p(x | n, z_{1:n}) in nats
    price: Tensor | None = None  # (B, N), nats that each object costs beyond p(n) and its KLs; None: nothing


@dataclass(frozen=True)
class Inference:
    """What the model infers from images: the most probable count and the latents' means."""

    count: Tensor  # (B,) int64, the MAP count
    count_probs: Tensor  # (B, N+1), q(n), less redundant objects
    z_pres: Tensor  # (B, N), 1 for t <= count, else 0
    z_where: Tensor  # (B, N, 3), (s, x, y)
    z_what: Tensor  # (B, N, D)
    boxes: Tensor  # (B, N, 4), (x0, y0, x1, y1) in pixels: tight around what the object paints; 0 where z_pres is 0
    reconstruction: Tensor  # (B, C, H, W), the canvas at the MAP count
    canvases: Tensor  # (B, N+1, C, H, W), the canvas after n = 0..N objects
    masks: Tensor  # (B, N, H, W), each object's share of each pixel; 0 where z_pres is 0, and the rest is the ground's

    @classmethod
    def of(cls, compositing: Compositing, count_probs: Tensor, z_where: Tensor, z_what: Tensor, painted: Tensor,
           images: Tensor, ground: Tensor | None, unit: int, redundant: Tensor | None) -> "Inference":
        """From a choice of 2D latents, at the most probable count.

        Args:
            compositing: how objects combine.
            count_probs: (B, N+1).
            z_where: (B, N, 3).
            z_what: (B, N, D).
            painted: (B, N, E, H, W), each object alone.
            images: (B, C, H, W).
            ground: (B, C, H, W), what lies behind the objects; None: black.
            unit: pixels that span [-1, 1] in canvas units.
            redundant: (B, N) bool, objects that do not count: they come last, and what q(n) gives to n goes to the
                number of the others among the first n; None: all count.
        """
        if redundant is not None:
            counts = torch.arange(count_probs.shape[1], device=redundant.device)
            left = F.pad((~redundant).cumsum(-1), (1, 0))  # (B, N+1), of the first n
            count_probs = torch.einsum("bn, bnm -> bm", count_probs, (left[..., None] == counts).to(count_probs))
            order = redundant.int().argsort(stable=True, dim=-1)
            row = torch.arange(order.shape[0], device=order.device)
            z_where, z_what, painted = (each[row[:, None], order] for each in (z_where, z_what, painted))
        ground = torch.zeros_like(images) if ground is None else ground
        count = count_probs.argmax(-1)
        z_pres = (torch.arange(z_where.shape[1], device=count.device) < count[:, None]).to(z_where)
        canvases = compositing.canvases(painted, ground)
        boxes = compositing.boxes(painted, z_where, unit) * z_pres[..., None]
        reconstruction = canvases[torch.arange(count.shape[0], device=count.device), count]
        masks = compositing.shares(images, painted, ground, z_pres)
        return cls(count, count_probs, z_pres, z_where, z_what, boxes, reconstruction, canvases, masks)

    @property
    def segmentation(self) -> Tensor:
        """(B, H, W) int64, whose share of a pixel is largest: 0 the ground's, t that of object t."""
        ground = 1 - self.masks.sum(1, keepdim=True)
        return torch.cat((ground, self.masks), 1).argmax(1)

    @property
    def at_limit(self) -> Tensor:
        """(B,) bool: the count is N, so there are at least so many objects."""
        return self.count == self.z_pres.shape[1]

    def as_dict(self) -> dict[str, Tensor]:
        """The fields by name, in order; unlike `dataclasses.asdict` it does not copy the tensors."""
        return dict(vars(self))


class CountingModel(Constants):
    """A model of images with 0 to N objects, inferred one after the other: x ~ Normal(canvas_n, likelihood_sd²)."""

    contains: Tensor  # (N+1, N), 1 for t <= n, else 0: which objects a canvas of n contains
    white: Tensor  # 255 in the model's dtype, which a uint8 image divided by it takes on
    zero: Tensor  # (1, 1)
    one: Tensor  # (1, 1); zero and one are the loc and scale of a standard Normal prior, and values of z_pres

    def __init__(self, num_steps: int, x_size: int, channels: int, likelihood_sd: float,
                 count_prior: float | CountPrior, use_masking: bool, use_baselines: bool) -> None:
        """Keep what the models share.

        Args:
            num_steps, x_size, channels, likelihood_sd, count_prior, use_masking, use_baselines: as in AIR, checked.
        Raises:
            ValueError: the count prior is not over 0..N.
        """
        super().__init__()
        if not isinstance(count_prior, CountPrior):
            count_prior = CountPrior.geometric(num_steps, count_prior)
        if count_prior.log_probs.shape != (num_steps + 1,):
            raise ValueError(f"the count prior must be over 0..{num_steps}, shape ({num_steps + 1},), "
                             f"got {tuple(count_prior.log_probs.shape)}")
        self.num_steps, self.x_size, self.channels, self.likelihood_sd = num_steps, x_size, channels, likelihood_sd
        self.use_masking, self.use_baselines, self.count_prior = use_masking, use_baselines, count_prior
        self.place_constants()

    def constants(self) -> dict[str, Tensor]:
        ones = torch.ones(self.num_steps + 1, self.num_steps, dtype=torch.float64)
        return {"contains": ones.tril(-1), "white": ones.new_tensor(255.0),
                "zero": 0 * ones[:1, :1], "one": ones[:1, :1]}

    @abstractmethod
    def prior(self, n: int) -> tuple[Any, Tensor]:
        """Draw n scenes.

        Returns:
            Their latents, and their images without pixel noise: (n, H, W), or (n, C, H, W) for C > 1.
        Raises:
            ValueError: n is negative.
        """

    @abstractmethod
    def rollout(self, images: Tensor, at_mean: bool = False, particles: int = 1) -> Rollout:
        """Run all N steps of the guide with z_pres = 1, and paint the objects it proposes.

        Given the image, the chain only ever continues from z_pres = 1, so this is all that any estimator needs.

        Args:
            images: (B, H, W) or (B, C, H, W), intensities; uint8 is divided by 255.
            at_mean: use each Normal's loc instead of a draw.
            particles: K independent draws per image, folded into the batch: row b K + k is particle k of image b.
        Returns:
            A rollout of B K rows. What the guide computes from the image alone is computed once per image.
        Raises:
            ValueError: the images do not have the model's size.
        """

    @abstractmethod
    def infer(self, images: Tensor | NDArray[Any]) -> Inference:
        """Count, locate, encode and reconstruct the objects of images; deterministic.

        Args:
            images: (B, H, W) or (B, C, H, W), intensities, a tensor or a NumPy array; uint8 is divided by 255. A model
                whose `reads_any_size` is true reads images of any height and width, in which objects have as many
                pixels as in those of training.
        Raises:
            ValueError: the images do not have the model's size, are neither uint8 nor floats, or are no intensities
                (see `check_intensities`).
        """

    @property
    def reads_any_size(self) -> bool:
        """Whether the model reads images of other sizes, and counts further, than in training."""
        return False

    @abstractmethod
    def make_baseline(self) -> Baseline:
        """Build a new baseline for NVIL, sized by the constructor's keywords; it shares no parameter with the model."""

    def anneal(self, share: float) -> None:
        """Adapt to the share of training that is done, in [0, 1]; called before each step."""

    def z_pres(self, count: Tensor) -> Tensor:
        """The unary code of a count: (B,) -> (B, N), 1 for t <= n."""
        return self.contains[count]

    def log_likelihood_of(self, squared_error: Tensor) -> Tensor:
        """Σ_pixels log Normal(x; canvas, likelihood_sd²) in nats, from Σ_pixels (x - canvas)²."""
        return likelihoods.from_squared_error(squared_error, self.log_likelihood_ceiling, self.likelihood_sd)

    @property
    def log_likelihood_ceiling(self) -> float:
        """The log-likelihood of a perfect reconstruction in nats, the reference point for reading an ELBO."""
        return likelihoods.ceiling_of(self.channels * self.x_size**2, self.likelihood_sd)

    def as_images(self, images: Tensor | NDArray[Any], intensities: bool = False) -> Tensor:
        """Check images and convert them to the model's dtype and device.

        Args:
            images: (B, H, W) or (B, C, H, W), uint8 or floats, a tensor or a NumPy array.
            intensities: also check that floats are intensities (see `check_intensities`), which waits for a GPU. Not
                for residuals, which may be negative.
        Returns:
            (B, C, H, W); uint8 divided by 255.
        Raises:
            ValueError: wrong shape or dtype, or not intensities.
        """
        images = torch.as_tensor(images)
        shape = (self.channels, self.x_size, self.x_size)
        flat = images.ndim == 3 and self.channels == 1
        if self.reads_any_size and images.ndim >= 3 and min(images.shape[-2:]) > 0:
            shape = (self.channels, *images.shape[-2:])
        if images.shape[1:] != (shape[1:] if flat else shape):
            height, width = ("H", "W") if self.reads_any_size else (self.x_size, self.x_size)
            raise ValueError(f"expected images of shape (B, {self.channels}, {height}, {width})"
                             f"{f' or (B, {height}, {width})' if self.channels == 1 else ''}, "
                             f"got {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"expected images of uint8 or floats, got {images.dtype}")
        if flat:
            images = images[:, None]
        if images.dtype == torch.uint8:
            return images.to(self.white.device) / self.white
        floating = images.to(self.white)
        if intensities:
            check_intensities(floating)
        return floating


def stack_steps(steps: Sequence[Fields]) -> Fields:
    """Stack NamedTuples of tensors, (B, ·) each, along dimension 1, by a single concatenation."""
    sizes = [field.shape[-1] for field in steps[0]]
    together = torch.cat([field for step in steps for field in step], -1).unflatten(-1, (len(steps), -1))
    return type(steps[0])(*together.split(sizes, -1))


def check_number(n: int) -> None:
    """Refuse a negative number of scenes. Raises ValueError."""
    if n < 0:
        raise ValueError(f"the number of scenes must be at least 0, got {n}")


def check_intensities(images: Tensor) -> None:
    """Refuse floats that are no intensities in [0, 1], and warn of those that are a little outside.

    Nothing is checked while torch compiles, exports or captures a CUDA graph, where no value is known.

    Raises:
        ValueError: the values are not finite, or clearly on another scale, such as 0 to 255.
    """
    if not images.numel() or torch.compiler.is_compiling():
        return
    if images.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    low, high = (extreme.item() for extreme in images.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("expected finite images, got nan or infinite intensities")
    if not (LOWEST <= low and high <= HIGHEST):
        advice = "divide by 255" if 0 <= low and high <= 255 else "rescale them"
        raise ValueError(f"expected intensities in [0, 1], got {low:.1f} to {high:.1f}: {advice}")
    if not (-SLACK <= low and high <= 1 + SLACK):
        warnings.warn(f"intensities should lie in [0, 1], got {low:.2f} to {high:.2f}: the model has not been trained "
                      "for that", stacklevel=4)
