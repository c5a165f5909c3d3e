"""The search guide: find what stands out most in the residual, at any place and of any size, and look at it closely.

    heat of every place of the residual                           ->  the hottest place
    where sizes vary (LEVEL_RANGE): a wider look around it        ->  the object's size and centre
    glimpses there of the residual, and of what has been painted  ->  z_pres, and corrections of size and centre

A step sees the residual, and near what it has found also the canvas, and treats all places alike. So what it learns
from few objects on small images carries over to many objects on large ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from air.models.constants import Constants
from air.models.guide import Guide, Proposal
from air.models.networks import MLP, fold, non_linearity_class
from air.models.spatial import PixelGrid, centres_of, from_centre, full_precision, sample, to_centre

OBJECT_PIXELS = 8  # an object's side in pixels of its level
LEVEL_RANGE = 0.75  # of log s, what one level covers at most
PRIOR_SDS = 1.5  # sizes lie within so many standard deviations of the scale prior: the pyramid covers them
STRIDE = 2  # of the places, in pixels of a level
FEATURES = 16
REACH = 1 / 3  # of the attention around the hottest place, in sides of an object
GLIMPSE_SIZE = 16  # pixels
GLIMPSE_MARGIN = 1.8  # a glimpse's side over the object's
HIDDEN = (128,)  # layer sizes between the glimpses and the proposal, unless others are given
SHIFT, GROWTH = 0.3, 0.15  # standard deviations of place, in halves of an object, and of log size where softplus is 1


class Found(NamedTuple):
    """What stands out most in each image."""

    heat: Tensor  # (B, 1)
    where: Tensor  # (B, 3), log s of an object there, and its centre (x, y) in canvas units
    levels: tuple[Tensor, ...]  # the residual in each level, (B, C, P, Q)


class Level(Constants):
    """One level of the pyramid: the image, shrunk or enlarged so that objects of one size have OBJECT_PIXELS."""

    shrink: Tensor  # (P, x_size), weights of the image's pixels in the level's
    places: Tensor  # (places, 3), log s and centre (x, y) of every place

    def __init__(self, x_size: int, log_scale: float) -> None:
        """Args: x_size: side in pixels of the usual images; log_scale: log s of the level's objects."""
        super().__init__()
        self.x_size, self.log_scale = x_size, log_scale
        self.place_constants()

    def constants(self) -> dict[str, Tensor]:
        return {"shrink": self._shrink_of(self.x_size), "places": self._places_of(self.x_size, self.x_size)}

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) of any size -> the level's images (B, C, P, Q)."""
        height, width = images.shape[-2:]
        if height == width == self.x_size:
            return self.shrink @ images @ self.shrink.T
        rows, columns = (self._shrink_of(side).to(self.shrink) for side in (height, width))
        return rows @ images @ columns.T

    def places_in(self, height: int, width: int) -> Tensor:
        """log s and centre of every place of images of this height and width: (places, 3)."""
        if height == width == self.x_size:
            return self.places
        return self._places_of(height, width).to(self.places)

    def _pixels(self, side: int) -> int:
        """A side of the level in pixels, of an image's."""
        return max(1, round(side * OBJECT_PIXELS * math.exp(self.log_scale) / self.x_size))

    def _shrink_of(self, side: int) -> Tensor:
        """Linear interpolation, averaged over as many pixels as one of the level covers: (P, side), float64."""
        pixels = self._pixels(side)
        middle = centres_of(pixels) * side / 2  # of the level's pixels, in the image's
        away = (middle[:, None] - centres_of(side) * side / 2).abs()
        weights = (1 - away / max(1.0, side / pixels)).clamp(min=0)
        return weights / weights.sum(-1, keepdim=True)

    def _places_of(self, height: int, width: int) -> Tensor:
        """(places, 3), float64."""
        x, y = (centres_of(self._pixels(side))[::STRIDE] * side / self.x_size for side in (width, height))
        xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
        return F.pad(xy, (1, 0), value=self.log_scale)


