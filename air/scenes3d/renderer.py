"""A differentiable renderer without parameters: spheres, boxes and upright cylinders on a table, seen by a camera.

World coordinates: the table is the plane z = 0; x points right, y away from the camera, z up. Objects stand on the
table. A pose is (x, y, rotation, size): the position on the table, the rotation about the vertical in radians, and half
of the object's height (the radius of a sphere or cylinder, half of a box's side). Lengths are in the world's units.

Each object is rendered alone, as a layer with an opacity and a depth per pixel, and layers are then composed
(air/scenes3d/composition.py):

    opacity                       = sigmoid(sharpness · how far the ray is inside the silhouette)
    P(object i is in front of j)  = sigmoid(sharpness · (depth_j - depth_i))

So every pixel is differentiable in every pose. As the sharpness grows, the image approaches that of a ray caster.

Wherever a View is expected, its `Sight` does as well and saves computing it.

Shape letters: B scenes, N objects, S shapes, P = H W pixels, row by row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from air.scenes3d.composition import Layers, compose
from air.scenes3d.shapes import SHAPES, intersect
from air.scenes3d.view import Sight, View


def layers(shape: Tensor, pose: Tensor, view: View | Sight, sharpness: float | Tensor | None = None) -> Layers:
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
    flat_shape = shape.flatten()
    order = flat_shape.argsort(stable=True)
    counts = flat_shape.bincount(minlength=len(SHAPES)).tolist() if len(flat_shape) else [0] * len(SHAPES)
    place, rotation, size = pose.flatten(0, 1)[order].split((2, 1, 1), -1)
    rows, inverse = _render_rows(place, rotation, size, counts, Sight.of(view, pose), sharpness), order.argsort()
    return Layers(*(field[inverse].unflatten(0, shape.shape) for field in rows))


def candidate_layers(place: Tensor, rotation: Tensor, size: float, view: View | Sight,
                     sharpness: float | Tensor | None = None) -> Layers:
    """Render each object alone, once as each of SHAPES.

    Args:
        place: (..., S, 2), (x, y) that the object has as each shape.
        rotation: (..., S), likewise.
        size: of all objects.
        view: camera, light and colours.
        sharpness: replaces the view's.
    Returns:
        Layers of (..., S) objects.
    """
    place, rotation = place.movedim(-2, 0), rotation.movedim(-1, 0)  # (S, ...)
    counts = [rotation[0].numel()] * len(SHAPES)
    rows = _render_rows(place.flatten(0, -2), rotation.reshape(-1, 1), rotation.new_full((sum(counts), 1), size),
                        counts, Sight.of(view, place), sharpness)
    return Layers(*(field.unflatten(0, rotation.shape).movedim(0, rotation.ndim - 1) for field in rows))


def _render_rows(place: Tensor, rotation: Tensor, size: Tensor, counts: Sequence[int], sight: Sight,
                 sharpness: float | Tensor | None) -> Layers:
    """Render M objects sorted by shape: opacity and depth (M, P), colour (M, 3, P). Arguments as for `intersect`."""
    view = sight.view
    sharpness = view.sharpness if sharpness is None else sharpness
    hit = intersect(place, rotation, size, counts, sight, sharpness)
    shade = (view.ambient + (1 - view.ambient) * hit.facing.relu()) * hit.paint
    colour = torch.cat([colour.expand(count, -1, -1) for colour, count in zip(sight.colours, counts)])  # (M, 3, 1)
    return Layers((sharpness * hit.margin).sigmoid(), hit.depth, shade[:, None] * colour)


def render(shape: Tensor, pose: Tensor, present: Tensor, view: View | Sight, sharpness: float | Tensor | None = None
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
    sight = Sight.of(view, pose)
    return compose(layers(shape, pose, sight, sharpness), present, sight, sharpness)
