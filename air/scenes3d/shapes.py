"""The shapes of 3D scenes: where a ray enters and leaves a sphere, a box and an upright cylinder, in closed form.

Everything here is in the object's frame: its centre is the origin, its size (half of its height) is 1, and it is not
rotated. A ray is the set of points origin + depth · direction. The caller scales origin and direction such that depth
is in the world's units of length.

Every shape is convex, so a ray enters and leaves it at most once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SHAPES = ("sphere", "box", "cylinder")
SYMMETRIES = (0, 4, 1)  # order of each shape's rotational symmetry about the vertical; 0: full symmetry

Rays = tuple[Tensor, Tensor, Tensor]  # x, y and z, each (M, P), or (M, 1) if all rays of an object share it
_EPSILON = 1e-9  # smallest direction component and radicand: keeps divisions and square roots differentiable


class Hit(NamedTuple):
    """Where P rays meet M objects of one shape, (M, P) each; margin and depth are in the world's units of length."""

    margin: Tensor  # how far inside the silhouette the ray is; negative outside
    depth: Tensor  # distance from the camera to where the ray enters
    facing: Tensor  # cosine of the angle between surface normal and light; negative in the shade
    stripe: Tensor | float  # from -1 (dark half) to 1 (bright half); 0 for shapes without a stripe


def intersect_sphere(origin: Rays, direction: Rays, light: Rays, size: Tensor, sharpness: float | Tensor) -> Hit:
    """Intersect rays with x² + y² + z² <= 1.

    Args:
        origin: the camera, in each object's frame.
        direction: of the rays, in each object's frame.
        light: unit vector towards the light.
        size: (M, 1), half of each object's height in the world's units.
        sharpness: of soft decisions, per unit of length.
    """
    a, b, c = _quadratic(origin, direction)
    distance = (c + 1 - b.square() / a).clamp(min=_EPSILON).sqrt()  # from the centre to the ray
    depth = -(b + (b.square() - a * c).clamp(min=_EPSILON).sqrt()) / a
    return Hit(size * (1 - distance), depth, _dot(_point_at(depth, origin, direction), light), 0.0)


def intersect_box(origin: Rays, direction: Rays, light: Rays, size: Tensor, sharpness: float | Tensor) -> Hit:
    """Intersect rays with |x|, |y|, |z| <= 1. Arguments as for `intersect_sphere`.

    The face through which a ray enters is a soft choice too, so that the shading is differentiable at the edges.
    """
    enters, leaves = zip(*(_intersect_slab(o, d) for o, d in zip(origin, direction)))
    depth = torch.maximum(torch.maximum(*enters[:2]), enters[2])
    weights = [(sharpness * (enter - depth)).exp() for enter in enters]  # of the three faces towards the camera
    facing = -_dot([w * d.sign() for w, d in zip(weights, direction)], light) / (weights[0] + weights[1] + weights[2])
    leave = torch.minimum(torch.minimum(*leaves[:2]), leaves[2])
    return Hit(leave - depth, depth, facing, 0.0)


def intersect_cylinder(origin: Rays, direction: Rays, light: Rays, size: Tensor, sharpness: float | Tensor) -> Hit:
    """Intersect rays with x² + y² <= 1, |z| <= 1. Arguments as for `intersect_sphere`.

    The half with x > 0 is bright and the half with x < 0 dark, so that the cylinder's rotation shows.
    """
    a, b, c = _quadratic(origin[:2], direction[:2])
    half_chord = (b.square() - a * c).clamp(min=_EPSILON).sqrt() / a
    enter_side, leave_side = -b / a - half_chord, half_chord - b / a
    enter_cap, leave_cap = _intersect_slab(origin[2], direction[2])
    depth = torch.maximum(enter_side, enter_cap)
    x, y = _point_at(depth, origin[:2], direction[:2])
    through_cap = (sharpness * (enter_cap - enter_side)).sigmoid()  # 1: the ray enters through a cap, 0: the side
    facing = (1 - through_cap) * (x * light[0] + y * light[1]) - through_cap * direction[2].sign() * light[2]
    side_margin = size * (1 - (c + 1 - b.square() / a).clamp(min=_EPSILON).sqrt())  # 1 - distance to the axis
    margin = torch.minimum(side_margin, torch.minimum(leave_side, leave_cap) - depth)
    return Hit(margin, depth, facing, (4 * x).tanh())


# By index into SHAPES.
INTERSECTIONS: tuple[Callable[[Rays, Rays, Rays, Tensor, float | Tensor], Hit], ...] = (
    intersect_sphere, intersect_box, intersect_cylinder)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    product = a[0] * b[0]
    for x, y in zip(a[1:], b[1:]):
        product = product + x * y
    return product


def _point_at(depth: Tensor, origin: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    return [o + depth * d for o, d in zip(origin, direction)]


def _quadratic(origin: Sequence[Tensor], direction: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of |origin + t direction|² = 1, that is a t² + 2 b t + c = 0."""
    return _dot(direction, direction) + _EPSILON, _dot(origin, direction), _dot(origin, origin) - 1


def _intersect_slab(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The depths at which a ray enters and leaves -1 <= x <= 1."""
    direction = torch.where(direction.abs() < _EPSILON, torch.full_like(direction, _EPSILON), direction)
    middle, half = -origin / direction, 1 / direction.abs()
    return middle - half, middle + half
