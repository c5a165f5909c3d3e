"""Intersections against the same closed forms in plain Python, ray by ray."""

import math

import pytest
import torch

from air.scenes3d.renderer import View, layers
from air.scenes3d.shapes import SHAPES, intersect
from air.scenes3d.view import Sight, unproject, unprojection
from tests.literal import literal_hit


def test_hits_of_sorted_objects_are_those_of_each_ray_and_object():
    view = View(image_size=7, sharpness=6.0)
    sight, counts = Sight.of(view, torch.zeros((), dtype=torch.float64)), (2, 3, 1)
    torch.manual_seed(0)
    pose = torch.rand(6, 4, dtype=torch.float64) * torch.tensor([1.6, 1.6, 6, 0.4]) + torch.tensor([-0.8, -0.8, 0, 0.2])
    hit = intersect(*pose.split((2, 1, 1), -1), counts, sight, view.sharpness)
    kinds = [kind for kind, count in zip(SHAPES, counts) for _ in range(count)]
    expected = torch.tensor([[literal_hit(kind, row, ray, view, view.sharpness) for ray in sight.rays.T.tolist()]
                             for kind, row in zip(kinds, pose.tolist())], dtype=torch.float64).unbind(-1)
    for found, each in zip(hit, expected):
        torch.testing.assert_close(found, each, rtol=1e-9, atol=1e-9)
    assert (hit.margin > 0).any(1).all() and (hit.margin < 0).any(1).all()
    assert (hit.paint[:-1] == 1).all() and hit.paint[-1].max() > 1.4 and hit.paint[-1].min() < 0.6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", range(3))
def test_gradients_are_finite_where_roots_and_divisions_are_degenerate(kind, dtype):
    """Each object's centre is on the ray of one pixel; in the middle column, rays are parallel to sides of boxes."""
    view = View(image_size=5)
    along = torch.linspace(-0.8, 0.8, 5, dtype=torch.float64)  # centres of pixels
    places = unproject(unprojection(view, 0.4), torch.cartesian_prod(along, along).flip(-1))
    pose = torch.cat((places, torch.tensor([[0.0, 0.4]]).expand(25, -1)), -1)[None].to(dtype).requires_grad_()
    rendered = layers(torch.full((1, 25), kind), pose, view)
    assert rendered.opacity[0].diagonal().min() > 0.99 and all(field.isfinite().all() for field in rendered)
    for field in rendered:
        gradient, = torch.autograd.grad(field.sum(), pose, retain_graph=True)
        assert gradient.isfinite().all()
    if SHAPES[kind] == "sphere":
        distance = torch.tensor([math.dist(view.camera, (*place, 0.4)) - 0.4 for place in places.tolist()]).to(dtype)
        torch.testing.assert_close(rendered.depth[0].diagonal(), distance, rtol=1e-5, atol=0)
