"""AIR's guides: given the image, who proposes the next object?

    recurrent   the paper's AIR: an LSTM that reads the image once
    difference  the paper's DAIR: the LSTM reads, at each step, what the objects so far leave unexplained
    search      convolutions look for what stands out in what is left (air/models/search.py)

Source: Eslami et al. (2016), sections 2.2 and 3.2, for the first two.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from air.models.guide import Guide, Proposal
from air.models.networks import MLP, LSTMState, RecurrentNet
from air.models.search import HIDDEN, SearchGuide

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


def make_guide(name: GuideName, channels: int, x_size: int, where_loc: Sequence[float], where_scale: Sequence[float],
               latents: int, rnn_hidden_size: int, embed_net: Sequence[int] | None, predict_net: Sequence[int],
               non_linearity: str, canvas_glimpse: bool) -> Guide:
    """Build a guide by name.

    Args:
        name: of the guide.
        where_loc, where_scale: of the prior of z_where, in the numbers in which the guide has it Normal.
        latents: 3 + D + 1, the size of `previous_latents` together.
        channels, x_size, rnn_hidden_size, embed_net, predict_net, non_linearity, canvas_glimpse: as in AIR's
            constructor.
    """
    if name == "search":
        return SearchGuide(channels, x_size, where_loc, where_scale, non_linearity, canvas_glimpse,
                           predict_net or HIDDEN)
    rnn = RecurrentNet(channels * x_size**2, embed_net, latents, rnn_hidden_size, non_linearity)
    predict = Predict(rnn_hidden_size, predict_net, non_linearity)
    return RecurrentGuide(rnn, predict) if name == "recurrent" else DifferenceGuide(rnn, predict)
