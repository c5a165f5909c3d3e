"""A differentiable renderer without parameters: spheres, boxes and upright cylinders on a table, seen by a camera.

World coordinates: the table is the plane z = 0; x points right, y away from the camera, z up. Objects stand on the
table. A pose is (x, y, rotation, size): the position on the table, the rotation about the vertical in radians, and half
of the object's height (the radius of a sphere or cylinder, half of a box's side). Lengths are in the world's units.

Each object is rendered alone, as a layer with an opacity and a depth per pixel, and layers are then composed:

    opacity                       = sigmoid(sharpness · how far the ray is inside the silhouette)
    P(object i is in front of j)  = sigmoid(sharpness · (depth_j - depth_i))

So every pixel is differentiable in every pose. As the sharpness grows, the image approaches that of a ray caster.

Shape letters: B scenes, N objects, S shapes, P = H W pixels, row by row.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from air.scenes3d.shapes import INTERSECTIONS, SHAPES, Rays

REACH = 1.0  # objects stand within [-REACH, REACH]² of the table
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """Camera, light and colours: what is the same in every scene. Colours are (red, green, blue) in [0, 1]."""

    image_size: int = 48  # H = W, pixels
    camera: Vector = (0.0, -4.0, 3.0)
    target: Vector = (0.0, 0.0, 0.2)  # the point at the centre of the image
    field_of_view: float = 42.0  # degrees, from edge to edge
    light: Vector = (-0.5, -0.6, 0.8)  # direction towards a parallel light; any length
    ambient: float = 0.35  # share of the light that comes from everywhere
    table: Vector = (0.35, 0.3, 0.28)
    colours: tuple[Vector, ...] = ((0.9, 0.25, 0.2), (0.25, 0.8, 0.3), (0.3, 0.45, 0.95))  # one per shape
    stripe: float = 0.45  # how much darker one half of a cylinder is, and how much brighter the other
    sharpness: float = 40.0  # per unit of length


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
        """Split along dimension 1, the inverse of `stack`: (B, N, ..., P) -> N objects, (B, ..., P) each."""
        return [Layers(*fields) for fields in zip(*(field.unbind(1) for field in self))]

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
        mask = (shape[..., None] == torch.arange(len(SHAPES), device=shape.device)).to(self.opacity)[..., None]
        return Layers((mask * self.opacity).sum(-2), (mask * self.depth).sum(-2),
                      (mask[..., None] * self.colour).sum(-3))

    def blend(self, log_q: Tensor) -> "Layers":
        """Mix each object's S candidate shapes by their probabilities.

        Args:
            log_q: (..., S), log-probabilities of the shapes; the layers are (..., S, P).
        Returns:
            (..., P): the expected opacity; depth and colour are averaged with weights q · opacity.
        """
        opacity = log_q.exp()[..., None] * self.opacity
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


def layers(shape: Tensor, pose: Tensor, view: View, sharpness: float | Tensor | None = None) -> Layers:
    """Render each object alone.

    Args:
        shape: (B, N) int64, indices into SHAPES.
        pose: (B, N, 4), (x, y, rotation, size) as in the module's docstring; size > 0.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Returns:
        Layers of (B, N) objects.
    Raises:
        ValueError: shape and pose do not match (the message prints both sizes).
    """
    if pose.shape != (*shape.shape, 4) or shape.ndim != 2:
        raise ValueError(f"expected shape (B, N) and pose (B, N, 4), got {tuple(shape.shape)} and {tuple(pose.shape)}")
    # Sorted by shape, so that each shape's closed form runs once, on its own objects only.
    flat_shape, flat_pose = shape.flatten(), pose.flatten(0, 1)
    order = flat_shape.argsort(stable=True)
    counts = flat_shape.bincount(minlength=len(SHAPES)).tolist() if len(flat_shape) else [0] * len(SHAPES)
    groups = [_render_alone(index, flat_pose[rows], view, sharpness)
              for index, rows in enumerate(order.split(counts))]
    inverse = order.argsort()
    return Layers(*(torch.cat(fields)[inverse].unflatten(0, shape.shape) for fields in zip(*groups)))


def candidate_layers(pose: Tensor, view: View, sharpness: float | Tensor | None = None) -> Layers:
    """Render each object alone, once as each of SHAPES.

    Args:
        pose: (..., S, 4), the pose that the object has as each shape.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Returns:
        Layers of (..., S) objects.
    """
    groups = [_render_alone(index, shape_pose.flatten(0, -2), view, sharpness)
              for index, shape_pose in enumerate(pose.unbind(-2))]
    return Layers(*(torch.stack(fields, 1).unflatten(0, pose.shape[:-2]) for fields in zip(*groups)))


def _render_alone(shape_index: int, pose: Tensor, view: View, sharpness: float | Tensor | None) -> Layers:
    """Render objects of one shape, poses (M, 4): opacity and depth (M, P), colour (M, 3, P)."""
    sharpness = view.sharpness if sharpness is None else sharpness
    hit = INTERSECTIONS[shape_index](*_to_object_frame(pose, view), pose[:, 3:], sharpness)
    shade = view.ambient + (1 - view.ambient) * hit.facing.clamp(min=0)
    shade = shade * (1 + view.stripe * hit.stripe)
    return Layers((sharpness * hit.margin).sigmoid(), hit.depth, _colourise(shade, view.colours[shape_index]))


def render(shape: Tensor, pose: Tensor, present: Tensor, view: View, sharpness: float | Tensor | None = None
           ) -> Tensor:
    """Render scenes: `layers`, then `compose`.

    Args:
        shape: (B, N) int64, indices into SHAPES.
        pose: (B, N, 4).
        present: (B, N) in [0, 1], multiplies the objects' opacities.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Returns:
        (B, 3, H, W), intensities.
    Raises:
        ValueError: shape and pose do not match (the message prints both sizes).
    """
    return compose(layers(shape, pose, view, sharpness), present, view, sharpness)


def compose(objects: Layers, present: Tensor, view: View, sharpness: float | Tensor | None = None) -> Tensor:
    """Compose the objects that are present into one image, nearer ones in front.

    Args:
        objects: (B, N) of them.
        present: (B, N) in [0, 1], multiplies the objects' opacities.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Returns:
        (B, 3, H, W), intensities.
    """
    opacity = objects.opacity * present[..., None]
    return compose_stages(objects._replace(opacity=opacity), view, sharpness)[:, -1]


def compose_stages(objects: Layers, view: View, sharpness: float | Tensor | None = None) -> Tensor:
    """Compose the first n objects into an image, for n = 0..N.

    Args:
        objects: (B, N) of them.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Returns:
        (B, N+1, 3, H, W), intensities.
    """
    batch, _, pixels = objects.opacity.shape
    table = _colourise(objects.opacity.new_full((batch, pixels), _table_shade(view)), view.table)
    images = torch.stack([table, *canvases(objects.unbind(), view, sharpness)], 1)
    return rearrange(images, "... (h w) -> ... h w", h=view.image_size)


def canvases(objects: Sequence[Layers], view: View, sharpness: float | Tensor | None = None) -> Iterator[Tensor]:
    """Compose the first n objects into an image, one image after the other for n = 1..N.

    Args:
        objects: N of them, (..., P) each. Scenes that differ in some objects only can share the others by broadcasting.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Yields:
        (..., 3, P), intensities.
    """
    sharpness = view.sharpness if sharpness is None else sharpness
    visible: list[Tensor] = []  # (..., P), how much of each object shows
    table = torch.ones_like(objects[0].opacity) if objects else torch.empty(0)  # how much of the table shows
    for n, new in enumerate(objects):
        new_visible, table = new.opacity, table * (1 - new.opacity)
        for i, old in enumerate(objects[:n]):
            old_in_front = (sharpness * (new.depth - old.depth)).sigmoid()
            new_visible = new_visible * (1 - old.opacity * old_in_front)
            visible[i] = visible[i] * (1 - new.opacity * (1 - old_in_front))
        visible.append(new_visible)
        # Pairwise occlusion does not make the parts sum to 1, hence the division.
        image, total = _colourise(table * _table_shade(view), view.table), table
        for part, layer in zip(visible, objects):
            image = image + part[..., None, :] * layer.colour
            total = total + part
        yield image / total[..., None, :]


def camera_rays(view: View, device: torch.device | None = None) -> Tensor:
    """Unit vectors along the rays through the pixels' centres, (3, P) float64, in world coordinates."""
    last = 1 - 1 / view.image_size
    centres = torch.linspace(-last, last, view.image_size, dtype=torch.float64, device=device)
    rays = torch.stack(_ray_directions(view, centres, centres[:, None]))  # (3, H, W)
    return (rays / rays.norm(dim=0)).flatten(1)


