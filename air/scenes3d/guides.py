"""Guides of 3D scenes: what gives a step's presence, shape, place and turn from what the image shows.

Both make the same numbers of an image less the empty table, or less what is found so far: the logit of z_pres, the
logits of the shapes, and loc and scale of where and turn, every shape's.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from air.models.networks import MLP, Attention, RecurrentNet, fold, non_linearity_class
from air.models.spatial import image_to_window
from air.scenes3d.renderer import REACH, SHAPES, View, on_plane

# What is left, (B, 3, H, W), or None where it is as before, and the latents of the step before -> a step's numbers.
Step = Callable[[Tensor | None, Tensor], Tensor]
LEAST = 0.25  # of the power of where most is left: what has less is not looked at
GLIMPSE = 24  # a side, in pixels
ROOM = 1.8  # a glimpse's side over the widest an object can be, a box's diagonal, in the middle of the table
EDGE = 0.98  # of the table: a place that is seen further out is taken for one that is this far out


class Overview(nn.Module):
    """The whole image through convolutions, and a recurrent net over the steps, as in the paper."""

    def __init__(self, view: View, features: int, rnn_hidden_size: int, latents: int, hidden: Sequence[int],
                 outputs: int, non_linearity: str) -> None:
        super().__init__()
        act, side = non_linearity_class(non_linearity), view.image_size // 8
        self.see = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), act(), nn.Conv2d(32, 64, 4, 2, 1), act(),
                                 nn.Conv2d(64, 64, 4, 2, 1), act(), nn.Flatten(), nn.Linear(64 * side**2, features),
                                 act())
        self.rnn = RecurrentNet(features, None, latents, rnn_hidden_size, non_linearity)
        self.predict = MLP(rnn_hidden_size + features, [*hidden, outputs], non_linearity)
        for parameter in (*self.see.parameters(), *self.predict.parameters()):
            if parameter.ndim > 1:  # so large, or all images would look alike, and what ignores them be learned first
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)

    def start(self, left: Tensor, particles: int) -> Step:
        """Read images (B, 3, H, W) for K particles each; the steps have B K rows."""
        seen = self.see(left).to(left.dtype)
        gates, state = self.rnn.read(seen, particles)
        seen = fold(seen, particles)

        def step(left: Tensor | None, before: Tensor) -> Tensor:
            nonlocal seen, gates, state
            if left is not None:
                seen = self.see(left).to(left.dtype)
                gates, _ = self.rnn.read(seen)
            state = self.rnn(gates, before, state)
            return self.predict(torch.cat((state[0], seen), -1)).to(seen.dtype)
        return step


class SceneSearch(nn.Module):
    """Where what is left stands out most, a glimpse of it, and what that shows: the same wherever an object stands and
    whichever step it is, so that what was learned from few objects holds for many.

    The glimpse's middle is on the table where its ray meets the height of the objects' middles; the net corrects that.
    """

    def __init__(self, view: View, object_size: float, features: int, hidden: Sequence[int], outputs: int,
                 non_linearity: str) -> None:
        super().__init__()
        act = non_linearity_class(non_linearity)
        self.view, self.object_size = view, object_size
        width = 2 * math.dist(view.camera, view.target) * math.tan(math.radians(view.field_of_view) / 2)
        self.zoom = width / (ROOM * 2 * math.sqrt(2) * object_size)  # of a glimpse, s in z_where
        self.attention = Attention(3, view.image_size, width / (2 * object_size), non_linearity, LEAST)
        self.see = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), act(), nn.Conv2d(32, 64, 4, 2, 1), act(), nn.Flatten(),
                                 nn.Linear(64 * (GLIMPSE // 4)**2, features), act())
        self.predict = MLP(features + 3, [*hidden, outputs], non_linearity)
        self.at_places = slice(1 + len(SHAPES), 1 + 3 * len(SHAPES))  # of the outputs: the places' loc

    def start(self, left: Tensor, particles: int) -> Step:
        """As of Overview, but that nothing is remembered from step to step."""
        first = fold(left, particles)

        def step(left: Tensor | None, before: Tensor) -> Tensor:
            return self(first if left is None else left)
        return step

    def forward(self, left: Tensor) -> Tensor:
        """What is left (B, 3, H, W) -> a step's numbers (B, outputs)."""
        _, hottest, centre = self.attention(left)
        glimpse = image_to_window(left, torch.cat((torch.full_like(hottest, self.zoom), -self.zoom * centre), -1),
                                  GLIMPSE)
        out = self.predict(torch.cat((self.see(glimpse).to(left.dtype), centre, hottest), -1)).to(left.dtype)
        place = on_plane(self.view, centre, self.object_size) / REACH
        loc = math.sqrt(2) * place.clamp(-EDGE, EDGE).erfinv()  # of a standard Normal, uniform over the table
        before, offset, after = out.tensor_split((self.at_places.start, self.at_places.stop), -1)
        return torch.cat((before, offset + loc.repeat(1, len(SHAPES)), after), -1)
