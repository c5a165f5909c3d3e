"""Guides for 3D scenes: networks that propose the next object.

Every guide follows one protocol (`SceneGuide`):

    state = guide.start(residual, particles)
    proposal, state = guide.step(state, residual, previous_latents)      # for t = 1..N

The residual is CONTRAST times the image minus the empty table or, if the guide looks for what is left, minus a
rendering of the objects found so far. Whether it is updated between steps is the model's choice (`SceneAIR`).

Shape letters: B images, K particles, S shapes, D = WHERE + TURN continuous latents of an object, L = LATENTS.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from air.models.guides import GuideName
from air.models.layers import Linear
from air.models.networks import MLP, LSTMState, RecurrentNet, fold, non_linearity_class
from air.models.spatial import SpatialTransformer
from air.scenes3d.attention import Attention
from air.scenes3d.shapes import SHAPES, SYMMETRIES
from air.scenes3d.view import REACH, View, unproject, unprojection

ROTATABLE = tuple(index for index, order in enumerate(SYMMETRIES) if order)  # shapes whose rotation can be seen
WHERE, TURN = 2 * len(SHAPES), 2 * len(ROTATABLE)  # numbers of an object: two per shape, and two per rotatable shape
LATENTS = 1 + len(SHAPES) + WHERE + TURN  # what a step passes to the next: z_pres, q(what), where, turn
OUTPUTS = LATENTS + WHERE + TURN  # of a guide's last layer: where and turn have a loc and a scale

MIN_POWER = 0.25  # places with less than this share of the strongest place's power are not looked at
GLIMPSE_SIZE = 24  # side of a glimpse in pixels
GLIMPSE_MARGIN = 1.8  # a glimpse's side over the diagonal of a box's base, for an object at the centre of the image
MAX_PLACE = 0.98  # share of REACH to which the search guide clamps where it looks: erf⁻¹ is infinite at 1


class Proposal(NamedTuple):
    """What a guide proposes for the next object, the outputs of its last layer made into parameters of q."""

    logits: Tensor  # (B K, 1), of q(z_pres_t = 1 | z_pres_{t-1} = 1)
    what: Tensor  # (B K, S), logits of q(what)
    loc: Tensor  # (B K, D), of where and turn
    scale: Tensor  # (B K, D), of where and turn, positive

    @classmethod
    def from_outputs(cls, outputs: Tensor) -> "Proposal":
        """Split the outputs of a guide's last layer, (B K, OUTPUTS)."""
        logits, what, loc, scale = outputs.split((1, len(SHAPES), WHERE + TURN, WHERE + TURN), -1)
        return cls(logits, what, loc, F.softplus(scale))


class SceneGuide(nn.Module, ABC):
    """The protocol of guides. `start` and `step` are pure: everything they remember is in the state they return."""

    @abstractmethod
    def start(self, residual: Tensor, particles: int) -> Any:
        """Look at images for the first time.

        Args:
            residual: (B, 3, H, W), each image once.
            particles: K, independent runs of the guide per image.
        Returns:
            The state before the first step, with B K rows; row b K + k is particle k of image b.
        """

    @abstractmethod
    def step(self, state: Any, residual: Tensor | None, previous_latents: Sequence[Tensor]) -> tuple[Proposal, Any]:
        """Propose the next object.

        Args:
            state: from `start` or the last `step`.
            residual: (B K, 3, H, W), or None if it has not changed since the guide last read it.
            previous_latents: z_pres, q(what), where and turn of the step before, (B K, ·) each, L numbers together; at
                the first step one row of zeros.
        Returns:
            The proposal and the next state.
        """


class RecurrentState(NamedTuple):
    """What `SceneRecurrentGuide` remembers."""

    features: Tensor  # (B K, features), of the residual
    gates: Tensor  # (B K, 4 R), the features' share of the LSTM's gates
    hidden: LSTMState  # h and c of the LSTM


class SceneRecurrentGuide(SceneGuide):
    """Convolutions read the whole image, an LSTM runs over the steps, as in the paper.

    Source: Eslami et al. (2016), sections 2 and 3.3.
    """

    def __init__(self, view: View, features: int, rnn_hidden_size: int, hidden: Sequence[int],
                 non_linearity: str) -> None:
        """Build the networks.

        Args:
            view: gives the images' size.
            features: output size of the convolutional encoder.
            rnn_hidden_size: R, of the LSTM.
            hidden: hidden layers' sizes of the MLP that makes the proposal.
            non_linearity: the name of a class in torch.nn.
        """
        super().__init__()
        act, side = non_linearity_class(non_linearity), view.image_size // 8
        self.encoder = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), act(), nn.Conv2d(32, 64, 4, 2, 1), act(),
                                     nn.Conv2d(64, 64, 4, 2, 1), act(), nn.Flatten(),
                                     Linear(64 * side**2, features), act())
        self.rnn = RecurrentNet(features, None, LATENTS, rnn_hidden_size, non_linearity)
        self.predict = MLP(rnn_hidden_size + features, [*hidden, OUTPUTS], non_linearity)
        # With PyTorch's smaller default weights all images look alike at first, and the guide learns to ignore them.
        for parameter in (*self.encoder.parameters(), *self.predict.parameters()):
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)

    def start(self, residual: Tensor, particles: int) -> RecurrentState:
        """Encode each image once; arguments as for `SceneGuide.start`."""
        features = self.encoder(residual).to(residual.dtype)
        gates, hidden = self.rnn.read(features, particles)
        return RecurrentState(fold(features, particles), gates, hidden)

    def step(self, state: RecurrentState, residual: Tensor | None, previous_latents: Sequence[Tensor]
             ) -> tuple[Proposal, RecurrentState]:
        """Run the LSTM for one step; arguments as for `SceneGuide.step`."""
        features, gates, hidden = state
        if residual is not None:
            features = self.encoder(residual).to(residual.dtype)
            gates, _ = self.rnn.read(features)
        hidden = self.rnn(gates, previous_latents, hidden)
        outputs = self.predict(torch.cat((hidden[0], features), -1)).to(features.dtype)
        return Proposal.from_outputs(outputs), RecurrentState(features, gates, hidden)


