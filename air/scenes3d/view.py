"""The view of a scene: camera, light and colours, and what can be computed from them before any object is known.

World coordinates: the table is the plane z = 0; x points right, y away from the camera, z up.

Shape letters: S shapes, P = H W pixels, row by row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

REACH = 1.0  # objects stand within [-REACH, REACH]² of the table
EPSILON = 1e-9  # smallest part of a direction and smallest radicand: keeps divisions and roots differentiable
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


class Sight(NamedTuple):
    """A view as tensors of one dtype on one device, for rendering any number of objects.

    In (2, P), the first row is for spheres, whose surface is round in x, y and z; the second for cylinders, in x and y.
    """

    view: View
    camera: Tensor  # (3,)
    light: Tensor  # (3,), unit vector towards the light
    rays: Tensor  # (3, P), unit vectors through the pixels' centres
    rays_and_light: Tensor  # (2, P+1), x and y of the rays, and of the direction in which light falls
    inverse_z: Tensor  # (P,), 1 / z of the rays
    top_facing: Tensor  # (P,), cosine of the angle between the light and the top (or bottom) that a ray can meet
    squared: Tensor  # (2, P), squared length of that part of the rays
    along_light: Tensor  # (2, P), scalar product of that part of the rays with the light
    colours: Tensor  # (S, 3, 1)
    table: Tensor  # (3, 1), intensities of the lit table
    plain: Tensor  # (1,), 1: the paint of a shape without a stripe

    @classmethod
    def of(cls, view: "View | Sight", like: Tensor) -> "Sight":
        """Compute the tensors from a view, with the dtype and device of `like`; a Sight is returned as it is."""
        if isinstance(view, Sight):
            return view
        light = _normalise(view.light)
        shade = view.ambient + (1 - view.ambient) * max(0.0, light[2])  # of an upward-facing surface
        rays = camera_rays(view, like.device)
        towards = rays.new_tensor(light)[:, None]
        z = rays[2].masked_fill(rays[2].abs() < EPSILON, EPSILON)
        products, squares = rays * towards, rays.square()
        tensors = {
            "camera": rays.new_tensor(view.camera),
            "light": towards[:, 0],
            "rays": rays,
            "rays_and_light": torch.cat((rays, -towards), 1)[:2],
            "inverse_z": 1 / z,
            "top_facing": -light[2] * z.sign(),
            "squared": torch.stack((squares.sum(0), squares[:2].sum(0))).clamp(min=EPSILON),
            "along_light": torch.stack((products.sum(0), products[:2].sum(0))),
            "colours": rays.new_tensor(view.colours)[..., None],
            "table": rays.new_tensor([shade * channel for channel in view.table])[:, None],
            "plain": rays.new_ones(1),
        }
        return cls(view, **{name: tensor.to(like.dtype) for name, tensor in tensors.items()})


def camera_rays(view: View, device: torch.device | None = None) -> Tensor:
    """Unit vectors along the rays through the pixels' centres, (3, P) float64, in world coordinates."""
    last = 1 - 1 / view.image_size
    centres = torch.linspace(-last, last, view.image_size, dtype=torch.float64, device=device)
    rays = torch.stack(_ray_directions(view, centres, centres[:, None]))  # (3, H, W)
    return (rays / rays.norm(dim=0)).flatten(1)


def unprojection(view: View, height: float) -> Tensor:
    """The map from points of the image to the points at a given height above the table that they show.

    Args:
        view: the camera.
        height: z of the plane to meet, in the world's units.
    Returns:
        (3, 3) float64, a homography, see `unproject`.
    """
    # camera + depth · ray is at the height for depth = (height - camera_z) / ray_z, and ray is linear in (1, x, y).
    corners = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    at_corners = torch.stack([torch.as_tensor(each) for each in _ray_directions(view, *corners)])  # (3, 3)
    ray = torch.cat((at_corners[:, :1], at_corners[:, 1:] - at_corners[:, :1]), 1)  # of 1, x and y
    camera = torch.tensor(view.camera, dtype=torch.float64)[:, None]
    return torch.cat((camera[:2] * ray[2:] + (height - camera[2]) * ray[:2], ray[2:]))


def unproject(homography: Tensor, points: Tensor) -> Tensor:
    """Map points of the image to points above the table.

    Args:
        homography: from `unprojection`.
        points: (..., 2), (x, y) in [-1, 1], y down.
    Returns:
        (..., 2), x and y in the world's units.
    """
    across, ray_z = ((homography[:, 1:] * points.unsqueeze(-2)).sum(-1) + homography[:, 0]).split((2, 1), -1)
    return across / ray_z


def _ray_directions(view: View, x: Tensor, y: Tensor) -> list[Tensor]:
    """Directions of rays through image points in [-1, 1], y down; of length 1 at the centre of the image only."""
    forward = _normalise([t - c for t, c in zip(view.target, view.camera)])
    right = _normalise([forward[1], -forward[0], 0.0])
    up = [right[1] * forward[2], -right[0] * forward[2], right[0] * forward[1] - right[1] * forward[0]]
    half_width = math.tan(math.radians(view.field_of_view) / 2)
    return [f + half_width * (r * x - u * y) for f, r, u in zip(forward, right, up)]


def _normalise(vector: Sequence[float]) -> list[float]:
    return [component / math.hypot(*vector) for component in vector]
