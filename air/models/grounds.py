"""The networks that infer and paint what lies behind objects."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from air.models.networks import MLP, Decoder, Encoder

SMALL, COARSE = 16, 4  # sides in pixels of what a ground is read from, and of its picture
BEYOND = 0.05  # intensities by which its range exceeds black and white, at which a sigmoid would never arrive


class BlurredEncoder(Encoder):
    """q(z_background | x) of images of any size, from a small copy."""

    def __init__(self, channels: int, hidden: Sequence[int], z_background_size: int, non_linearity: str) -> None:
        super().__init__(channels * SMALL**2, hidden, z_background_size, non_linearity)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> loc and scale of z_background, (B, z_background_size) each."""
        return super().forward(F.adaptive_avg_pool2d(images, SMALL))


class BlurredDecoder(nn.Module):
    """The code of a ground -> a coarse picture, to be interpolated. It can show one colour, a gradient or a blurred
    picture, and cannot show objects. At first it is grey.
    """

    def __init__(self, z_background_size: int, hidden: Sequence[int], channels: int, non_linearity: str) -> None:
        super().__init__()
        self.mlp = MLP(z_background_size, [*hidden, channels * COARSE**2], non_linearity)
        self.coarse_shape = channels, COARSE, COARSE

    def forward(self, z_background: Tensor) -> Tensor:
        """(B, z_background_size) -> (B, C, COARSE, COARSE)."""
        coarse = self.mlp(z_background).to(z_background.dtype).sigmoid() * (1 + 2 * BEYOND) - BEYOND
        return coarse.unflatten(-1, self.coarse_shape)


def make_ground_networks(blurred: bool, channels: int, x_size: int, z_background_size: int, encoder_net: Sequence[int],
                         decoder_net: Sequence[int], non_linearity: str) -> tuple[Encoder, nn.Module]:
    """What encodes a ground, and what decodes it: blurred, or any picture of x_size x x_size pixels."""
    if blurred:
        return (BlurredEncoder(channels, encoder_net, z_background_size, non_linearity),
                BlurredDecoder(z_background_size, decoder_net, channels, non_linearity))
    return (Encoder(channels * x_size**2, encoder_net, z_background_size, non_linearity),
            Decoder(z_background_size, decoder_net, channels, x_size, None, False, non_linearity))


def stretch(ground: Tensor, size: Sequence[int]) -> Tensor:
    """A ground (B, C, P, Q), interpolated to (B, C, H, W) unless it has that size: H and W."""
    if ground.shape[-2:] == tuple(size):
        return ground
    return F.interpolate(ground, tuple(size), mode="bilinear", align_corners=False)
