"""Layers, objects that were rendered alone, and their composition into images.

    P(object i is in front of j)  = sigmoid(sharpness · (depth_j - depth_i))
    visible_i                     = opacity_i Π_{j≠i} (1 - opacity_j P(j is in front of i))
    image                         = Σ_i visible_i colour_i / Σ_i visible_i

The table is one of the objects: opaque, and behind all others. The division makes up for the fact that pairwise
occlusion does not make the shares sum to 1.

Shape letters: B scenes, N objects, S shapes, P = H W pixels, row by row. In `(..., N, P)`, the dots are any dimensions.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
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

    def unbind(self) -> "list[Layers]":
        """Split objects, (..., N, P), into N of them, (..., P) each."""
        return [Layers(*fields) for fields in
                zip(self.opacity.unbind(-2), self.depth.unbind(-2), self.colour.unbind(-3))]

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
        # A sum with a mask: the gradient of gather fills all candidates with zeros first.
        chosen = shape[..., None] == torch.arange(self.opacity.shape[-2], device=shape.device)
        mask = chosen[..., None].to(self.opacity)  # (..., S, 1)
        return Layers((mask * self.opacity).sum(-2), (mask * self.depth).sum(-2),
                      (mask[..., None] * self.colour).sum(-3))

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
    sight = Sight.of(view, objects.opacity)
    each = objects._replace(opacity=objects.opacity * present[..., None]).unbind()
    if not each:
        return _as_images(sight.table.expand(*present.shape[:-1], 3, objects.opacity.shape[-1]), sight)
    return compose_all(each, sight, sharpness)


def compose_all(objects: Sequence[Layers], view: View | Sight, sharpness: float | Tensor | None = None) -> Tensor:
    """Compose one object or more, (..., P) each, into one image. Other arguments and result as for `compose`."""
    sight = Sight.of(view, objects[0].opacity)
    shown = _shown(objects, sight.view.sharpness if sharpness is None else sharpness)
    *_, visible = _visible(objects, shown)
    return _mix(visible, objects, sight)


def compose_stages(objects: Layers, view: View | Sight, sharpness: float | Tensor | None = None) -> Tensor:
    """Compose the first n objects into an image, for n = 1..N.

    Args:
        objects: (..., N) of them.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Returns:
        (..., N, 3, H, W), intensities.
    """
    sight, each = Sight.of(view, objects.opacity), objects.unbind()
    shown = _shown(each, sight.view.sharpness if sharpness is None else sharpness)
    return torch.stack([_mix(visible, each, sight) for visible in _visible(each, shown)], -4)


def visible_shares(objects: Layers, present: Tensor, view: View | Sight, sharpness: float | Tensor | None = None
                   ) -> Tensor:
    """The share of each pixel that shows each object: (..., N, H, W); what is missing is the table's.

    Arguments as for `compose`.
    """
    sight = Sight.of(view, objects.opacity)
    each = objects._replace(opacity=objects.opacity * present[..., None]).unbind()
    if not each:
        return _as_images(objects.opacity, sight)
    *_, visible = _visible(each, _shown(each, sight.view.sharpness if sharpness is None else sharpness))
    shares = torch.stack(visible, -2)
    return _as_images((shares / shares.sum(-2, keepdim=True))[..., 1:, :], sight)


def compose_replacing_one(drawn: Layers, candidates: Layers, view: View | Sight,
                          sharpness: float | Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Compose the first n objects with one of them replaced by each of its candidates.

    What hides what is computed once for all of these images, of which there are S N (N + 1) / 2 per scene.

    Args:
        drawn: (B, N) objects.
        candidates: (B, N, S), what they may be replaced by.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Yields:
        For every object t = 1..N and every n = t..N: n, and images (B, S, 3, H, W), intensities.
    """
    sight = Sight.of(view, drawn.opacity)
    sharpness = sight.view.sharpness if sharpness is None else sharpness
    # (B, t, j, S, P): what object j leaves visible of the candidates of t, and they of object j
    of_candidates, by_candidates = _Hide.apply(
        candidates.opacity[:, :, None], candidates.depth[:, :, None],
        drawn.opacity[:, None, :, None], drawn.depth[:, None, :, None], sharpness)
    scene = [Layers(*(field[:, None] for field in each)) for each in drawn.unbind()]  # (B, 1, P) each
    shown_in_scene = _shown(scene, sharpness)
    for t in range(len(scene)):
        shown = dict(shown_in_scene)
        for j in range(len(scene)):
            shown[t, j], shown[j, t] = of_candidates[:, t, j], by_candidates[:, t, j]
        objects = [*scene[:t], Layers(*(field[:, t] for field in candidates)), *scene[t + 1:]]
        for n, visible in enumerate(_visible(objects, shown), 1):
            if n > t:
                yield n, _mix(visible, objects, sight)