class Contrast(nn.Module):
    """A convolution with a non-linearity, less its response to black.

    So black is 0 in every layer, as is what the convolutions pad with: beyond the border of an image lies more of its
    ground. Otherwise the border itself has heat, faint objects have less, and large ones are not recognised near it.
    """

    def __init__(self, inputs: int, outputs: int, size: int, act: nn.Module, stride: int = 1, dilation: int = 1
                 ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2 * dilation, dilation)
        self.act = act

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, P, Q) -> (B, F, P', Q')."""
        features = self.conv(images)
        assert self.conv.bias is not None
        return self.act(features) - self.act(self.conv.bias.to(features.dtype)[None, :, None, None])


class Pyramid(nn.Module):
    """Which place stands out most, and of what size is the object there?

    Convolutions over the middle level compute the heat of every place. The attention is a softmax of the heat,
    restricted to the surroundings of the hottest place: the mean of a plain softmax over two equally hot places would
    lie between them, where there is no object.

    Heat needs to see no more than a part of a large object: heat of a wider view is learned far more slowly. So where
    sizes vary by more than LEVEL_RANGE, a wider convolution adds what it cannot know, the size and the centre of the
    object that a place belongs to. Both are continuous. The choice of a level by its heat is not: parts of a large
    object that stand out in a finer level become objects of their own, and no gradient says otherwise.
    """

    def __init__(self, channels: int, x_size: int, log_scales: Sequence[float], non_linearity: str) -> None:
        """Build the convolutions.

        Args:
            channels: C.
            x_size: side in pixels of the usual images.
            log_scales: log s of the objects of each level, ascending; an odd number.
            non_linearity: the name of a class in torch.nn.
        """
        super().__init__()
        act = non_linearity_class(non_linearity)
        self.net = nn.Sequential(Contrast(channels, 16, 5, act(), STRIDE),
                                 Contrast(16, FEATURES, 3, act(), dilation=2))
        # At initialisation, heat is the mean of the features: strong features mean that something stands out.
        self.heat = nn.Parameter(torch.full((1, FEATURES, 1, 1), 1 / FEATURES))
        self.wider = None
        if len(log_scales) > 1:
            self.wider = Contrast(FEATURES, FEATURES, 3, act(), dilation=4)
            self.where = nn.Conv2d(FEATURES, 3, 1)
            for parameter in self.where.parameters():  # at first, every place is the centre of an object of middle size
                nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        self.log_scales = tuple(log_scales)
        self.levels = nn.ModuleList(Level(x_size, log_scale) for log_scale in log_scales)
        self.middle = len(log_scales) // 2
        # Of log s, either side of the middle level's: twice what the levels cover, since a tanh is slow near its ends.
        self.span = log_scales[-1] - log_scales[0] + LEVEL_RANGE

    def forward(self, images: Tensor) -> Found:
        """Images (B, C, H, W) of any size -> what stands out most in each."""
        levels, middle = self.shrunk(images), self.levels[self.middle]
        assert isinstance(middle, Level)
        place = middle.places_in(*images.shape[-2:])  # (places, 3)
        near = self.net(levels[self.middle])
        wider = None if self.wider is None else self.wider(near).to(images.dtype)
        with full_precision(images):
            heat = F.conv2d(near.to(images.dtype), self.heat).flatten(1)  # (B, places)
            hottest = heat.argmax(-1)
            where, log_s = place, place[:1, :1]
            if wider is not None:
                where = self._look_around(place, wider)  # (B, places, 3)
                log_s = where[..., 0].detach().gather(1, hottest[:, None])  # (B, 1)
            offset = (place - place[hottest][:, None])[..., 1:].square()
            # in units of the reach, which is in proportion to the size
            away = offset.sum(-1) * ((2 * log_s).exp() / (2 * REACH)**2)  # (B, places)
            # a_p ∝ exp(heat_p - distance_p² / 2)
            attention = torch.sub(heat, away, alpha=0.5).softmax(-1)
            # amax shares its gradient among equal places, as all are in an empty image; max would teach one of them.
            return Found(heat.amax(-1, keepdim=True), (attention[:, None] @ where)[:, 0], levels)

    def shrunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) of any size in each level, (B, C, P, Q)."""
        with full_precision(images):
            return tuple(level(images) for level in self.levels)

    def _look_around(self, place: Tensor, wider: Tensor) -> Tensor:
        """The size and the centre of the object that each place belongs to.

        Args:
            place: (places, 3), log s and centre of an object of the middle size at each place.
            wider: features (B, F, P, Q).
        Returns:
            (B, places, 3), log s at most `span` larger or smaller, the centre at most half a side away.
        """
        around = self.where(wider).flatten(2).transpose(1, 2).tanh()  # (B, places, 3)
        log_s = place[:, :1] + self.span * around[..., :1]
        return torch.cat((log_s, place[:, 1:] + (-log_s).exp() * around[..., 1:]), -1)


class SearchState(NamedTuple):
    """What the steps share."""

    levels: tuple[Tensor, ...] | None  # the images in each level, (B K, C, P, Q); None where no step reads the canvas


