import itertools

import pytest
import torch

from air.scenes3d.composition import Layers
from air.scenes3d.shape_gradients import SHAPE_ESTIMATORS
from air.scenes3d.shapes import SHAPES
from tests.small_scenes import make_images, make_scene_model, propose_only


@pytest.fixture
def table_images():
    return make_images()


def gradients(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(
        loss, list(model.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True)])


@pytest.mark.parametrize("identity", ["local", "nvil"])
@pytest.mark.parametrize("exploration, guide", [(0.0, "recurrent"), (0.6, "difference")])
def test_the_expected_gradient_is_that_of_the_sum_over_all_shapes(table_images, monkeypatch, exploration, guide,
                                                                  identity):
    """With poses held fixed and the drawn shapes summed out by their probabilities, for every elbo_n."""
    exact, model = (make_scene_model(identity=name, guide=guide) for name in ("enumerate", identity))
    model.load_state_dict(exact.state_dict())
    for either in (exact, model):
        either.exploration.fill_(exploration)
    torch.manual_seed(2)
    expected_value = exact.rollout(table_images).log_likelihood.sum(0)
    value = torch.zeros_like(expected_value)
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)  # with ε > 0, every explored shape is a uniform one
    pairs = list(itertools.product(range(len(SHAPES)), repeat=2))
    for combination, explored_combination in itertools.product(pairs, pairs if exploration else [(0, 0)]):
        what, explored = (torch.tensor(shapes).repeat(len(table_images), 1)
                          for shapes in (combination, explored_combination))
        monkeypatch.setattr("air.scenes3d.model.draw_shapes", lambda q, what=what: what)
        monkeypatch.setattr(torch, "randint_like", lambda *args, explored=explored: explored)
        torch.manual_seed(2)
        rollout = model.rollout(table_images)
        weight = rollout.latents["what"].log_q.detach().exp().gather(-1, what[..., None]).prod(1)
        if exploration:
            q_explored = (1 - exploration) * (explored == what).double() + exploration / len(SHAPES)
            weight = weight * q_explored.prod(1, keepdim=True)
        value = value + (weight * rollout.log_likelihood).sum(0)
    torch.testing.assert_close(value, expected_value, rtol=1e-10, atol=0)
    for n in range(3):
        expected = gradients(exact, expected_value[n])
        assert expected.norm() > 0 or n == 0
        torch.testing.assert_close(gradients(model, value[n]), expected, rtol=1e-8, atol=1e-8)


def test_shapes_are_explored_in_training_only(table_images, monkeypatch):
    """The guide is certain of spheres, ε = 0.6: only spheres are drawn, a share of 0.4 + 0.6 / 3 of the explored ones.
    """
    model, selected, select = make_scene_model(num_steps=1), [], Layers.select
    monkeypatch.setattr(Layers, "select", lambda layers, what: selected.append(what) or select(layers, what))
    propose_only(model, shape=0)
    model.exploration.fill_(0.6)
    torch.manual_seed(6)
    many = table_images[:1].expand(3000, -1, -1, -1)
    assert (model.rollout(many).latents["what"].value == 0).all()
    drawn, explored = (what.flatten().bincount(minlength=3) / len(many) for what in selected)
    assert drawn.tolist() == [1, 0, 0]
    torch.testing.assert_close(explored, torch.tensor([0.6, 0.2, 0.2]), atol=0.03, rtol=0)
    with torch.no_grad():
        assert (model.rollout(many).latents["what"].value == 0).all()
    assert len(selected) == 2


@pytest.mark.parametrize("identity", SHAPE_ESTIMATORS)
def test_places_of_all_shapes_learn_while_shapes_are_explored(table_images, identity):
    """The guide is certain of spheres: with ε = 0 the places of other shapes have no gradient, with ε = 1 all do."""
    model = make_scene_model(num_steps=1, identity=identity)
    propose_only(model, shape=0)
    bias = model.guide_net.predict[-1].bias
    for exploration, learns in ((0.0, [True, False, False]), (1.0, [True] * 3)):
        model.exploration.fill_(exploration)
        gradient, = torch.autograd.grad(model.rollout(table_images.repeat(9, 1, 1, 1)).log_likelihood.sum(), bias)
        assert gradient[4:10].view(3, 2).abs().sum(1).gt(1e-6).tolist() == learns


@pytest.mark.parametrize("identity", SHAPE_ESTIMATORS)
def test_shapes_learn_before_the_count_and_neither_from_explored_shapes(table_images, identity):
    """Wrong shapes explain the image worse than no object: learned from them, the count would go to 0 for good."""
    model, results = make_scene_model(num_steps=1, identity=identity), []
    for exploration in (0.0, 0.25, 0.75, 1.0):
        model.exploration.fill_(exploration)
        torch.manual_seed(5)
        rollout = model.rollout(table_images)
        bias = model.guide_net.predict[-1].bias
        logits_gradient, likelihood_gradient = (
            torch.autograd.grad(output.sum(), bias, retain_graph=True)[0][:4]
            for output in (rollout.logits, rollout.log_likelihood))
        results.append((rollout.log_likelihood.detach(), logits_gradient[0], likelihood_gradient[1:]))
    value, count_gradient, shape_gradient = results[0]
    assert min(count_gradient.abs(), shape_gradient.abs().min()) > 1e-3
    for (count_factor, shape_factor), result in zip(((1, 1), (0.5, 0.75), (0, 0.25), (0, 0)), results):
        torch.testing.assert_close(result, (value, count_factor * count_gradient, shape_factor * shape_gradient))