def _visible(objects: Sequence[Layers], shown: Mapping[tuple[int, int], Tensor]) -> Iterator[list[Tensor]]:
    """How much is visible of the table and of the first n objects, for n = 1..N.

    Args:
        objects: N of them, (..., P) each.
        shown: from `_shown`.
    Yields:
        n + 1 tensors (..., P), the table's first.
    """
    table: Tensor | None = None
    visible: list[Tensor] = []
    for j, new in enumerate(objects):
        table = 1 - new.opacity if table is None else table * (1 - new.opacity)
        visible = [part * shown[i, j] for i, part in enumerate(visible)]
        part = new.opacity
        for i in range(j):
            part = part * shown[j, i]
        visible.append(part)
        yield [table, *visible]


def _shown(objects: Sequence[Layers], sharpness: float | Tensor) -> dict[tuple[int, int], Tensor]:
    """How much of object i is left visible by object j, (..., P): the values for all (i, j), i ≠ j."""
    shown: dict[tuple[int, int], Tensor] = {}
    for j, new in enumerate(objects):
        for i, old in enumerate(objects[:j]):
            shown[i, j], shown[j, i] = _Hide.apply(old.opacity, old.depth, new.opacity, new.depth, sharpness)
    return shown


def _mix(visible: Sequence[Tensor], objects: Sequence[Layers], sight: Sight) -> Tensor:
    """Average the colours of the table and of objects by how much of each is visible: (..., 3, H, W)."""
    total, *shares = visible
    canvas = total.unsqueeze(-2) * sight.table
    for share, each in zip(shares, objects):
        canvas = torch.addcmul(canvas, share.unsqueeze(-2), each.colour)
        total = total + share
    return _as_images(canvas / total.unsqueeze(-2), sight)


class _Hide(torch.autograd.Function):
    """How much another object leaves visible of an object, and the object of the other one, (..., P) each.

    That is 1 - o' f and 1 - o (1 - f), with the opacities o of the object and o' of the other one, and
    f = P(the other one is in front). The gradient is written out, for objects of equal sizes: it takes half of
    autograd's operations. Pairs are computed one by one, and neither padded nor joined with the table: compiled, what
    follows is then one loop over the pixels.
    """

    @staticmethod
    def forward(ctx: Any, opacity: Tensor, depth: Tensor, other_opacity: Tensor, other_depth: Tensor,
                sharpness: float | Tensor) -> tuple[Tensor, Tensor]:
        behind = ((depth - other_depth) * sharpness).sigmoid()
        ctx.save_for_backward(opacity, other_opacity, behind)
        ctx.sharpness = sharpness
        return 1 - other_opacity * behind, torch.addcmul(1 - opacity, opacity, behind)

    @staticmethod
    def backward(ctx: Any, of_object: Tensor, of_other: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        opacity, other_opacity, behind = ctx.saved_tensors
        by_behind = (of_other * opacity).addcmul(of_object, other_opacity, value=-1)
        # d sigmoid(s) / ds = sigmoid(s) (1 - sigmoid(s)), s = sharpness · (depth - other_depth)
        by_depth = ctx.sharpness * torch.ops.aten.sigmoid_backward(by_behind, behind)
        return of_other * (behind - 1), by_depth, -of_object * behind, -by_depth, None


def _as_images(canvas: Tensor, sight: Sight) -> Tensor:
    return rearrange(canvas, "... (h w) -> ... h w", h=sight.view.image_size)
