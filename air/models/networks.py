"""The networks of AIR: MLP, (convolutional) encoders and decoders, the recurrent net of a guide, NVIL's baseline.

Under autocast only the layers run in low precision: every network returns the dtype of its input, so that samples, KLs
and likelihoods are computed in full precision.
"""

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from einops import repeat
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from air.models.layers import Linear, lstm_cell, shared_weights
from air.models.settings import shown


def fold(rows: Tensor, particles: int) -> Tensor:
    """Fold K particles per row into the batch: (B, ...) -> (B K, ...); row b K + k is particle k of row b."""
    return repeat(rows, "b ... -> (b k) ...", k=particles)  # a view for K = 1


@cache
def non_linearity_class(name: str) -> type[nn.Module]:
    """Look up an elementwise function of torch.nn by name, such as "ReLU".

    Raises:
        ValueError: torch.nn has no such class, or it does not map features and feature maps to the same shape.
    """
    found = getattr(nn, name, None) if name.isidentifier() else None
    if isinstance(found, type) and issubclass(found, nn.Module) and _keeps_shapes(found):
        return found
    raise ValueError(f"torch.nn has no non-linearity named {shown(name)}")


def _keeps_shapes(kind: type[nn.Module]) -> bool:
    """Whether a module that is built without arguments maps a batch of vectors and one of images to the same shapes.

    Layers with sizes, losses and containers do not, nor does what chooses a dimension by a guess, such as Softmax.
    """
    try:
        with torch.random.fork_rng([]), torch.device("cpu"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            act = kind()
            return all(torch.isfinite(act(x)).all() and act(x).shape == x.shape
                       for x in (torch.zeros(2, 3), torch.zeros(2, 3, 4, 4)))
    except Exception:  # whatever a class that is no function of one tensor raises
        return False


def _non_linearity(name: str) -> str:
    try:
        non_linearity_class(name)
    except ValueError:
        raise PydanticCustomError("non_linearity", "Input should be the name of a non-linearity in torch.nn") from None
    return name


NonLinearity = Annotated[str, AfterValidator(_non_linearity)]


class MLP(nn.Sequential):
    """Linear layers with a non-linearity between them, and after the last one if `output_non_linearity` is set."""

    def __init__(self, in_size: int, out_sizes: Sequence[int], non_linearity: str,
                 output_non_linearity: bool = False) -> None:
        """Build the layers.

        Args:
            in_size: of the input.
            out_sizes: of each layer's output; at least one.
            non_linearity: the name of a class in torch.nn, such as "ReLU".
            output_non_linearity: also apply the non-linearity to the last layer's output.
        Raises:
            ValueError: `out_sizes` is empty, or torch.nn has no such class.
        """
        if not out_sizes:
            raise ValueError("an MLP needs at least one layer, got no output size")
        act, layers = non_linearity_class(non_linearity), list[nn.Module]()
        for fan_in, fan_out in zip([in_size, *out_sizes], out_sizes):
            layers += [Linear(fan_in, fan_out), act()]
        super().__init__(*(layers if output_non_linearity else layers[:-1]))


class Encoder(nn.Module):
    """q(z_what | glimpse), an MLP."""

    def __init__(self, pixels: int, hidden: Sequence[int], z_what_size: int, non_linearity: str) -> None:
        super().__init__()
        self.mlp = MLP(pixels, [*hidden, 2 * z_what_size], non_linearity)

    def forward(self, glimpse: Tensor) -> tuple[Tensor, Tensor]:
        """Glimpse (B, C, w, w) -> loc and scale of z_what, (B, D) each."""
        loc, scale = self.mlp(glimpse.flatten(1)).to(glimpse.dtype).chunk(2, -1)
        return loc, F.softplus(scale)


class Decoder(nn.Module):
    """z_what -> the mean of the window's pixels, an MLP."""

    def __init__(self, z_what_size: int, hidden: Sequence[int], channels: int, window_size: int,
                 bias: float | None, use_sigmoid: bool, non_linearity: str) -> None:
        super().__init__()
        self.mlp = MLP(z_what_size, [*hidden, channels * window_size**2], non_linearity)
        self.window_shape = (channels, window_size, window_size)
        self.bias = bias
        self.use_sigmoid = use_sigmoid

    def forward(self, z_what: Tensor) -> Tensor:
        """z_what (B, D) -> window (B, C, w, w)."""
        window = self.mlp(z_what).to(z_what.dtype)
        if self.bias is not None:
            window = window + self.bias
        if self.use_sigmoid:
            window = window.sigmoid()
        return window.unflatten(-1, self.window_shape)


class ConvEncoder(nn.Module):
    """q(z_what | glimpse): two strided convolutions, each halving the side, and a linear layer."""

    def __init__(self, channels: int, window_size: int, z_what_size: int, non_linearity: str) -> None:
        """Build the layers. Raises ValueError: `window_size` is not divisible by 4."""
        super().__init__()
        side = _quarter(window_size)
        act = non_linearity_class(non_linearity)
        self.net = nn.Sequential(nn.Conv2d(channels, 32, 4, 2, 1), act(), nn.Conv2d(32, 64, 4, 2, 1), act(),
                                 nn.Flatten(), Linear(64 * side**2, 2 * z_what_size))

    def forward(self, glimpse: Tensor) -> tuple[Tensor, Tensor]:
        """Glimpse (B, C, w, w) -> loc and scale of z_what, (B, D) each."""
        loc, scale = self.net(glimpse).to(glimpse.dtype).chunk(2, -1)
        return loc, F.softplus(scale)


class ConvDecoder(nn.Module):
    """z_what -> the mean of the window's pixels: a linear layer and two convolutions that double the side."""

    def __init__(self, channels: int, window_size: int, z_what_size: int, non_linearity: str) -> None:
        """Build the layers. Raises ValueError: `window_size` is not divisible by 4."""
        super().__init__()
        side = _quarter(window_size)
        act = non_linearity_class(non_linearity)
        self.net = nn.Sequential(Linear(z_what_size, 64 * side**2), act(), nn.Unflatten(-1, (64, side, side)),
                                 nn.ConvTranspose2d(64, 32, 4, 2, 1), act(),
                                 nn.ConvTranspose2d(32, channels, 4, 2, 1))

    def forward(self, z_what: Tensor) -> Tensor:
        """z_what (B, D) -> window (B, C, w, w)."""
        return self.net(z_what).to(z_what.dtype)


def _quarter(window_size: int) -> int:
    if window_size % 4:
        raise ValueError(f"the convolutional networks halve the window's side twice: window_size must be divisible by "
                         f"4, got {window_size} pixels")
    return window_size // 4


# What each step of a guide reads besides the image: the latents of the step before, (B, ·) each.
History = Sequence[Sequence[Tensor]]


class LSTMState(NamedTuple):
    """The state of an LSTM cell."""

    h: Tensor  # (B, R); (1, R) before the first step
    c: Tensor  # (B, R)


class RecurrentNet(nn.Module):
    """An LSTM cell whose input is (embedded image, latents of the previous step).

    The image's product with the input weights is nearly all of the cell's arithmetic, and the image is the same at
    every step. So `read` computes it once, and a step multiplies only h and the latents.
    """

    def __init__(self, pixels: int, embed_net: Sequence[int] | None, latents: int, hidden_size: int,
                 non_linearity: str) -> None:
        """Build the cell.

        Args:
            pixels: C H W.
            embed_net: layer sizes of an MLP that embeds the image; None: the cell reads the pixels.
            latents: L, size of what a step reads besides the image.
            hidden_size: R, size of h and c.
            non_linearity: of `embed_net`; the name of a class in torch.nn.
        """
        super().__init__()
        self.embed = nn.Identity() if embed_net is None else MLP(pixels, embed_net, non_linearity, True)
        features = pixels if embed_net is None else embed_net[-1]
        self.image_gates = Linear(features, 4 * hidden_size)
        self.step_gates = Linear(hidden_size + latents, 4 * hidden_size, bias=False)
        for parameter in (*self.image_gates.parameters(), *self.step_gates.parameters()):
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))  # as in nn.LSTMCell
        self.h_init = nn.Parameter(torch.zeros(1, hidden_size))
        self.c_init = nn.Parameter(torch.zeros(1, hidden_size))

    def read(self, images: Tensor, particles: int = 1) -> tuple[Tensor, LSTMState]:
        """Compute the image's part of the gates, once per image.

        Args:
            images: (B, C, H, W), or features (B, F) if the net was built for them.
            particles: K; the result is repeated for each.
        Returns:
            The gates' part (B K, 4 R) and the state before the first step.
        """
        gates = fold(self.image_gates(self.embed(images.flatten(1))), particles)
        return gates, LSTMState(self.h_init, self.c_init.expand(gates.shape[0], -1))

    def forward(self, image_gates: Tensor, latents: Sequence[Tensor], state: LSTMState) -> LSTMState:
        """Take one step: the image's gates (B, 4 R), the previous step's latents and state -> next state.

        Args:
            image_gates: (B, 4 R), from `read`.
            latents: (B, ·) each, or (1, ·) if all rows share them; L numbers together.
            state: from `read` or the previous step.
        """
        parts = [state.h, *latents]
        batch = image_gates.shape[0]  # not len, which torch.export takes for a constant
        if not all(part.shape[0] == 1 for part in parts):
            parts = [part.expand(batch, -1) for part in parts]
        read = torch.cat(parts, -1).expand(batch, -1)
        gates = self.step_gates(read, plus=image_gates)
        return LSTMState(*lstm_cell(gates.to(state.c.dtype), state.c))


