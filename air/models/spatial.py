"""The spatial transformer: reading a glimpse of an image, and painting a window onto a canvas.

`z_where = (s, x, y)` stands for the affine matrix [[s, 0, x], [0, s, y]] that maps *canvas* coordinates to *window*
coordinates; both run over [-1, 1], y downwards, pixel centres as in `grid_sample(align_corners=False)`. So s = 3 is an
object a third of the canvas wide, and its centre is at (-x/s, -y/s) on the canvas. Reading a glimpse maps window
coordinates to canvas coordinates, by the inverse (1/s, -x/s, -y/s).

The unit of canvas coordinates is half the side of the images that a model is made for, `unit` pixels. An image of
another size has its middle at (0, 0) as well and extends beyond [-1, 1], or not so far: the same z_where is an object
of as many pixels.

Source: Eslami et al. (2016), fig. 2; Jaderberg et al. (2015), "Spatial transformer networks", eq. 1-5.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

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


def from_centre(log_where: Tensor) -> Tensor:
    """z_where of objects by their size and place: (..., 3), (log s, centre x, centre y) -> (..., 3), (s, x, y)."""
    return cast(Tensor, _FromCentre.apply(log_where))


class _FromCentre(torch.autograd.Function):
    """See `from_centre`."""

    @staticmethod
    def forward(ctx: Any, log_where: Tensor) -> Tensor:
        scale = log_where[..., :1].exp()
        ctx.save_for_backward(z_where := torch.cat((scale, -scale * log_where[..., 1:]), -1))
        return z_where

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (z_where,) = ctx.saved_tensors  # = ∂(s, x, y) / ∂ log s; and ∂x / ∂ centre = -s
        return torch.cat(((gradient * z_where).sum(-1, keepdim=True), -z_where[..., :1] * gradient[..., 1:]), -1)


def to_centre(z_where: Tensor) -> Tensor:
    """The inverse of `from_centre`, for s > 0."""
    return torch.cat((z_where[..., :1].log(), -z_where[..., 1:] / z_where[..., :1]), -1)


def image_to_window(images: Tensor, z_where: Tensor, window_size: int, unit: int | None = None) -> Tensor:
    """Read the glimpse under a window (the inverse of `window_to_image`).

    Args:
        images: (B, C, H, W), intensities.
        z_where: (B, 3), (s, x, y) as in the module's docstring; s != 0.
        window_size: side of the glimpse in pixels.
        unit: pixels that span [-1, 1]; None: H, of square images.
    Returns:
        (B, C, window_size, window_size); zero where the window extends beyond the image.
    Raises:
        ValueError: a shape is wrong (the message prints both shapes).
    Source: Eslami et al. (2016), fig. 2; Jaderberg et al. (2015), eq. 1-5.
    """
    _check(images, z_where, "images", square=unit is None)
    window = centres_of(window_size).to(z_where)
    return _read(images, z_where, window, _square(window), _axes(images, unit, z_where))[0]


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
    centres = centres_of(image_size).to(z_where)
    return _paint(window, z_where, Axes(centres, centres, image_size), centres_of(window.shape[-1]).to(z_where))


class Axes(NamedTuple):
    """Where the columns and rows of an image lie, in canvas units."""

    x: Tensor  # (W,), centres of the columns
    y: Tensor  # (H,), centres of the rows; the same tensor as x for square images
    unit: int  # pixels that span [-1, 1]


def _axes(images: Tensor, unit: int | None, like: Tensor) -> Axes:
    """The axes of images (..., H, W)."""
    height, width = images.shape[-2:]
    unit = height if unit is None else unit
    x = centres_of(width, unit).to(like)
    return Axes(x, x if height == width else centres_of(height, unit).to(like), unit)


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
        along = centres_of(self.size)[::self.stride]
        return {"along": along, "xy": _square(along)}


class SpatialTransformer(nn.Module):
    """`image_to_window` and `window_to_image` for one size of windows; constants for one size of images are kept."""

    def __init__(self, image_size: int, window_size: int) -> None:
        """Args: image_size, window_size: sides in pixels; that of the images is the unit, images may be of any size."""
        super().__init__()
        self.image, self.window = PixelGrid(image_size), PixelGrid(window_size)

    def read(self, images: Tensor, z_where: Tensor) -> tuple[Tensor, Tensor]:
        """Read glimpses, see `image_to_window`.

        Args:
            images: (B, C, H, W).
            z_where: (B, 3).
        Returns:
            The glimpses (B, C, w, w), and z_where. Whoever reads z_where as well should read the one returned: the
            backward pass then adds up its gradients at once.
        """
        return _read(images, z_where, self.window.along, self.window.xy, self._axes(images))

    def paint(self, window: Tensor, z_where: Tensor, like: Tensor | None = None) -> Tensor:
        """Paint windows, see `window_to_image`.

        Args:
            window: (B, C, w, w).
            z_where: (B, 3).
            like: (..., H, W), an image of the canvas's size; None: the size whose constants are kept.
        Returns:
            (B, C, H, W).
        """
        axes = self._kept() if like is None else self._axes(like)
        return _paint(window, z_where, axes, self.window.along)

    def _axes(self, images: Tensor) -> Axes:
        unit = self.image.size
        return self._kept() if images.shape[-2:] == (unit, unit) else _axes(images, unit, self.image.along)

    def _kept(self) -> Axes:
        return Axes(self.image.along, self.image.along, self.image.size)


def _read(images: Tensor, z_where: Tensor, window: Tensor, window_xy: Tensor, axes: Axes) -> tuple[Tensor, Tensor]:
    """See `SpatialTransformer.read`; centres of the window's pixels, (w,) and (w, w, 2), and the images' axes."""
    _check(images, z_where, "images")
    if _sums_in_any_order(images):
        scale, shift = z_where[..., None].split((1, 2), 1)
        return _resample(images, (window - shift) / scale, axes[:2], axes.unit / 2), z_where
    height, width = images.shape[-2:]
    return sample(images, z_where, window_xy, (width / axes.unit, height / axes.unit))


def sample(images: Tensor, z_where: Tensor, window_xy: Tensor, span: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Read glimpses by `grid_sample`, see `SpatialTransformer.read`.

    Args:
        images: (B, C, H, W).
        z_where: (B, 3).
        window_xy: (w, w, 2), the `xy` of the window's `PixelGrid`.
        span: half of the images' width and height, in canvas units.
    """
    grid, z_where = _SamplingGrid.apply(z_where, window_xy)
    if span != (1, 1):
        grid = grid / grid.new_tensor(span)
    return F.grid_sample(images, grid, align_corners=False), z_where


