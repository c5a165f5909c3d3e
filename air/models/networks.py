"""The networks: MLP, Encoder and Decoder, the same with convolutions, Predict, the recurrent net that reads an image
once, Search, which stands in for these two, and NVIL's Baseline.

Under autocast only the layers run in low precision: each network gives back the dtype of what it read, so that samples,
KLs and likelihoods are computed in full.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from air.models.spatial import pixel_centres

State = tuple[Tensor, Tensor]  # h and c of an LSTM, each (B, rnn_hidden_size)
Product = Callable[[Tensor], Tensor]


def fold(rows: Tensor, particles: int) -> Tensor:
    """K particles of each row, in the batch's dimension: (B, ...) -> (B K, ...), row b K + k is the k-th of row b."""
    return rows[:, None].expand(-1, particles, *rows.shape[1:]).flatten(0, 1)  # no copy for K = 1


def shared_products(weight: Tensor, rows: Sequence[int]) -> list[Product]:
    """Products x -> x Wᵀ with one weight, each to be used once, as steps do that follow one from the other.

    Their gradients for the weight, each of its size and from a batch alone, are taken as one product of all batches,
    which is faster on a CPU, by a quarter of DAIR's step. The numbers are those of F.linear.

    Args:
        weight: (out, in).
        rows: of each x, (rows, in).
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(weight.device.type) or not torch.is_grad_enabled():
        return [partial(F.linear, weight=weight)] * len(rows)
    return [partial(_Product.apply, token, weight.detach()) for token in _Shared.apply(weight, *rows)]


class _Shared(torch.autograd.Function):
    """A weight -> a token for each product with it; a token's gradient holds the product's and its x, row by row."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, *rows: int) -> tuple[Tensor, ...]:
        ctx.out = len(weight)
        return tuple(weight.new_zeros(()).expand(each, sum(weight.shape)) for each in rows)

    @staticmethod
    def backward(ctx: Any, *both: Tensor) -> tuple[Tensor | None, ...]:
        gradient, x = torch.cat(both).tensor_split((ctx.out,), 1)
        return gradient.T @ x, *(None for _ in both)


class _Product(torch.autograd.Function):
    """x Wᵀ."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return torch.cat((gradient, x), 1), None, gradient @ weight if ctx.needs_input_grad[2] else None


def non_linearity_class(name: str) -> type[nn.Module]:
    """The class of torch.nn by that name. Raises ValueError: there is none."""
    if not hasattr(nn, name):
        raise ValueError(f"torch.nn has no non-linearity named {name!r}")
    return getattr(nn, name)


class MLP(nn.Sequential):
    """Linear layers with a non-linearity between them; after the last one too where `output_non_linearity`."""

    def __init__(self, in_size: int, out_sizes: Sequence[int], non_linearity: str,
                 output_non_linearity: bool = False) -> None:
        """Args: non_linearity: the name of a class in torch.nn, "ReLU" for instance.

        Raises:
            ValueError: there is no layer, or torch.nn has no such class.
        """
        if not out_sizes:
            raise ValueError("an MLP needs at least one layer, got no output size")
        act, layers = non_linearity_class(non_linearity), list[nn.Module]()
        for fan_in, fan_out in zip([in_size, *out_sizes], out_sizes):
            layers += [nn.Linear(fan_in, fan_out), act()]
        super().__init__(*(layers if output_non_linearity else layers[:-1]))


class Encoder(nn.Module):
    """q(z_what | glimpse)."""

    def __init__(self, pixels: int, hidden: Sequence[int], z_what_size: int, non_linearity: str) -> None:
        super().__init__()
        self.mlp = MLP(pixels, [*hidden, 2 * z_what_size], non_linearity)

    def forward(self, glimpse: Tensor) -> tuple[Tensor, Tensor]:
        """Glimpse (B, C, w, w) -> loc and scale of z_what, (B, D) each."""
        loc, scale = self.mlp(glimpse.flatten(1)).to(glimpse.dtype).chunk(2, -1)
        return loc, F.softplus(scale)


class Decoder(nn.Module):
    """The mean of the window's pixels given z_what."""

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
    """q(z_what | glimpse) by two convolutions, each of which halves the side, and a linear layer."""

    def __init__(self, channels: int, window_size: int, z_what_size: int, non_linearity: str) -> None:
        """Raises ValueError: the window's side cannot be halved twice."""
        super().__init__()
        side = _quarter(window_size)
        act = non_linearity_class(non_linearity)
        self.net = nn.Sequential(nn.Conv2d(channels, 32, 4, 2, 1), act(), nn.Conv2d(32, 64, 4, 2, 1), act(),
                                 nn.Flatten(), nn.Linear(64 * side**2, 2 * z_what_size))

    def forward(self, glimpse: Tensor) -> tuple[Tensor, Tensor]:
        """Glimpse (B, C, w, w) -> loc and scale of z_what, (B, D) each."""
        loc, scale = self.net(glimpse).to(glimpse.dtype).chunk(2, -1)
        return loc, F.softplus(scale)


