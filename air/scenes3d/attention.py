"""Where the search guide of 3D scenes looks."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from air.models.networks import non_linearity_class
from air.models.spatial import PixelGrid, full_precision


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