def _sums_in_any_order(images: Tensor) -> bool:
    """Whether the gradient of grid_sample for these images adds up in a different order each time.

    Matrix products, which do not, give the same glimpses. On a CPU they take 2.5 times as long.
    """
    return images.is_cuda and images.requires_grad


def _paint(window: Tensor, z_where: Tensor, axes: Axes, window_centres: Tensor) -> Tensor:
    """See `window_to_image`; the axes of the canvas, and centres of the window's pixels, (w,)."""
    _check(window, z_where, "window", square=True)
    scale, shift = z_where[..., None].split((1, 2), 1)
    # grid_sample gives the same, but its backward pass (a scatter) takes 1.5x as long.
    points: Tensor | list[Tensor] = (
        torch.addcmul(shift, scale, axes.x) if axes.x is axes.y else
        [torch.addcmul(shift[:, axis], scale[:, 0], along) for axis, along in enumerate(axes[:2])])
    return _resample(window, points, (window_centres, window_centres), len(window_centres) / 2)


def centres_of(size: int, unit: int | None = None) -> Tensor:
    """Centres of a row of `size` pixels around 0, of which `unit` span [-1, 1] (None: all): (size,), float64."""
    return torch.arange(1 - size, size, 2, dtype=torch.float64) / (size if unit is None else unit)


def _square(along: Tensor) -> Tensor:
    """(x, y) of every pixel of a square, from the centres of a row: (P,) -> (P, P, 2)."""
    return torch.stack(torch.meshgrid(along, along, indexing="xy"), -1)


