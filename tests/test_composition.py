"""Composition against the formulas of its docstring, pixel by pixel and pair by pair."""

import pytest
import torch

from air.scenes3d.composition import Layers, _Hide, compose, compose_all, compose_replacing_one, compose_stages
from air.scenes3d.renderer import View
from air.scenes3d.view import Sight
from tests.literal import literal_composition

VIEW = View(image_size=3)
SHARPNESS = 3.0


def random_layers(*leading):
    """Objects some of whose pixels are opaque, empty, or as deep as the next object's."""
    opacity, depth, colour = (torch.rand(*leading, *size, 9, dtype=torch.float64) for size in ((), (), (3,)))
    opacity[..., 0], opacity[..., 1], depth[..., 2] = 1, 0, 0.5
    return Layers(opacity, depth, colour)


def literal(layers, rows):
    """The image, (3, 3, 3), of the objects with these indices, or of other single ones (opacity, depth, colour)."""
    table = Sight.of(VIEW, layers.opacity).table
    objects = [tuple(field[row] for field in layers) if isinstance(row, int) else row for row in rows]
    return literal_composition(objects, table, SHARPNESS).view(3, 3, 3)


def test_stages_are_the_formula_and_so_are_their_gradients():
    torch.manual_seed(0)
    fields = [field.requires_grad_() for field in random_layers(2, 3)]
    layers, weight = Layers(*fields), torch.rand(2, 3, 3, 3, 3, dtype=torch.float64)
    expected = torch.stack([torch.stack([literal(Layers(*(field[b] for field in fields)), range(n)) for n in (1, 2, 3)])
                            for b in range(2)])
    expected_gradients = torch.autograd.grad((weight * expected).sum(), fields)
    for found, used in ((compose_stages(layers, VIEW, SHARPNESS), expected),
                        (compose_all(layers.unbind(), VIEW, torch.tensor(SHARPNESS)), expected[:, -1])):
        torch.testing.assert_close(found, used, rtol=1e-12, atol=1e-14)
    gradients = torch.autograd.grad((weight * compose_stages(layers, VIEW, SHARPNESS)).sum(), fields)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-13)


def test_the_gradient_of_occlusion_is_that_of_finite_differences():
    torch.manual_seed(0)
    opacities_and_depths = [torch.rand(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    for sharpness in (4.0, torch.tensor(4.0, dtype=torch.float64)):
        assert torch.autograd.gradcheck(lambda *pair: _Hide.apply(*pair, sharpness), opacities_and_depths)


def test_one_object_is_replaced_by_each_of_its_candidates():
    torch.manual_seed(0)
    drawn, candidates = random_layers(2, 3), random_layers(2, 3, 2)
    found = list(compose_replacing_one(drawn, candidates, VIEW, SHARPNESS))
    replaced = [(t, n) for t in range(3) for n in range(t + 1, 4)]
    assert [n for n, _ in found] == [n for _, n in replaced]
    for (t, n), (_, images) in zip(replaced, found):
        assert images.shape == (2, 2, 3, 3, 3)
        for b, s in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
            rows = list(range(n))
            rows[t] = tuple(field[b, t, s] for field in candidates)
            expected = literal(Layers(*(field[b] for field in drawn)), rows)
            torch.testing.assert_close(images[b, s], expected, rtol=1e-12, atol=1e-14)


def test_leading_dimensions_may_be_any():
    torch.manual_seed(0)
    layers = random_layers(2, 4, 3)
    flat = Layers(*(field.flatten(0, 1) for field in layers))
    assert torch.equal(compose_stages(layers, VIEW).flatten(0, 1), compose_stages(flat, VIEW))
    assert torch.equal(compose_all(layers.unbind(), VIEW).flatten(0, 1), compose_all(flat.unbind(), VIEW))


@pytest.mark.parametrize("scenes, objects", [(0, 2), (2, 0)])
def test_nothing_to_compose(scenes, objects):
    layers = random_layers(scenes, objects)
    image = compose(layers, torch.ones(scenes, objects), VIEW)
    assert torch.equal(image, Sight.of(VIEW, image).table[..., None].expand(scenes, 3, 3, 3))
