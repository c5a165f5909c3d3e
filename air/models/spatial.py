"""The spatial transformer: reading a glimpse of an image, and painting a window onto a canvas.

`z_where = (s, x, y)` stands for the affine matrix [[s, 0, x], [0, s, y]] that maps *canvas* coordinates to *window*
coordinates; both run over [-1, 1], y downwards, pixel centres as in `grid_sample(align_corners=False)`. So s = 3 is an
object a third of the canvas wide, and its centre is at (-x/s, -y/s) on the canvas. Reading a glimpse maps window
coordinates to canvas coordinates, by the inverse (1/s, -x/s, -y/s).

Source: Eslami et al. (2016), fig. 2; Jaderberg et al. (2015), "Spatial transformer networks", eq. 1-5.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def invert_z_where(z_where: Tensor) -> Tensor:
    """Invert z_where: the map from window coordinates to canvas coordinates.

    Args:
        z_where: (..., 3), (s, x, y); s != 0.
    Returns:
        (..., 3), (1/s, -x/s, -y/s).
    """
    scale, shift = z_where[..., :1], z_where[..., 1:]
    return torch.cat((torch.ones_like(scale), -shift), -1) / scale


def image_to_window(images: Tensor, z_where: Tensor, window_size: int) -> Tensor:
    """Read the glimpse under a window (the inverse of `window_to_image`).

    Args:
        images: (B, C, H, H), intensities.
        z_where: (B, 3), (s, x, y) as in the module's docstring; s != 0.
        window_size: side of the glimpse in pixels.
    Returns:
        (B, C, window_size, window_size); zero where the window extends beyond the image.
    Raises:
        ValueError: a shape is wrong (the message prints both shapes).
    Source: Eslami et al. (2016), fig. 2; Jaderberg et al. (2015), eq. 1-5.
    """
    _check(images, z_where, "images")
    centres = pixel_centres(window_size, z_where)
    square = window_size, window_size
    window = torch.stack((centres.expand(square), centres[:, None].expand(square)), -1)  # (x, y) in window coordinates
    scale, shift = z_where[:, None, None, :1], z_where[:, None, None, 1:]
    return F.grid_sample(images, (window - shift) / scale, align_corners=False)


def window_to_image(window: Tensor, z_where: Tensor, image_size: int) -> Tensor:
    """Paint a window onto an empty canvas (the inverse of `image_to_window`).

    Args:
        window: (B, C, w, w), intensities.
        z_where: (B, 3), (s, x, y) as in the module's docstring; s != 0.
        image_size: side of the canvas in pixels.
    Returns:
        (B, C, image_size, image_size); zero outside the window.
    Raises:
        ValueError: a shape is wrong (the message prints both shapes).
    Source: Eslami et al. (2016), fig. 2; Jaderberg et al. (2015), eq. 1-5.
    """
    _check(window, z_where, "window")
    side = window.shape[-1]
    # x depends only on the column and y only on the row, so bilinear sampling is a matrix product on either side, with
    # the values of a hat function. grid_sample gives the same, but its backward pass (a scatter) takes 1.5x as long.
    with nullcontext() if window.is_meta else torch.autocast(window.device.type, enabled=False):
        points = z_where[:, :1, None] * pixel_centres(image_size, z_where) + z_where[:, 1:, None]  # (B, 2, H)
        pixels = ((points + 1) * side - 1) / 2  # of the window
        places = torch.arange(side, dtype=pixels.dtype, device=pixels.device)
        hats = (1 - (pixels[..., None] - places).abs()).relu()  # (B, 2, H, w)
        columns, rows = hats.to(window.dtype).unbind(1)
        narrow = window.flatten(1, 2) @ columns.mT  # (B, C w, H)
        return rows[:, None] @ narrow.unflatten(1, window.shape[1:3])


def window_boxes(z_where: Tensor, image_size: int) -> Tensor:
    """Outline windows on the canvas.

    Args:
        z_where: (..., 3), (s, x, y); s != 0.
        image_size: side of the canvas in pixels.
    Returns:
        (..., 4), (x0, y0, x1, y1) in pixels from the top left corner of the canvas, which windows may exceed.
    """
    scale, centre = invert_z_where(z_where).split((1, 2), -1)
    corners = torch.cat((centre - scale.abs(), centre + scale.abs()), -1)  # in [-1, 1] canvas units
    return (corners + 1) * (image_size / 2)


def painted_boxes(painted: Tensor, z_where: Tensor, threshold: float) -> Tensor:
    """Tight boxes around what objects paint, without the empty margin of a window's outline.

    Args:
        painted: (..., C, H, H), each object painted alone on an empty canvas.
        z_where: (..., 3), the objects' windows; an object that paints nothing gets its window's outline as its box.
        threshold: a pixel belongs to the object where its largest channel exceeds this share of the object's maximum.
    Returns:
        (..., 4), (x0, y0, x1, y1) in pixels: the first column and row, and one past the last.
    Raises:
        ValueError: the leading shapes differ (the message prints both).
    """
    if painted.shape[:-3] != z_where.shape[:-1]:
        raise ValueError(f"painted {tuple(painted.shape)} and z_where {tuple(z_where.shape)}: leading shapes differ")
    size = painted.shape[-1]
    # Maximum over each column (x), then over each row (y): (..., 2, H). That suffices for a box.
    profiles = torch.stack((painted.amax((-3, -2)), painted.amax((-3, -1))), -2)
    peak = profiles.amax(-1, keepdim=True)
    inside = (profiles > threshold * peak).int()
    first, last = inside.argmax(-1), size - inside.flip(-1).argmax(-1)  # (..., 2)
    tight = torch.cat((first, last), -1).to(z_where.dtype)
    return torch.where(peak[..., 0, :] > 0, tight, window_boxes(z_where, size))


def pixel_centres(size: int, like: Tensor) -> Tensor:
    """Centres of a row of `size` pixels that spans [-1, 1]: (size,), with the dtype and device of `like`."""
    return torch.arange(1 - size, size, 2, dtype=like.dtype, device=like.device) / size


def _check(pixels: Tensor, z_where: Tensor, name: str) -> None:
    if (pixels.ndim != 4 or z_where.ndim != 2 or pixels.shape[-1] != pixels.shape[-2]
            or z_where.shape != (pixels.shape[0], 3)):
        raise ValueError(f"expected {name} (B, C, side, side) and z_where (B, 3), "
                         f"got {tuple(pixels.shape)} and {tuple(z_where.shape)}")