def unproject(view: View, points: Tensor, height: float) -> Tensor:
    """Map points of the image to the points at a given height above the table that they show.

    Args:
        view: the camera.
        points: (..., 2), (x, y) in [-1, 1], y down.
        height: z of the plane to meet, in the world's units.
    Returns:
        (..., 2), x and y in the world's units.
    """
    x, y, z = _ray_directions(view, *points.unbind(-1))
    length = (height - view.camera[2]) / z
    return torch.stack((view.camera[0] + length * x, view.camera[1] + length * y), -1)


def _ray_directions(view: View, x: Tensor, y: Tensor) -> list[Tensor]:
    """Directions of rays through image points in [-1, 1], y down; of length 1 at the centre of the image only."""
    forward = _normalise([t - c for t, c in zip(view.target, view.camera)])
    right = _normalise([forward[1], -forward[0], 0.0])
    up = [right[1] * forward[2], -right[0] * forward[2], right[0] * forward[1] - right[1] * forward[0]]
    half_width = math.tan(math.radians(view.field_of_view) / 2)
    return [f + half_width * (r * x - u * y) for f, r, u in zip(forward, right, up)]


def _normalise(vector: Sequence[float]) -> list[float]:
    return [component / math.hypot(*vector) for component in vector]


def _colourise(intensity: Tensor, colour: Vector) -> Tensor:
    """(..., P) -> (..., 3, P). The colour stays a tuple of floats: a tensor would be copied to the device each time."""
    return torch.stack([intensity * channel for channel in colour], -2)


