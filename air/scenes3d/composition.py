"""Layers, objects that were rendered alone, and their composition into images.

    P(object i is in front of j)  = sigmoid(sharpness · (depth_j - depth_i))
    visible_i                     = opacity_i Π_{j≠i} (1 - opacity_j P(j is in front of i))
    image                         = Σ_i visible_i colour_i / Σ_i visible_i

The table is one of the objects: opaque, and behind all others. The division makes up for the fact that pairwise
occlusion does not make the shares sum to 1.

Shape letters: B scenes, N objects, S shapes, P = H W pixels, row by row. In `(..., N, P)`, the dots are any dimensions.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from air.scenes3d.view import Sight, View


class Layers(NamedTuple):
    """Objects, each rendered alone; the leading dimensions (B, N) may be any others."""

    opacity: Tensor  # (B, N, P), in [0, 1]
    depth: Tensor  # (B, N, P), from the camera to where the ray enters, in the world's units
    colour: Tensor  # (B, N, 3, P), intensities

    @staticmethod
    def stack(objects: "Sequence[Layers]") -> "Layers":
        """Stack objects, (B, ..., P) each, along a new dimension 1: (B, N, ..., P)."""
        return Layers(*(torch.stack(fields, 1) for fields in zip(*objects)))

    def detach(self) -> "Layers":
        """Cut the gradients of all fields."""
        return Layers(*(field.detach() for field in self))

    def select(self, shape: Tensor) -> "Layers":
        """Pick one of each object's S candidate shapes.

        Args:
            shape: (...,) int64, indices into SHAPES; the layers are (..., S, P).
        Returns:
            (..., P).
        """
        index = shape[..., None, None]
        one = index.expand(*shape.shape, 1, self.opacity.shape[-1])
        return Layers(self.opacity.gather(-2, one).squeeze(-2), self.depth.gather(-2, one).squeeze(-2),
                      self.colour.gather(-3, one[..., None, :].expand(*shape.shape, 1, 3, -1)).squeeze(-3))

    def blend(self, q: Tensor) -> "Layers":
        """Mix each object's S candidate shapes by their probabilities.

        Args:
            q: (..., S), probabilities of the shapes; the layers are (..., S, P).
        Returns:
            (..., P): the expected opacity; depth and colour are averaged with weights q · opacity.
        """
        opacity = q[..., None] * self.opacity
        total = opacity.sum(-2)
        weight = opacity / total.unsqueeze(-2).clamp(min=torch.finfo(total.dtype).tiny)
        return Layers(total, (weight * self.depth).sum(-2), (weight.unsqueeze(-2) * self.colour).sum(-3))

    def boxes(self, image_size: int) -> Tensor:
        """Tight bounding boxes, ignoring occlusion: (B, N, 4), (x0, y0, x1, y1) in pixels; 0 if nothing is visible."""
        inside = rearrange(self.opacity > 0.5, "... (h w) -> ... h w", h=image_size)
        edges = []
        for line in (inside.any(-2), inside.any(-1)):  # columns (x), then rows (y): (B, N, H)
            edges.append((line.int().argmax(-1), image_size - line.flip(-1).int().argmax(-1)))
        (x0, x1), (y0, y1) = edges
        return torch.stack((x0, y0, x1, y1), -1) * inside.flatten(-2).any(-1)[..., None]


def compose(objects: Layers, present: Tensor, view: View | Sight, sharpness: float | Tensor | None = None) -> Tensor:
    """Compose the objects that are present into one image, nearer ones in front.

    Args:
        objects: (..., N) of them.
        present: (..., N) in [0, 1], multiplies the objects' opacities.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Returns:
        (..., 3, H, W), intensities.
    """
    return compose_all(objects._replace(opacity=objects.opacity * present[..., None]), view, sharpness)


def compose_all(objects: Layers, view: View | Sight, sharpness: float | Tensor | None = None) -> Tensor:
    """Compose all objects into one image. Arguments and result as for `compose`."""
    sight = Sight.of(view, objects.opacity)
    visible, colour = _with_table(objects, sight)
    for shown in _shown(objects, sight, sharpness).unbind(-2):
        visible = visible * shown
    return _as_images(_mix(visible, colour), sight)


def compose_stages(objects: Layers, view: View | Sight, sharpness: float | Tensor | None = None) -> Tensor:
    """Compose the first n objects into an image, for n = 1..N.

    Args:
        objects: (..., N) of them.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Returns:
        (..., N, 3, H, W), intensities.
    """
    sight = Sight.of(view, objects.opacity)
    visible, colour = _with_table(objects, sight)
    stages = []
    for n, shown in enumerate(_shown(objects, sight, sharpness).unbind(-2), 1):
        visible = visible * shown
        stages.append(_mix(visible[..., :n + 1, :], colour[..., :n + 1, :, :]))
    return _as_images(torch.stack(stages, -3), sight)


def compose_replacing_one(drawn: Layers, candidates: Layers, view: View | Sight,
                          sharpness: float | Tensor | None = None) -> Iterator[Tensor]:
    """Compose the first n objects with one of them replaced by each of its candidates, for n = 1..N.

    What hides what is computed once for all of these images, of which there are S N (N + 1) / 2 per scene. Not for
    gradients: the parts of an image are summed in place.

    Args:
        drawn: (B, N) objects.
        candidates: (B, N, S), what they may be replaced by.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Yields:
        (B, n, S, 3, H, W), intensities; [:, t, s] has candidate s in place of object t.
    """
    sight = Sight.of(view, drawn.opacity)
    sharpness = sight.view.sharpness if sharpness is None else sharpness
    opacity, colour = _with_table(drawn, sight)
    depth = F.pad(drawn.depth, (0, 0, 1, 0), value=math.inf)  # with the table
    shown = _shown(drawn, sight, sharpness)  # (B, i, j, P), i = 0..N with the table first, j = 1..N
    steps = drawn.opacity.shape[1]
    # P(candidate s of object t is in front of object i of the scene), and how much each leaves visible of the other
    in_front = (sharpness * (depth[:, None, None] - candidates.depth[..., None, :])).sigmoid()  # (B, t, s, i, P)
    scene_shown = 1 - candidates.opacity[..., None, :] * in_front
    candidate_shown = 1 - drawn.opacity[:, None, None] * (1 - in_front[:, :, :, 1:])  # (B, t, s, j, P)
    replaced = torch.eye(steps, dtype=torch.bool, device=shown.device)[..., None]  # (t, j, 1)
    candidate_shown = candidate_shown.masked_fill(replaced[:, None], 1)
    without = shown[:, None].masked_fill(replaced[:, None], 1)  # (B, t, i, j, P)
    for n in range(1, steps + 1):
        visible = opacity[:, None, :n + 1] * without[:, :n, :n + 1, :n].prod(-2)  # (B, t, i, P)
        visible[:, :, 1:].masked_fill_(replaced[:n, :n], 0)
        visible = visible[:, :, None] * scene_shown[:, :n, :, :n + 1]  # (B, t, s, i, P)
        own = candidates.opacity[:, :n] * candidate_shown[:, :n, :, :n].prod(-2)  # (B, t, s, P)
        canvas = own.unsqueeze(-2) * candidates.colour[:, :n]
        for i in range(n + 1):
            canvas.addcmul_(visible[..., i, None, :], colour[:, None, None, i])
        yield _as_images(canvas.div_((visible.sum(-2) + own).unsqueeze(-2)), sight)


def _mix(visible: Tensor, colour: Tensor) -> Tensor:
    """Average the colours of objects, (..., N, 3, P), by how much of each is visible, (..., N, P): (..., 3, P)."""
    return (visible.unsqueeze(-2) * colour).sum(-3) / visible.sum(-2).unsqueeze(-2)


def _with_table(objects: Layers, sight: Sight) -> tuple[Tensor, Tensor]:
    """Opacity (..., N+1, P) and colour (..., N+1, 3, P) of the table, which comes first, and of N objects."""
    table = sight.table.expand(*objects.opacity.shape[:-2], 1, -1, objects.opacity.shape[-1])
    return F.pad(objects.opacity, (0, 0, 1, 0), value=1.0), torch.cat((table, objects.colour), -3)


def _shown(objects: Layers, sight: Sight, sharpness: float | Tensor | None) -> Tensor:
    """How much of object i (0: the table) is left visible by object j = 1..N, (..., N+1, N, P); 1 for i = j."""
    sharpness = sight.view.sharpness if sharpness is None else sharpness
    shown: Tensor = _Shown.apply(objects.opacity, objects.depth, sharpness)
    return shown


class _Shown(torch.autograd.Function):
    """1 - opacity_j P(j is in front of i), of N objects with opacity and depth (..., N, P).

    The gradient is written out: it keeps one tensor of that size for it, and takes half of autograd's operations.
    """

    @staticmethod
    def forward(ctx: Any, opacity: Tensor, depth: Tensor, sharpness: float | Tensor) -> Tensor:
        in_front = (depth.unsqueeze(-2) - depth.unsqueeze(-3)).mul_(sharpness).sigmoid_()  # (..., i, j, P): j of i
        in_front.diagonal(0, -3, -2).zero_()
        ctx.save_for_backward(opacity, in_front)
        ctx.sharpness = sharpness
        table = opacity.unsqueeze(-3)
        return 1 - torch.cat((table, table * in_front), -3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        opacity, in_front = ctx.saved_tensors
        of_table, of_objects = gradient.split((1, opacity.shape[-2]), -3)
        by_opacity = -(of_table.squeeze(-3) + (of_objects * in_front).sum(-3))
        # d sigmoid(s) / ds = sigmoid(s) (1 - sigmoid(s)), s = sharpness · (depth_i - depth_j)
        by_order = torch.ops.aten.sigmoid_backward(of_objects * opacity.unsqueeze(-3), in_front)
        return by_opacity, ctx.sharpness * (by_order.sum(-3) - by_order.sum(-2)), None


def _as_images(canvas: Tensor, sight: Sight) -> Tensor:
    return rearrange(canvas, "... (h w) -> ... h w", h=sight.view.image_size)