class SearchGuide(Constants, Guide):
    """Find what stands out in the residual, look at it closely, and propose an object there.

    z_where is Normal in (log s, x, y of the centre), whatever the image's size.

    The end of a long stroke, which the window of its object does not cover, looks like a small object. Two things tell
    them apart that a glimpse of the residual does not show: how large it is, and whether it goes on in what has been
    painted already. So a step also reads a glimpse of the canvas, unless `canvas_glimpse` is False. From it the guide
    learns how often objects, and how often leftovers, lie beside painted objects; in a crowd these shares differ.
    """

    reads_residual = True
    reads_latents = False
    teaches = False  # half of the cost of the convolutions, and the objects are found as well without it
    reads_any_size = True

    prior_loc: Tensor  # (3,), of (log s, x, y)
    glimpse_where: Tensor  # (3,), added to an object's makes its glimpse's
    centre: Tensor  # (3,), 1 for the numbers that are lengths in the image
    correction: Tensor  # (3,), what an output of 1 changes, for an object of s = 1
    spread: Tensor  # (3,), standard deviations in units of the prior's, for an object of s = 1

    def __init__(self, channels: int, x_size: int, where_loc: Sequence[float], where_scale: Sequence[float],
                 non_linearity: str, canvas_glimpse: bool = True, hidden: Sequence[int] = HIDDEN) -> None:
        """Build the networks.

        Args:
            channels: C.
            x_size: side in pixels of the images of training.
            where_loc, where_scale: of the prior of (log s, x, y of the centre). Proposals are relative to it, and the
                pyramid covers its scales.
            non_linearity: the name of a class in torch.nn.
            canvas_glimpse: whether steps read a glimpse of the canvas.
            hidden: layer sizes between the glimpses and the proposal.
        """
        super().__init__()
        self.canvas_glimpse = canvas_glimpse
        self.x_size, self.where_loc, self.where_scale = x_size, tuple(where_loc), tuple(where_scale)
        self.pyramid = Pyramid(channels, x_size, log_scales(where_loc[0], where_scale[0]), non_linearity)
        self.glimpse = PixelGrid(GLIMPSE_SIZE)
        self.mlp = MLP((1 + canvas_glimpse) * channels * GLIMPSE_SIZE**2 + 2, [*hidden, 1 + 3 + 3], non_linearity)
        self.place_constants()

    def constants(self) -> dict[str, Tensor]:
        prior_scale, spread = (torch.tensor(each, dtype=torch.float64) for each in (
            self.where_scale, (GROWTH, SHIFT, SHIFT)))
        return {"prior_loc": torch.tensor(self.where_loc, dtype=torch.float64),
                "glimpse_where": torch.tensor((-math.log(GLIMPSE_MARGIN), 0, 0), dtype=torch.float64),
                "centre": torch.tensor((0, 1, 1), dtype=torch.float64),
                "correction": torch.tensor((0.5, 1, 1), dtype=torch.float64), "spread": spread / prior_scale}

    def start(self, images: Tensor, particles: int) -> SearchState:
        if not self.canvas_glimpse:
            return SearchState(None)
        return SearchState(tuple(fold(level, particles) for level in self.pyramid.shrunk(images)))

    def step(self, state: SearchState, residual: Tensor, previous_latents: Sequence[Tensor]
             ) -> tuple[Proposal, SearchState]:
        return self(residual, state.levels), state

    def z_where(self, where: Tensor) -> Tensor:
        return from_centre(where)

    def normal_where(self, z_where: Tensor) -> Tensor:
        return to_centre(z_where)

    def size_unit(self, size: Tensor) -> Tensor:
        return torch.ones_like(size)

    def forward(self, residual: Tensor, levels: Sequence[Tensor] | None) -> Proposal:
        """Propose an object.

        Args:
            residual: (B, C, H, W).
            levels: as in the state.
        """
        found = self.pyramid(residual)
        shown = found.levels
        if levels is not None:  # with the canvas
            shown = tuple(torch.cat((left, image - left), 1) for image, left in zip(levels, found.levels))
        # Through the glimpses, heat learns what the corrections will do; without, it learns far more slowly.
        glimpses = self._read(shown, found.where, residual.shape[-2:])
        size = (found.where[:, :1] - self.prior_loc[:1]) / self.where_scale[0]
        outputs = self.mlp(torch.cat((glimpses.flatten(1), found.heat, size), -1)).to(residual.dtype)
        logit, loc, scale = outputs.split((1, 3, 3), -1)
        size = (-found.where[:, :1] * self.centre).exp()  # (B, 3), half of an object's side for its centre, else 1
        return Proposal(logit, torch.addcmul(found.where - self.prior_loc, size * self.correction, loc),
                        F.softplus(scale) * (size * self.spread))

    def _read(self, levels: Sequence[Tensor], found: Tensor, size: Sequence[int]) -> Tensor:
        """Glimpses of what was found, each in the level of its size.

        There an object has about as many pixels as in the glimpse. In the image itself it may have many more, and
        would be read with gaps.

        Args:
            levels: what to read, in each level, (B, F, P, Q).
            found: (B, 3), log s and centre.
            size: height and width of the images.
        Returns:
            (B, F, g, g).
        """
        where = from_centre(found + self.glimpse_where)
        span = size[1] / self.x_size, size[0] / self.x_size
        glimpses = [sample(level, where, self.glimpse.xy, span)[0] for level in levels]
        glimpse, log_s = glimpses[0], found[:, :1, None, None]
        for below, above, finer in zip(self.pyramid.log_scales, self.pyramid.log_scales[1:], glimpses[1:]):
            glimpse = torch.where(log_s > (below + above) / 2, finer, glimpse)
        return glimpse


def log_scales(mean: float, sd: float) -> list[float]:
    """The levels' log s for a prior of log s: an odd number, evenly spaced, as few as cover the sizes within PRIOR_SDS
    of the mean if each covers LEVEL_RANGE.
    """
    span = 2 * PRIOR_SDS * sd
    levels = 2 * math.ceil((span / LEVEL_RANGE - 1) / 2) + 1
    return [mean + span * ((level + 0.5) / levels - 0.5) for level in range(levels)]