class ConvDecoder(nn.Module):
    """The mean of the window's pixels given z_what, by a linear layer and two convolutions that double the side."""

    def __init__(self, channels: int, window_size: int, z_what_size: int, non_linearity: str) -> None:
        """Raises ValueError: the window's side cannot be halved twice."""
        super().__init__()
        side = _quarter(window_size)
        act = non_linearity_class(non_linearity)
        self.net = nn.Sequential(nn.Linear(z_what_size, 64 * side**2), act(), nn.Unflatten(-1, (64, side, side)),
                                 nn.ConvTranspose2d(64, 32, 4, 2, 1), act(),
                                 nn.ConvTranspose2d(32, channels, 4, 2, 1))

    def forward(self, z_what: Tensor) -> Tensor:
        """z_what (B, D) -> window (B, C, w, w)."""
        return self.net(z_what).to(z_what.dtype)


def _quarter(window_size: int) -> int:
    if window_size % 4:
        raise ValueError(f"convolutions want a window whose side can be halved twice, got {window_size} pixels")
    return window_size // 4


class Predict(nn.Module):
    """q(z_pres_t) and q(z_where_t) from the recurrent net's h; the model adds the prior's loc and scale."""

    def __init__(self, rnn_hidden_size: int, hidden: Sequence[int], non_linearity: str) -> None:
        super().__init__()
        self.mlp = MLP(rnn_hidden_size, [*hidden, 1 + 3 + 3], non_linearity)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h (B, R) -> logit of z_pres (B, 1), loc (B, 3) and scale (B, 3) of z_where, relative to its prior."""
        logit, loc, scale = self.mlp(h).to(h.dtype).split((1, 3, 3), -1)
        return logit, loc, F.softplus(scale)


class RecurrentNet(nn.Module):
    """An LSTM cell on (embedded image, latents of the step before).

    The image is the same at every step, so its product with the input weights, nearly all of the cell's arithmetic, is
    taken once (`read`); a step multiplies only h and the latents.
    """

    def __init__(self, pixels: int, embed_net: Sequence[int] | None, latents: int, hidden_size: int,
                 non_linearity: str) -> None:
        super().__init__()
        self.embed = nn.Identity() if embed_net is None else MLP(pixels, embed_net, non_linearity, True)
        features = pixels if embed_net is None else embed_net[-1]
        self.image_gates = nn.Linear(features, 4 * hidden_size)
        self.step_gates = nn.Linear(hidden_size + latents, 4 * hidden_size, bias=False)
        for parameter in (*self.image_gates.parameters(), *self.step_gates.parameters()):
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))  # as nn.LSTMCell
        self.h_init = nn.Parameter(torch.zeros(1, hidden_size))
        self.c_init = nn.Parameter(torch.zeros(1, hidden_size))

    def products(self, rows: Sequence[int]) -> list[Product]:
        """For reading several batches of so many images one after the other: what `read` takes, a batch each."""
        return shared_products(self.image_gates.weight, rows)

    def read(self, images: Tensor, particles: int = 1, product: Product | None = None) -> tuple[Tensor, State]:
        """Images (B, C, H, W) -> their part of the gates, K times over (B K, 4R), and the state before the first step.

        Args: product: one of `products`, where several batches are read.
        """
        features = self.embed(images.flatten(1))
        gates = self.image_gates(features) if product is None else product(features) + self.image_gates.bias
        gates = fold(gates, particles)
        size = (gates.shape[0], -1)
        return gates, (self.h_init.expand(size), self.c_init.expand(size))

    def forward(self, image_gates: Tensor, latents: Tensor, state: State) -> State:
        """One step: latents (B, L) of the step before and the state -> the next state."""
        h, c = state
        gates = image_gates + self.step_gates(torch.cat((h, latents), -1))
        i_and_f, g, o = gates.split((2 * c.shape[-1], c.shape[-1], c.shape[-1]), -1)
        i, f = i_and_f.sigmoid().chunk(2, -1)
        c = torch.addcmul(f * c, i, g.tanh())
        return o.sigmoid() * c.tanh(), c


class Attention(nn.Module):
    """Where an image stands out most.

    Convolutions give the places of a grid, four pixels apart, features of the 25 pixels around and a heat. Looked at is
    the hottest place, as the mean over its surroundings by the heat's softmax. The softmax is narrowed to the
    surroundings because the mean of two places equally hot, which lies between them, is where no object stands.
    """

    features = 32

    def __init__(self, channels: int, x_size: int, scale_mean: float, non_linearity: str, least: float = 0.0) -> None:
        """Args:
            scale_mean: the image's side over an object's.
            least: a place is passed over that has less than this share of the brightest place's power (the mean square
                of the 25 pixels around). Where nothing is left after what was found, that saves from a dead end: a
                place where no object stands may become the hottest, and no gradient says that there are others.
        """
        super().__init__()
        self.least = least
        act = non_linearity_class(non_linearity)
        self.net = nn.Sequential(nn.Conv2d(channels, 16, 5, 2, 2), act(), nn.Conv2d(16, self.features, 3, 2, 1), act(),
                                 nn.Conv2d(self.features, self.features, 3, 1, 2, dilation=2), act())
        self.net.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        # To begin with, what stands out is what there are features of.
        self.heat = nn.Parameter(torch.full((self.features,), 1 / self.features))
        self.reach = 2 / (3 * scale_mean)  # a third of a side, in [-1, 1] canvas units
        # Heat of the places themselves: which of several objects comes first.
        self.preference = nn.Parameter(torch.zeros(math.ceil(x_size / 4)**2))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, C, H, W) -> features there (B, 32), how hot it is (B, 1), and where, (x, y) in [-1, 1], (B, 2)."""
        features = self.net(image).to(image.dtype).movedim(1, -1).flatten(1, 2)  # (B, places, 32)
        heat = features @ self.heat + self.preference  # (B, places)
        if self.least:
            power = F.avg_pool2d(image.square().sum(1), 5, 4, 2).flatten(1)  # (B, places)
            heat = heat.masked_fill(power < self.least * power.amax(-1, keepdim=True), -math.inf)
        along = pixel_centres(image.shape[-1], image)[::4]
        places = torch.cartesian_prod(along, along).flip(-1)  # (places, 2), (x, y)
        away = (places - places[heat.argmax(-1)][:, None]).square().sum(-1)
        # a_p ∝ exp(heat_p - |p - hottest|² / (2 reach²))
        attention = (heat - away / (2 * self.reach**2)).softmax(-1)
        return (attention[:, None] @ features).squeeze(1), heat.amax(-1, keepdim=True), attention @ places


