"""A differentiable renderer without parameters: spheres, boxes and upright cylinders on a table, seen by a camera.

World: the table is the plane z = 0, x to the right, y away from the camera, z up. An object stands on the table; its
pose is (x, y, rotation, size): where it stands, its rotation about the vertical in radians, and half of its height,
which is a sphere's or a cylinder's radius and half of a box's side. Lengths are in units of the world.

Every shape is convex: a ray enters and leaves it once, at depths in closed form. How far a ray is inside the silhouette
becomes an opacity, sigmoid(sharpness · margin), and which of two objects is in front sigmoid(sharpness · difference of
depths). So every pixel is differentiable in every pose; as the sharpness grows, the picture becomes that of a plain
ray caster.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SHAPES = ("sphere", "box", "cylinder")
SYMMETRIES = (0, 4, 1)  # of SHAPES: in how many rotations of a full turn one looks the same; 0: in all of them
REACH = 1.0  # objects stand within [-REACH, REACH]² of the table
Vector = tuple[float, float, float]
_TINY = 1e-9  # of a ray's direction, lest it be parallel to a face


@dataclass(frozen=True)
class View:
    """What does not change from scene to scene. Colours are (red, green, blue) in [0, 1]."""

    image_size: int = 48  # H = W, pixels
    camera: Vector = (0.0, -4.0, 3.0)
    target: Vector = (0.0, 0.0, 0.2)  # what the middle of the image shows
    field_of_view: float = 42.0  # degrees, from edge to edge
    light: Vector = (-0.5, -0.6, 0.8)  # towards it; parallel
    ambient: float = 0.35  # share of the light that comes from everywhere
    table: Vector = (0.35, 0.3, 0.28)
    colours: tuple[Vector, ...] = ((0.9, 0.25, 0.2), (0.25, 0.8, 0.3), (0.3, 0.45, 0.95))  # of SHAPES
    stripe: float = 0.45  # how much darker a cylinder's one half is, and brighter the other
    sharpness: float = 40.0  # per unit of length


class Layers(NamedTuple):
    """Each object alone: P = H W pixels, row by row."""

    opacity: Tensor  # (B, N, P)
    depth: Tensor  # (B, N, P), to where a ray enters, in units of length
    colour: Tensor  # (B, N, 3, P)

    def boxes(self, image_size: int) -> Tensor:
        """Tight around each object as if no other hid it, (B, N, 4), (x0, y0, x1, y1) in pixels; 0 where none shows."""
        inside = (self.opacity > 0.5).unflatten(-1, (image_size, image_size))
        edges = []
        for line in (inside.any(-2), inside.any(-1)):  # columns (x), then rows (y): (B, N, H)
            edges.append((line.int().argmax(-1), image_size - line.flip(-1).int().argmax(-1)))
        (x0, x1), (y0, y1) = edges
        return torch.stack((x0, y0, x1, y1), -1) * inside.flatten(-2).any(-1)[..., None]

    def unbind(self) -> "list[Layers]":
        """The objects one by one, (B, P) each."""
        return [Layers(*one) for one in zip(*(each.unbind(1) for each in self))]

    def detached(self) -> "Layers":
        """Without gradients."""
        return Layers(*(each.detach() for each in self))


class Hit(NamedTuple):
    """Where rays meet one shape, (M, P) each; margin and depth in units of length."""

    margin: Tensor  # how far inside the silhouette a ray is, negative outside
    depth: Tensor  # of entry
    facing: Tensor  # cosine between the surface's normal and the light, negative in the shade
    stripe: Tensor | float  # from -1, dark, to 1, bright


Rays = tuple[Tensor, Tensor, Tensor]  # x, y and z, (M, P), or (M, 1) where they have it in common


def layers(shape: Tensor, pose: Tensor, view: View, sharpness: float | Tensor | None = None) -> Layers:
    """Render each object alone.

    Args:
        shape: (B, N) int64, indices into SHAPES.
        pose: (B, N, 4), (x, y, rotation, size) as in the module's docstring; size > 0.
        sharpness: in place of the view's.
    Raises:
        ValueError: the shapes do not go together (the message prints both).
    """
    if pose.shape != (*shape.shape, 4) or shape.ndim != 2:
        raise ValueError(f"expected shape (B, N) and pose (B, N, 4), got {tuple(shape.shape)} and {tuple(pose.shape)}")
    flat, kinds = pose.flatten(0, 1), shape.flatten()
    order = kinds.argsort(stable=True)
    parts = [_alone(kind, flat[rows], view, sharpness)
             for kind, rows in enumerate(order.split(kinds.bincount(minlength=len(SHAPES)).tolist()))]
    back = order.argsort()
    return Layers(*(torch.cat(each)[back].unflatten(0, shape.shape) for each in zip(*parts)))


def every_shape(pose: Tensor, view: View, sharpness: float | Tensor | None = None) -> Layers:
    """Render each object as each shape, alone.

    Args:
        pose: (..., S, 4), those of an object as each of SHAPES.
        sharpness: in place of the view's.
    Returns:
        (..., S, P) and, for the colour, (..., S, 3, P).
    """
    parts = [_alone(kind, own.flatten(0, -2), view, sharpness) for kind, own in enumerate(pose.unbind(-2))]
    return Layers(*(torch.stack(each, 1).unflatten(0, pose.shape[:-2]) for each in zip(*parts)))


def _alone(kind: int, pose: Tensor, view: View, sharpness: float | Tensor | None) -> Layers:
    """Objects of one kind with these poses, (M, 4): (M, P) and, for the colour, (M, 3, P)."""
    sharpness = view.sharpness if sharpness is None else sharpness
    hit = _SHAPES[kind](*_own_frame(pose, view), pose[:, 3:], sharpness)
    shade = view.ambient + (1 - view.ambient) * hit.facing.clamp(min=0)
    shade = shade * (1 + view.stripe * hit.stripe)
    return Layers((sharpness * hit.margin).sigmoid(), hit.depth, _coloured(shade, view.colours[kind]))


def compose(objects: Layers, present: Tensor, view: View, sharpness: float | Tensor | None = None) -> Tensor:
    """One image of the objects that are there, the nearer ones in front.

    Args:
        objects: of B scenes.
        present: (B, N) in [0, 1], which of them are there.
        sharpness: in place of the view's.
    Returns:
        (B, 3, H, W), intensities.
    """
    opacity = objects.opacity * present[..., None]
    return stages(objects._replace(opacity=opacity), view, sharpness)[:, -1]


def stages(objects: Layers, view: View, sharpness: float | Tensor | None = None) -> Tensor:
    """The table with the first n objects on it, n = 0..N, the nearer ones in front.

    Args:
        objects: of B scenes.
        sharpness: in place of the view's.
    Returns:
        (B, N+1, 3, H, W), intensities.
    """
    batch, _, pixels = objects.opacity.shape
    table = _coloured(objects.opacity.new_full((batch, pixels), _on_table(view)), view.table)
    return torch.stack([table, *canvases(objects.unbind(), view, sharpness)], 1).unflatten(
        -1, (view.image_size, view.image_size))


def canvases(objects: Sequence[Layers], view: View, sharpness: float | Tensor | None = None) -> Iterator[Tensor]:
    """The table with the first n objects on it, n = 1..N, one after the other.

    Args:
        objects: each alone, (..., P); scenes that differ in some of them only may share the others by broadcasting.
        sharpness: in place of the view's.
    Returns:
        (..., 3, P) each, intensities.
    """
    sharpness = view.sharpness if sharpness is None else sharpness
    seen: list[Tensor] = []  # (..., P), how much of each shows
    table = torch.ones_like(objects[0].opacity) if objects else torch.empty(0)  # how much of it shows
    for n, one in enumerate(objects):
        own, table = one.opacity, table * (1 - one.opacity)
        for i, other in enumerate(objects[:n]):
            before = (sharpness * (one.depth - other.depth)).sigmoid()  # the other before this one
            own = own * (1 - other.opacity * before)
            seen[i] = seen[i] * (1 - one.opacity * (1 - before))
        seen.append(own)
        image, total = _coloured(table * _on_table(view), view.table), table
        for part, each in zip(seen, objects):
            image = image + part[..., None, :] * each.colour
            total = total + part
        yield image / total[..., None, :]


def render(shape: Tensor, pose: Tensor, present: Tensor, view: View, sharpness: float | Tensor | None = None
           ) -> Tensor:
    """`layers` and `compose`: (B, N), (B, N, 4) and (B, N) -> (B, 3, H, W)."""
    return compose(layers(shape, pose, view, sharpness), present, view, sharpness)


def camera_rays(view: View, device: torch.device | None = None) -> Tensor:
    """The directions of the rays through the pixels' centres, of length 1: (3, P) float64."""
    last = 1 - 1 / view.image_size
    across = torch.linspace(-last, last, view.image_size, dtype=torch.float64, device=device)
    rays = torch.stack(_directions(view, across, across[:, None]))  # (3, H, W)
    return (rays / rays.norm(dim=0)).flatten(1)