def _table_shade(view: View) -> float:
    """Share of the light that an upward-facing surface receives."""
    return view.ambient + (1 - view.ambient) * max(0.0, _normalise(view.light)[2])


def _to_object_frame(pose: Tensor, view: View) -> tuple[Rays, Rays, Rays]:
    """Express camera and light (M, 1) and rays (M, P) in the frames of objects with poses (M, 4).

    In its frame (see air/scenes3d/shapes.py) an object is at the origin, unrotated and of size 1. Origin and direction
    are both divided by the size, so the depth along a ray stays in the world's units.

    Returns:
        Origin, direction, unit vector towards the light.
    """
    x, y, rotation, size = pose.split(1, -1)  # (M, 1)
    cos, sin, light = rotation.cos(), rotation.sin(), _normalise(view.light)
    rays = camera_rays(view, pose.device).to(pose.dtype)

    def rotate(dx: Tensor | float, dy: Tensor | float) -> tuple[Tensor, Tensor]:
        return cos * dx + sin * dy, cos * dy - sin * dx

    origin = (*rotate((view.camera[0] - x) / size, (view.camera[1] - y) / size), view.camera[2] / size - 1)
    direction = (*rotate(rays[0] / size, rays[1] / size), rays[2] / size)
    return origin, direction, (*rotate(light[0], light[1]), torch.full_like(x, light[2]))
