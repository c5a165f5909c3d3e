"""The shapes of 3D scenes: where rays enter and leave spheres, boxes and upright cylinders, in closed form.

Every shape is convex and bounded by surfaces of two kinds. A ray is inside the shape where it is inside all of them:

    round   |p| <= 1 for a sphere, |(p_x, p_y)| <= 1 for a cylinder: a quadratic equation in the depth
    flat    |p_i| <= 1 for i = x, y, z of a box and for i = z of a cylinder: a linear equation

Here p = depth · ray - centre is a point of the ray in the object's frame, and the centre is the object's, seen from the
camera. The unit of length is the object's size (half of its height) everywhere but in what `intersect` takes and gives.
Frames are rotated like the object, except where that makes no difference: for round surfaces.

Sums and maxima of large tensors are written out term by term, which torch.compile turns into faster code for a CPU.

Shape letters: M objects, P rays.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from air.scenes3d.view import EPSILON, Sight

SHAPES = ("sphere", "box", "cylinder")
SYMMETRIES = (0, 4, 1)  # order of each shape's rotational symmetry about the vertical; 0: full symmetry

Record = TypeVar("Record", bound=tuple[Any, ...])  # a NamedTuple of tensors


class Hit(NamedTuple):
    """Where P rays meet M objects, (M, P) each; margin and depth are in the world's units of length."""

    margin: Tensor  # how far inside the silhouette the ray is; negative outside
    depth: Tensor  # distance from the camera to where the ray enters
    facing: Tensor  # cosine of the angle between surface normal and light; negative in the shade
    paint: Tensor  # multiplies the light: less and more than 1 on the two halves of a cylinder, 1 for other shapes


class _Objects(NamedTuple):
    """Poses of M objects, seen from the camera and in units of the object's size."""

    centre: Tensor  # (M, 2), x and y
    height: Tensor  # (M, 1), z of the centre
    rotation: Tensor  # (M, 1)
    size: Tensor  # (M, 1), in the world's units


class _Turned(NamedTuple):
    """What M objects see from their rotated frames: (x, y) of their centre, of the rays and of the falling light."""

    centre: Tensor  # (M, 2, 1)
    rays: Tensor  # (M, 2, P)
    light: Tensor  # (M, 2, 1)


class _Surface(NamedTuple):
    """The depths between which rays are inside a surface, (M, ..., P) each."""

    enter: Tensor
    leave: Tensor


class _Round(NamedTuple):
    """The round surfaces of M objects, (M, P) each."""

    enter: Tensor
    leave: Tensor
    margin: Tensor  # how far inside the silhouette


def intersect(place: Tensor, rotation: Tensor, size: Tensor, counts: Sequence[int], sight: Sight,
              sharpness: float | Tensor) -> Hit:
    """Intersect rays with objects that are sorted by shape.

    Args:
        place: (M, 2), (x, y) on the table.
        rotation: (M, 1), about the vertical in radians.
        size: (M, 1), half of the object's height, positive.
        counts: how many objects have each of SHAPES, in this order; M in total.
        sight: camera, rays and light.
        sharpness: of soft decisions, per unit of length.
    """
    objects = _Objects((place - sight.camera[:2]) / size, 1 - sight.camera[2] / size, rotation, size)
    sphere, box, cylinder = _split(objects, counts)
    sphere_side, cylinder_side = _intersect_round(sphere, cylinder, sight)
    turned = _join(box, cylinder)
    box_top, cylinder_top = _split(_intersect_flat(turned.height, sight.inverse_z), counts[1:])
    box_frame, cylinder_frame = _split(_turn(turned, sight), counts[1:])
    hit = _join(_sphere(sphere, sphere_side, sight),
                _box(box, box_frame, box_top, sight, sharpness),
                _cylinder(cylinder, cylinder_frame, cylinder_side, cylinder_top, sight, sharpness))
    return hit._replace(margin=size * hit.margin, depth=size * hit.depth)


def _sphere(sphere: _Objects, surface: _Round, sight: Sight) -> Hit:
    lit = (sphere.centre * sight.light[:2]).sum(-1, keepdim=True) + sphere.height * sight.light[2]
    facing = surface.enter * sight.along_light[0] - lit
    return Hit(surface.margin, surface.enter, facing, sight.plain.expand_as(facing))