class SceneSearchGuide(SceneGuide):
    """Look where the residual stands out most, take a glimpse there, and propose an object from the glimpse.

    There is no memory: the same function is applied wherever an object stands and at every step. What is learned from
    scenes with few objects therefore carries over to scenes with many.

    The proposed place is the point on the table that the centre of the glimpse shows, at the height of the objects'
    centres, plus a correction by the network.
    """

    def __init__(self, view: View, object_size: float, features: int, hidden: Sequence[int],
                 non_linearity: str) -> None:
        """Build the networks.

        Args:
            view: gives the images' size, and relates places in the image to places on the table.
            object_size: half of an object's height, in the world's units.
            features: output size of the glimpse's convolutional encoder.
            hidden: hidden layers' sizes of the MLP that makes the proposal.
            non_linearity: the name of a class in torch.nn.
        """
        super().__init__()
        act = non_linearity_class(non_linearity)
        self.view, self.object_size = view, object_size
        # What the image spans at the distance of the target, in the world's units.
        width = 2 * math.dist(view.camera, view.target) * math.tan(math.radians(view.field_of_view) / 2)
        self.zoom = width / (GLIMPSE_MARGIN * 2 * math.sqrt(2) * object_size)  # s of the glimpse's z_where
        self.attention = Attention(3, view.image_size, width / (2 * object_size), non_linearity, MIN_POWER)
        self.encoder = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), act(), nn.Conv2d(32, 64, 4, 2, 1), act(), nn.Flatten(),
                                     Linear(64 * (GLIMPSE_SIZE // 4)**2, features), act())
        self.predict = MLP(features + 3, [*hidden, OUTPUTS], non_linearity)
        self.transformer = SpatialTransformer(view.image_size, GLIMPSE_SIZE)
        self.homography = unprojection(view, object_size).to(self.attention.heat)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SceneSearchGuide":
        """Convert the guide, as `to` and its like do. The homography is computed anew, in the new precision."""
        super()._apply(fn, recurse)
        self.homography = unprojection(self.view, self.object_size).to(self.attention.heat)
        return self

    def start(self, residual: Tensor, particles: int) -> Tensor:
        """Return the residual, (B K, 3, H, W), which is all that the guide remembers."""
        return fold(residual, particles)

    def step(self, state: Tensor, residual: Tensor | None, previous_latents: Sequence[Tensor]
             ) -> tuple[Proposal, Tensor]:
        """Search the residual; arguments as for `SceneGuide.step`. The previous latents are not used."""
        residual = state if residual is None else residual
        return self(residual), residual

    def forward(self, residual: Tensor) -> Proposal:
        """Propose the object that stands out most in the residual, (B K, 3, H, W)."""
        _, heat, centre = self.attention(residual)
        glimpse_where = F.pad(-self.zoom * centre, (1, 0), value=self.zoom)  # (B K, 3), (s, x, y)
        glimpse, _ = self.transformer.read(residual, glimpse_where)
        features = self.encoder(glimpse).to(residual.dtype)
        outputs = self.predict(torch.cat((features, centre, heat), -1)).to(residual.dtype)
        logits, what, loc, scale = Proposal.from_outputs(outputs)
        # The inverse of place = REACH erf(where / √2), see `SceneAIR.poses`.
        place = unproject(self.homography, centre) / REACH  # (B K, 2)
        where = math.sqrt(2) * place.clamp(-MAX_PLACE, MAX_PLACE).erfinv()
        correction, turn = loc.split((WHERE, TURN), -1)
        return Proposal(logits, what, torch.cat((correction + where.repeat(1, len(SHAPES)), turn), -1), scale)


def make_guide(name: GuideName, view: View, object_size: float, features: int, rnn_hidden_size: int,
               hidden: Sequence[int], non_linearity: str) -> SceneGuide:
    """Build a guide by name.

    Args:
        name: "difference" is the recurrent guide, to be shown the residual of every step.
        view: camera and size of the images.
        object_size: half of an object's height, in the world's units.
        features: output size of the convolutional encoder.
        rnn_hidden_size: of the LSTM; the search guide has none.
        hidden: hidden layers' sizes of the MLP that makes the proposal.
        non_linearity: the name of a class in torch.nn.
    """
    if name == "search":
        return SceneSearchGuide(view, object_size, features, hidden, non_linearity)
    return SceneRecurrentGuide(view, features, rnn_hidden_size, hidden, non_linearity)