def _resample(source: Tensor, points: Tensor | Sequence[Tensor], along: Sequence[Tensor], density: float) -> Tensor:
    """Sample images bilinearly at the points of a grid.

    x depends only on the column and y only on the row, so bilinear sampling is a matrix product on either side, with
    the values of a hat function.

    Args:
        source: (B, C, R, S).
        points: x of the grid's columns and y of its rows, in units of the source: (B, 2, P), or (B, P) and (B, Q).
        along: centres of the source's columns (S,) and rows (R,).
        density: of the source's pixels, per unit.
    Returns:
        (B, C, Q, P); zero outside the source.
    """
    with full_precision(source):
        if isinstance(points, Tensor) and along[0] is along[1]:
            columns, rows = _Hats.apply(points, along[0], density).to(source.dtype).unbind(1)  # (B, P, S) each
        else:
            pairs = zip(points.unbind(1) if isinstance(points, Tensor) else points, along)
            columns, rows = (_Hats.apply(each, centres, density).to(source.dtype) for each, centres in pairs)
        narrow = source.flatten(1, 2) @ columns.mT  # (B, C R, P)
        return rows[:, None] @ narrow.unflatten(1, source.shape[1:3])


class _Hats(torch.autograd.Function):
    """Weights of pixels in bilinear interpolation: points (..., P) and centres (S,) -> (..., P, S).

    The weight of pixel j is max(0, 1 - |point - centre_j| density), for so many pixels per unit.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, centres: Tensor, density: float) -> Tensor:
        away = centres - points[..., None]
        hats = torch.rsub(away.abs(), 1, alpha=density).relu_()
        ctx.save_for_backward(away, hats)
        ctx.density = density
        return hats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        away, hats = ctx.saved_tensors
        inside = torch.ops.aten.threshold_backward(gradient, hats, 0)
        return (inside * away.sign()).sum(-1) * ctx.density, None, None


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


def window_boxes(z_where: Tensor, image_size: int | tuple[int, int], unit: int | None = None) -> Tensor:
    """Outline windows on the canvas.

    Args:
        z_where: (..., 3), (s, x, y); s != 0.
        image_size: side of the canvas in pixels, or its height and width.
        unit: pixels that span [-1, 1]; None: the canvas's height.
    Returns:
        (..., 4), (x0, y0, x1, y1) in pixels from the top left corner of the canvas, which windows may exceed.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    scale, centre = invert_z_where(z_where).split((1, 2), -1)
    corners = torch.cat((centre - scale.abs(), centre + scale.abs()), -1)  # in canvas units
    return (corners * (height if unit is None else unit) + corners.new_tensor((width, height, width, height))) / 2


def painted_boxes(painted: Tensor, z_where: Tensor, threshold: float, unit: int | None = None) -> Tensor:
    """Tight boxes around what objects paint, without the empty margin of a window's outline.

    Args:
        painted: (..., C, H, W), each object painted alone on an empty canvas.
        z_where: (..., 3), the objects' windows; an object that paints nothing gets its window's outline as its box.
        threshold: a pixel belongs to the object where its largest channel exceeds this share of the object's maximum.
        unit: pixels that span [-1, 1]; None: H.
    Returns:
        (..., 4), (x0, y0, x1, y1) in pixels: the first column and row, and one past the last.
    Raises:
        ValueError: the leading shapes differ (the message prints both).
    """
    if painted.shape[:-3] != z_where.shape[:-1]:
        raise ValueError(f"painted {tuple(painted.shape)} and z_where {tuple(z_where.shape)}: leading shapes differ")
    # Maximum over each column (x), and over each row (y). That suffices for a box.
    profiles = painted.amax((-3, -2)), painted.amax((-3, -1))  # (..., W), (..., H)
    peak = profiles[0].amax(-1, keepdim=True)
    inside = [(profile > threshold * peak).int() for profile in profiles]
    first = torch.stack([each.argmax(-1) for each in inside], -1)  # (..., 2)
    last = torch.stack([each.shape[-1] - each.flip(-1).argmax(-1) for each in inside], -1)
    tight = torch.cat((first, last), -1).to(z_where.dtype)
    height, width = painted.shape[-2:]
    return torch.where(peak > 0, tight, window_boxes(z_where, (height, width), unit))


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the device of `like`: 16 bits are too coarse for positions and their weights."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def _check(pixels: Tensor, z_where: Tensor, name: str, square: bool = False) -> None:
    if (pixels.ndim != 4 or z_where.ndim != 2 or square and pixels.shape[-1] != pixels.shape[-2]
            or z_where.shape != (pixels.shape[0], 3)):
        raise ValueError(f"expected {name} (B, C, {'side, side' if square else 'H, W'}) and z_where (B, 3), "
                         f"got {tuple(pixels.shape)} and {tuple(z_where.shape)}")