def on_plane(view: View, points: Tensor, height: float) -> Tensor:
    """Where the rays through points of the image, (..., 2), (x, y) in [-1, 1], y down, are so high above the table:
    (..., 2), in units of the world.
    """
    x, y, z = _directions(view, *points.unbind(-1))
    length = (height - view.camera[2]) / z
    return torch.stack((view.camera[0] + length * x, view.camera[1] + length * y), -1)


def _directions(view: View, across: Tensor, down: Tensor) -> list[Tensor]:
    """x, y and z of rays through points of the image, -1 to 1, of length 1 in the middle."""
    forward = _unit([t - c for t, c in zip(view.target, view.camera)])
    right = _unit([forward[1], -forward[0], 0.0])
    up = [right[1] * forward[2], -right[0] * forward[2], right[0] * forward[1] - right[1] * forward[0]]
    edge = math.tan(math.radians(view.field_of_view) / 2)
    return [f + edge * (r * across - u * down) for f, r, u in zip(forward, right, up)]


def _unit(vector: Sequence[float]) -> list[float]:
    return [each / math.hypot(*vector) for each in vector]


def _coloured(intensity: Tensor, colour: Vector) -> Tensor:
    """(..., P) -> (..., 3, P). Numbers, not a tensor of them, which would have to be moved to a device each time."""
    return torch.stack([intensity * part for part in colour], -2)


