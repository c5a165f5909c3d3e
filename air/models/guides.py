"""AIR's guides: given the image, who proposes the next object?

    recurrent   the paper's AIR: an LSTM that reads the image once
    difference  the paper's DAIR: the LSTM reads, at each step, what the objects so far leave unexplained
    search      convolutions look for what stands out in what is left; a step has no memory (air/models/search.py)

Source: Eslami et al. (2016), sections 2.2 and 3.2, for the first two.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from air.models.guide import Guide, Proposal
from air.models.networks import MLP, LSTMState, RecurrentNet, non_linearity_class
from air.models.search import SearchGuide
from air.models.spatial import PixelGrid, full_precision

GuideName = Literal["recurrent", "difference", "search"]
GUIDES = get_args(GuideName)


class Predict(nn.Module):
    """h -> q(z_pres_t) and q(z_where_t), an MLP."""

    def __init__(self, rnn_hidden_size: int, hidden: Sequence[int], non_linearity: str) -> None:
        super().__init__()
        self.mlp = MLP(rnn_hidden_size, [*hidden, 1 + 3 + 3], non_linearity)

    def forward(self, h: Tensor) -> Proposal:
        """h (B, R) -> the step's proposal."""
        logit, loc, scale = self.mlp(h).to(h.dtype).split((1, 3, 3), -1)
        return Proposal(logit, loc, F.softplus(scale))


class RecurrentState(NamedTuple):
    """Between two steps of the recurrent guide."""

    image_gates: Tensor  # (B K, 4 R), the image's part of the LSTM's gates
    lstm: LSTMState


class RecurrentGuide(Guide):
    """The paper's AIR: an LSTM reads the image and, at each step, the latents of the previous one."""

    reads_residual = False
    reads_latents = True

    def __init__(self, rnn: RecurrentNet, predict: Predict) -> None:
        super().__init__()
        self.rnn = rnn
        self.predict = predict

    def start(self, images: Tensor, particles: int) -> RecurrentState:
        return RecurrentState(*self.rnn.read(images, particles))

    def step(self, state: RecurrentState, residual: Tensor, previous_latents: Sequence[Tensor]
             ) -> tuple[Proposal, RecurrentState]:
        lstm = self.rnn(state.image_gates, previous_latents, state.lstm)
        return self.predict(lstm.h), state._replace(lstm=lstm)


class DifferenceState(NamedTuple):
    """Between two steps of the difference guide."""

    image_gates: Tensor | None  # (B K, 4 R), known before the first step only: later steps read the residual
    lstm: LSTMState


class DifferenceGuide(Guide):
    """The paper's DAIR: the LSTM reads x - canvas_{t-1} at step t."""

    reads_residual = True
    reads_latents = True

    def __init__(self, rnn: RecurrentNet, predict: Predict) -> None:
        super().__init__()
        self.rnn = rnn
        self.predict = predict

    def start(self, images: Tensor, particles: int) -> DifferenceState:
        # Nothing is painted yet, so the particles of an image share the first reading.
        return DifferenceState(*self.rnn.read(images, particles))

    def step(self, state: DifferenceState, residual: Tensor, previous_latents: Sequence[Tensor]
             ) -> tuple[Proposal, DifferenceState]:
        gates = self.rnn.read(residual)[0] if state.image_gates is None else state.image_gates
        lstm = self.rnn(gates, previous_latents, state.lstm)
        return self.predict(lstm.h), DifferenceState(None, lstm)


class Attention(nn.Module):
    """Where in an image does something stand out most?

    Convolutions compute features and a heat for each place of a grid with a stride of four pixels. The attention is
    a softmax of the heat, restricted to the surroundings of the hottest place: the mean of a plain softmax over two
    equally hot places would lie between them, where there is no object.
    """

    features = 32

    def __init__(self, channels: int, x_size: int, scale_mean: float, non_linearity: str, least: float = 0.0) -> None:
        """Build the convolutions.

        Args:
            channels: C.
            x_size: H = W, the image's side in pixels.
            scale_mean: the image's side over an object's.
            non_linearity: the name of a class in torch.nn.
            least: places with less than this share of the brightest place's power (mean square of the surrounding 25
                pixels) are ignored. Otherwise, once little is left, an empty place may become the hottest, and no
                gradient leads from there to an object.
        """
        super().__init__()
        self.least = least
        act = non_linearity_class(non_linearity)
        self.net = nn.Sequential(nn.Conv2d(channels, 16, 5, 2, 2), act(), nn.Conv2d(16, self.features, 3, 2, 1), act(),
                                 nn.Conv2d(self.features, self.features, 3, 1, 2, dilation=2), act())
        self.net.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        # At initialisation, heat is the mean of the features: strong features mean that something stands out.
        self.heat = nn.Parameter(torch.full((self.features,), 1 / self.features))
        self.reach = 2 / (3 * scale_mean)  # a third of an object's side, in [-1, 1] canvas units
        # Heat of the places themselves: it decides which of several objects comes first.
        self.preference = nn.Parameter(torch.zeros(math.ceil(x_size / 4)**2))
        self.places = PixelGrid(x_size, stride=4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend to one place per image.

        Args:
            image: (B, C, H, W).
        Returns:
            Features (B, 32) of that place, the largest heat (B, 1), and the place, (x, y) in [-1, 1], (B, 2).
        """
        features = rearrange(self.net(image).to(image.dtype), "b f h w -> b (h w) f")
        places = self.places.xy.flatten(0, 1)  # (places, 2)
        with full_precision(image):
            heat = features @ self.heat + self.preference  # (B, places)
            if self.least:
                power = rearrange(F.avg_pool2d(image.square().sum(1, keepdim=True), 5, 4, 2), "b 1 h w -> b (h w)")
                heat = heat.masked_fill(power < self.least * power.amax(-1, keepdim=True), -math.inf)
            away = (places - places[heat.argmax(-1)][:, None]).square().sum(-1)  # (B, places)
            # a_p ∝ exp(heat_p - |p - hottest|² / (2 reach²))
            attention = torch.sub(heat, away, alpha=1 / (2 * self.reach**2)).softmax(-1)
            # amax shares its gradient among equal places, as all are in an empty image; max would teach one of them.
            largest = heat.amax(-1, keepdim=True)
            return (attention[:, None] @ features).squeeze(1), largest, attention @ places


def make_guide(name: GuideName, channels: int, x_size: int, where_loc: Sequence[float], where_scale: Sequence[float],
               latents: int, rnn_hidden_size: int, embed_net: Sequence[int] | None, predict_net: Sequence[int],
               non_linearity: str) -> Guide:
    """Build a guide by name.

    Args:
        name: of the guide.
        where_loc, where_scale: of the prior of z_where, in the numbers in which the guide has it Normal.
        latents: 3 + D + 1, the size of `previous_latents` together.
        channels, x_size, rnn_hidden_size, embed_net, predict_net, non_linearity: as in AIR's constructor.
    """
    if name == "search":
        return SearchGuide(channels, x_size, where_loc, where_scale, non_linearity)
    rnn = RecurrentNet(channels * x_size**2, embed_net, latents, rnn_hidden_size, non_linearity)
    predict = Predict(rnn_hidden_size, predict_net, non_linearity)
    return RecurrentGuide(rnn, predict) if name == "recurrent" else DifferenceGuide(rnn, predict)