def _box(box: _Objects, frame: _Turned, top: _Surface, sight: Sight, sharpness: float | Tensor) -> Hit:
    """The face through which a ray enters is a soft choice too, so that the shading is differentiable at the edges."""
    across = frame.rays.masked_fill(frame.rays.abs() < EPSILON, EPSILON)
    sides = _intersect_flat(frame.centre, 1 / across)
    (enter_x, enter_y), (leave_x, leave_y) = sides.enter.unbind(1), sides.leave.unbind(1)
    depth = _larger(_larger(enter_x, enter_y), top.enter)
    leave = _smaller(_smaller(leave_x, leave_y), top.leave)
    # softmax(sharpness · size · enter) over the three faces towards the camera
    scale, nearest = sharpness * box.size, depth.detach()
    weights = (scale[..., None] * (sides.enter - nearest[:, None])).exp()
    top_weight = (scale * (top.enter - nearest)).exp()
    (x, y), (weight_x, weight_y) = (weights * (frame.rays.sign() * frame.light)).unbind(1), weights.unbind(1)
    facing = (x + y + top_weight * sight.top_facing) / (weight_x + weight_y + top_weight)
    return Hit(leave - depth, depth, facing, sight.plain.expand_as(facing))


def _cylinder(cylinder: _Objects, frame: _Turned, side: _Round, top: _Surface, sight: Sight,
              sharpness: float | Tensor) -> Hit:
    """The half with x > 0 is bright and the half with x < 0 dark, so that the cylinder's rotation shows."""
    depth = _larger(side.enter, top.enter)
    margin = _smaller(side.margin, _smaller(side.leave, top.leave) - depth)
    through_top = (sharpness * cylinder.size * (top.enter - side.enter)).sigmoid()  # 1: the ray enters through the top
    lit = (cylinder.centre * sight.light[:2]).sum(-1, keepdim=True)
    facing = (depth * sight.along_light[1] - lit).lerp(sight.top_facing, through_top)
    x = depth * frame.rays[:, 0] - frame.centre[:, 0]
    return Hit(margin, depth, facing, 1 + sight.view.stripe * (4 * x).tanh())


def _intersect_round(sphere: _Objects, cylinder: _Objects, sight: Sight) -> list[_Round]:
    """Intersect rays with spheres and with the sides of cylinders, whatever their height."""
    counts = len(sphere.size), len(cylinder.size)
    centre, size = torch.cat((sphere.centre, cylinder.centre)), torch.cat((sphere.size, cylinder.size))
    height = torch.cat((sphere.height, torch.zeros_like(cylinder.height)))
    # |depth · ray - centre|² = 1, that is a depth² - 2 b depth + |centre|² - 1 = 0
    a = torch.cat([row.expand(count, -1) for row, count in zip(sight.squared, counts)])  # (M, P)
    x, y = centre.split(1, -1)
    b = (height * sight.rays[2]).addcmul(x, sight.rays[0]).addcmul(y, sight.rays[1])
    nearest = b / a  # depth at which the ray is nearest to the centre
    # 1 - (the distance there)²
    inside = 1 - (centre * centre).sum(-1, keepdim=True) - height.square() + b * nearest
    half_chord = (a * inside).clamp(min=EPSILON * size.square()).sqrt() / a
    margin = 1 - (1 - inside).clamp(min=EPSILON).sqrt()
    return _split(_Round(nearest - half_chord, nearest + half_chord, margin), counts)


def _intersect_flat(centre: Tensor, inverse_ray: Tensor) -> _Surface:
    """Intersect rays with |p_i| <= 1: the component i of the centre, (M, ..., 1), and 1 / that of the ray, (..., P)."""
    middle, half = centre * inverse_ray, inverse_ray.abs()
    return _Surface(middle - half, middle + half)


def _turn(objects: _Objects, sight: Sight) -> _Turned:
    """Rotate the world into the objects' frames."""
    cos, sin = objects.rotation.cos(), objects.rotation.sin()
    axes = torch.cat((cos, sin, -sin, cos), -1).unflatten(-1, (2, 2))  # (M, 2, 2), the frames' axes as rows
    of_x, of_y = axes.split(1, -1)
    rays_and_light = (of_x * sight.rays_and_light[0]).addcmul(of_y, sight.rays_and_light[1])  # (M, 2, P + 1)
    rays, light = rays_and_light.split((sight.rays.shape[1], 1), -1)
    return _Turned((axes * objects.centre[:, None]).sum(-1, keepdim=True), rays, light)


def _larger(a: Tensor, b: Tensor) -> Tensor:
    """torch.maximum with a gradient of fewer operations."""
    return torch.where(a > b, a, b)


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a < b, a, b)


def _join(*parts: Record) -> Record:
    return type(parts[0])(*map(torch.cat, zip(*parts)))


def _split(whole: Record, counts: Sequence[int]) -> list[Record]:
    return [type(whole)(*fields) for fields in zip(*(field.split(list(counts)) for field in whole))]