def _on_table(view: View) -> float:
    """The light's share that falls on a plane that faces up."""
    return view.ambient + (1 - view.ambient) * max(0.0, _unit(view.light)[2])


def _own_frame(pose: Tensor, view: View) -> tuple[Rays, Rays, Rays]:
    """The camera, (M, 1), the rays, (M, P), and the light, (M, 1), as objects with these poses, (M, 4), see them: the
    object's middle is the origin, its size 1, and it is not rotated. A ray's depth is in units of length all the same.
    """
    x, y, rotation, size = pose.split(1, -1)  # (M, 1)
    cos, sin, light = rotation.cos(), rotation.sin(), _unit(view.light)
    rays = camera_rays(view, pose.device).to(pose.dtype)

    def turned(dx: Tensor | float, dy: Tensor | float) -> tuple[Tensor, Tensor]:
        return cos * dx + sin * dy, cos * dy - sin * dx

    origin = (*turned((view.camera[0] - x) / size, (view.camera[1] - y) / size), view.camera[2] / size - 1)
    direction = (*turned(rays[0] / size, rays[1] / size), rays[2] / size)
    return origin, direction, (*turned(light[0], light[1]), torch.full_like(x, light[2]))


def _sphere(origin: Rays, direction: Rays, light: Rays, size: Tensor, sharpness: float | Tensor) -> Hit:
    """x² + y² + z² = 1."""
    a, b, c = _quadratic(origin, direction)
    nearest = (c + 1 - b.square() / a).clamp(min=_TINY).sqrt()  # from the middle to the ray
    depth = -(b + (b.square() - a * c).clamp(min=_TINY).sqrt()) / a
    return Hit(size * (1 - nearest), depth, _dot(_at(depth, origin, direction), light), 0.0)


def _box(origin: Rays, direction: Rays, light: Rays, size: Tensor, sharpness: float | Tensor) -> Hit:
    """|x|, |y|, |z| <= 1: which face a ray enters by is soft, too."""
    enters, leaves = zip(*(_slab(o, d) for o, d in zip(origin, direction)))
    depth = torch.maximum(torch.maximum(*enters[:2]), enters[2])
    face = [(sharpness * (enter - depth)).exp() for enter in enters]
    facing = -_dot([w * d.sign() for w, d in zip(face, direction)], light) / (face[0] + face[1] + face[2])
    leave = torch.minimum(torch.minimum(*leaves[:2]), leaves[2])
    return Hit(leave - depth, depth, facing, 0.0)


def _cylinder(origin: Rays, direction: Rays, light: Rays, size: Tensor, sharpness: float | Tensor) -> Hit:
    """x² + y² <= 1, |z| <= 1: bright where x > 0, dark where x < 0."""
    a, b, c = _quadratic(origin[:2], direction[:2])
    half = (b.square() - a * c).clamp(min=_TINY).sqrt() / a
    near_side, far_side = -b / a - half, half - b / a
    near_end, far_end = _slab(origin[2], direction[2])
    depth = torch.maximum(near_side, near_end)
    x, y = _at(depth, origin[:2], direction[:2])
    end = (sharpness * (near_end - near_side)).sigmoid()  # whether a ray enters by an end, and not by the side
    facing = (1 - end) * (x * light[0] + y * light[1]) - end * direction[2].sign() * light[2]
    beside = size * (1 - (c + 1 - b.square() / a).clamp(min=_TINY).sqrt())  # how closely the ray passes the axis
    margin = torch.minimum(beside, torch.minimum(far_side, far_end) - depth)
    return Hit(margin, depth, facing, (4 * x).tanh())


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    product = one[0] * other[0]
    for a, b in zip(one[1:], other[1:]):
        product = product + a * b
    return product


def _at(depth: Tensor, origin: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """The point of a ray at a depth."""
    return [o + depth * d for o, d in zip(origin, direction)]


def _quadratic(origin: Sequence[Tensor], direction: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, c of |origin + t direction|² = 1: a t² + 2 b t + c = 0."""
    return _dot(direction, direction) + _TINY, _dot(origin, direction), _dot(origin, origin) - 1


def _slab(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The depths at which a ray enters and leaves -1 <= x <= 1."""
    direction = torch.where(direction.abs() < _TINY, torch.full_like(direction, _TINY), direction)
    middle, half = -origin / direction, 1 / direction.abs()
    return middle - half, middle + half


_SHAPES: tuple[Callable[[Rays, Rays, Rays, Tensor, float | Tensor], Hit], ...] = (_sphere, _box, _cylinder)