class Search(nn.Module):
    """q(z_pres_t) and q(z_where_t) from what is left of the image and nothing else: where it stands out, and what is
    there, read by an MLP. Wherever an object stands and however many there are, the same is done, so that what was
    learned from few objects holds for many.
    """

    def __init__(self, channels: int, x_size: int, scale_mean: float, non_linearity: str) -> None:
        """Args: scale_mean: of z_where's prior, from which an object's side follows."""
        super().__init__()
        self.attention = Attention(channels, x_size, scale_mean, non_linearity)
        self.mlp = MLP(Attention.features + 1, [64, 1 + 2 + 1 + 3], non_linearity)
        self.scale_mean = scale_mean

    def forward(self, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is left (B, C, H, W) -> as of Predict: logit (B, 1), loc (B, 3) and scale (B, 3)."""
        seen, hottest, centre = self.attention(left)
        logit, offset, larger, scale = self.mlp(torch.cat((seen, hottest), -1)).to(left.dtype).split((1, 2, 1, 3), -1)
        return logit, torch.cat((larger, -(self.scale_mean + larger) * (centre + offset)), -1), F.softplus(scale)


class Baseline(nn.Module):
    """NVIL's input-dependent baseline b_t(x, z_{<t}): a recurrent net of its own and an MLP to one number a step.

    Source: Mnih & Gregor (2014), section 2.3.1; Eslami et al. (2016), appendix.
    """

    def __init__(self, rnn: RecurrentNet, hidden_size: int, hidden: Sequence[int], non_linearity: str,
                 scalar: float | None) -> None:
        """Args: scalar: multiplies the output, where what it predicts is large (the reference's baseline_scalar)."""
        super().__init__()
        self.rnn = rnn
        self.predict = MLP(hidden_size, [*hidden, 1], non_linearity)
        self.scalar = 1.0 if scalar is None else scalar

    def forward(self, images: Tensor, history: Tensor) -> Tensor:
        """Images (B, C, H, W) and what the steps of K particles each read besides, (B K, N, L) -> b_t (B K, N), nats.
        """
        image_gates, state = self.rnn.read(images, len(history) // len(images))
        outputs = []
        for latents in history.unbind(1):
            state = self.rnn(image_gates, latents, state)
            outputs.append(state[0])
        return self.predict(torch.stack(outputs, 1)).squeeze(-1).to(history.dtype) * self.scalar
