"""The spatial transformer: reading a glimpse of an image, and painting a window onto a canvas.

`z_where = (s, x, y)` stands for the affine matrix [[s, 0, x], [0, s, y]] that maps *canvas* coordinates to *window*
coordinates; both run over [-1, 1], y downwards, pixel centres as in `grid_sample(align_corners=False)`. So s = 3 is an
object a third of the canvas wide, and its centre is at (-x/s, -y/s) on the canvas. Reading a glimpse maps window
coordinates to canvas coordinates, by the inverse (1/s, -x/s, -y/s).

Source: Eslami et al. (2016), fig. 2; Jaderberg et al. (2015), "Spatial transformer networks", eq. 1-5.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from air.models.constants import Constants


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
    window, image = (_centres(size).to(z_where) for size in (window_size, images.shape[-1]))
    return _read(images, z_where, window, _square(window), image)[0]


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
    return _paint(window, z_where, *(_centres(size).to(z_where) for size in (image_size, window.shape[-1])))


class PixelGrid(Constants):
    """The centres of the pixels of a square that spans [-1, 1], as constants."""

    along: Tensor  # (P,), centres of a row
    xy: Tensor  # (P, P, 2), (x, y) of every pixel

    def __init__(self, size: int, stride: int = 1) -> None:
        """Args: size: of the side in pixels; stride: of the pixels kept."""
        super().__init__()
        self.size, self.stride = size, stride
        self.place_constants()

    def constants(self) -> dict[str, Tensor]:
        along = _centres(self.size)[::self.stride]
        return {"along": along, "xy": _square(along)}


class SpatialTransformer(nn.Module):
    """`image_to_window` and `window_to_image` for fixed sizes, whose constants are kept."""

    def __init__(self, image_size: int, window_size: int) -> None:
        """Args: image_size, window_size: sides H and w in pixels."""
        super().__init__()
        self.image, self.window = PixelGrid(image_size), PixelGrid(window_size)

    def read(self, images: Tensor, z_where: Tensor) -> tuple[Tensor, Tensor]:
        """Read glimpses, see `image_to_window`.

        Args:
            images: (B, C, H, H).
            z_where: (B, 3).
        Returns:
            The glimpses (B, C, w, w), and z_where. Whoever reads z_where as well should read the one returned: the
            backward pass then adds up its gradients at once.
        """
        return _read(images, z_where, self.window.along, self.window.xy, self.image.along)

    def paint(self, window: Tensor, z_where: Tensor) -> Tensor:
        """(B, C, w, w) and (B, 3) -> (B, C, H, H), see `window_to_image`."""
        return _paint(window, z_where, self.image.along, self.window.along)


def _read(images: Tensor, z_where: Tensor, window: Tensor, window_xy: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """See `SpatialTransformer.read`; centres of the window's pixels, (w,) and (w, w, 2), and of the image's, (H,)."""
    _check(images, z_where, "images")
    if _sums_in_any_order(images):
        scale, shift = z_where[..., None].split((1, 2), 1)
        return _resample(images, (window - shift) / scale, image), z_where
    grid, z_where = _SamplingGrid.apply(z_where, window_xy)
    return F.grid_sample(images, grid, align_corners=False), z_where


def _sums_in_any_order(images: Tensor) -> bool:
    """Whether the gradient of grid_sample for these images adds up in a different order each time.

    Matrix products, which do not, give the same glimpses. On a CPU they take 2.5 times as long.
    """
    return images.is_cuda and images.requires_grad


def _paint(window: Tensor, z_where: Tensor, image_centres: Tensor, window_centres: Tensor) -> Tensor:
    """See `window_to_image`; the centres of the image's pixels (H,) and of the window's (w,)."""
    _check(window, z_where, "window")
    scale, shift = z_where[..., None].split((1, 2), 1)
    # grid_sample gives the same, but its backward pass (a scatter) takes 1.5x as long.
    return _resample(window, torch.addcmul(shift, scale, image_centres), window_centres)


def _centres(size: int) -> Tensor:
    """Centres of a row of `size` pixels that spans [-1, 1]: (size,), float64."""
    return torch.arange(1 - size, size, 2, dtype=torch.float64) / size


def _square(along: Tensor) -> Tensor:
    """(x, y) of every pixel of a square, from the centres of a row: (P,) -> (P, P, 2)."""
    return torch.stack(torch.meshgrid(along, along, indexing="xy"), -1)


def _resample(source: Tensor, points: Tensor, centres: Tensor) -> Tensor:
    """Sample images bilinearly at the points of a grid.

    x depends only on the column and y only on the row, so bilinear sampling is a matrix product on either side, with
    the values of a hat function.

    Args:
        source: (B, C, S, S).
        points: (B, 2, P), x of the grid's columns and y of its rows, in [-1, 1] units of the source.
        centres: (S,), of the source's pixels.
    Returns:
        (B, C, P, P); zero outside the source.
    """
    with full_precision(source):
        columns, rows = _Hats.apply(points, centres).to(source.dtype).unbind(1)  # (B, P, S) each
        narrow = source.flatten(1, 2) @ columns.mT  # (B, C S, P)
        return rows[:, None] @ narrow.unflatten(1, source.shape[1:3])


class _Hats(torch.autograd.Function):
    """Weights of pixels in bilinear interpolation: points (B, 2, P) and centres (S,) -> (B, 2, P, S).

    The weight of pixel j is max(0, 1 - |point - centre_j| S / 2).
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, centres: Tensor) -> Tensor:
        away = centres - points[..., None]
        hats = torch.rsub(away.abs(), 1, alpha=len(centres) / 2).relu_()
        ctx.save_for_backward(away, hats)
        return hats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        away, hats = ctx.saved_tensors
        inside = torch.ops.aten.threshold_backward(gradient, hats, 0)
        return (inside * away.sign()).sum(-1) * (away.shape[-1] / 2), None


class _SamplingGrid(torch.autograd.Function):
    """z_where (B, 3) and centres (w, w, 2) -> where on the image a glimpse's pixels lie (B, w, w, 2), and z_where."""

    @staticmethod
    def forward(ctx: Any, z_where: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = z_where[:, None, None].split((1, 2), -1)
        grid = (centres - shift) / scale
        ctx.save_for_backward(z_where, grid)
        ctx.set_materialize_grads(False)
        return grid, z_where

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_grid: Tensor | None, of_z_where: Tensor | None) -> tuple[Tensor | None, None]:
        z_where, grid = ctx.saved_tensors
        if of_grid is None:
            return of_z_where, None
        if of_z_where is None:
            of_z_where = torch.zeros_like(z_where)
        by_scale = (of_grid * grid).sum((1, 2, 3))[:, None]
        of_inverse = torch.cat((by_scale, of_grid.sum((1, 2))), -1)
        return torch.addcdiv(of_z_where, of_inverse, z_where[:, :1], value=-1), None


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


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the device of `like`: 16 bits are too coarse for positions and their weights."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def _check(pixels: Tensor, z_where: Tensor, name: str) -> None:
    if (pixels.ndim != 4 or z_where.ndim != 2 or pixels.shape[-1] != pixels.shape[-2]
            or z_where.shape != (pixels.shape[0], 3)):
        raise ValueError(f"expected {name} (B, C, side, side) and z_where (B, 3), "
                         f"got {tuple(pixels.shape)} and {tuple(z_where.shape)}")