class Baseline(nn.Module):
    """NVIL's input-dependent baseline b_t(x, z_{<t}): a separate recurrent net and an MLP with one output per step.

    Source: Mnih & Gregor (2014), section 2.3.1; Eslami et al. (2016), appendix.
    """

    def __init__(self, rnn: RecurrentNet, hidden_size: int, hidden: Sequence[int], non_linearity: str,
                 scalar: float | None) -> None:
        """Build around a recurrent net.

        Args:
            rnn: the baseline's own.
            hidden_size: of `rnn`.
            hidden: layer sizes of the MLP between h and the output.
            non_linearity: the name of a class in torch.nn.
            scalar: multiplies the output, for targets far from the order of 1 (the reference's baseline_scalar).
        """
        super().__init__()
        self.rnn = rnn
        self.predict = MLP(hidden_size, [*hidden, 1], non_linearity)
        self.scalar = 1.0 if scalar is None else scalar

    def forward(self, images: Tensor, history: History, particles: int = 1) -> Tensor:
        """Predict the learning signal.

        Args:
            images: (B, C, H, W).
            history: what each of the guide's N steps has read besides the image, for K particles.
            particles: K.
        Returns:
            b_t, (B K, N) in nats.
        """
        with shared_weights():
            image_gates, state = self.rnn.read(images, particles)
            outputs = []
            for latents in history:
                state = self.rnn(image_gates, latents, state)
                outputs.append(state.h)
        baseline = self.predict(torch.stack(outputs, 1)).squeeze(-1).to(images.dtype)
        return baseline if self.scalar == 1 else self.scalar * baseline
