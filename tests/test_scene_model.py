import math

import pytest
import torch

from air import NVIL, Enumerate
from air.models.distributions import CategoricalLatent
from air.models.guides import GUIDES
from air.scenes3d.model import CONTRAST
from air.scenes3d.renderer import render
from air.scenes3d.shape_gradients import SHAPE_ESTIMATORS, draw_shapes
from air.scenes3d.view import Sight, View, unprojection
from tests.small_scenes import VIEW, make_images, make_scene_model, propose_only


@pytest.fixture
def table_images():
    return make_images()


def test_likelihoods_are_those_of_the_first_n_objects_rendered(table_images):
    model = make_scene_model(3, likelihood_sd=0.2)
    with torch.no_grad():
        rollout = model.rollout(table_images)
    what, where, turn = (rollout.latents[name].value for name in ("what", "where", "turn"))
    for n in range(4):
        for b, image in enumerate(table_images):
            angles = [[0.0, math.atan2(v[1], v[0]) / 4, math.atan2(v[3], v[2])] for v in turn[b].tolist()]
            places = torch.erf(where[b] / 2**0.5).view(3, 3, 2)
            poses = torch.tensor([[*places[t, s], angles[t][s], 0.35] for t, s in enumerate(what[b])]).double()
            present = (torch.arange(3) < n).double()
            canvas = render(what[b:b + 1], poses[None], present[None], VIEW)[0]
            expected = torch.distributions.Normal(canvas, 0.2).log_prob(image).sum()
            torch.testing.assert_close(rollout.log_likelihood[b, n], expected)


@pytest.mark.parametrize("guide", ["recurrent", "search"])
@pytest.mark.parametrize("identity, estimator", [("local", NVIL), *((name, Enumerate) for name in SHAPE_ESTIMATORS)])
def test_every_estimator_of_the_count_trains_it(table_images, identity, estimator, guide):
    objective = estimator(make_scene_model(identity=identity, count_prior=1e-3, likelihood_sd=0.03, guide=guide))
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    objective.exploration.fill_(1.0)
    torch.manual_seed(5)  # about one seed in ten takes more steps
    elbos = []
    for _ in range(60):
        loss, metrics = objective(table_images)
        elbos.append(metrics["elbo"].item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(elbos[-5:]) / 5 > sum(elbos[:5]) / 5 + 50
    assert {"kl_where", "kl_turn", "kl_what", "kl_pres"} <= set(metrics)


@pytest.mark.parametrize("identity", ["local", *(pytest.param(name, marks=pytest.mark.slow)
                                                 for name in SHAPE_ESTIMATORS if name != "local")])
def test_compiled_without_graph_breaks_loss_and_gradients_are_the_same(table_images, identity):
    """A graph break would also rule out a CUDA graph: it is where a step waits for the device."""
    results = []
    for compiled in (False, True):
        objective = Enumerate(make_scene_model(1, identity=identity), revive=0.5)
        forward = torch.compile(objective, backend="eager", fullgraph=True) if compiled else objective
        torch.manual_seed(3)
        loss, metrics = forward(table_images)
        loss.backward()
        results.append((loss, metrics, [parameter.grad for parameter in objective.parameters()]))
    torch.testing.assert_close(results[1], results[0])


def test_values_are_the_same_with_and_without_gradients(table_images):
    """The two are rendered along different paths."""
    model = make_scene_model(3, identity="local")
    rollouts = []
    for learns in (False, True):
        torch.manual_seed(4)
        with torch.set_grad_enabled(learns):
            rollouts.append(model.rollout(table_images))
    without, learning = rollouts
    assert (without.latents["what"].value == learning.latents["what"].value).all()
    torch.testing.assert_close(learning.painted.detach(), without.painted)
    torch.testing.assert_close(learning.log_likelihood.detach(), without.log_likelihood)


def test_places_and_rotations_are_uniform_a_priori():
    model = make_scene_model()
    turn = torch.tensor([[math.cos(1.2), math.sin(1.2), 3 * math.cos(-2.0), 3 * math.sin(-2.0)]]).double()
    places = torch.tensor([0.3, -0.4, 0.1, 0.9, -0.99, 0.0]).double()
    poses = model.poses((places.erfinv() * 2**0.5)[None], turn)
    expected = [[0.3, -0.4, 0.0, 0.35], [0.1, 0.9, 0.3, 0.35], [-0.99, 0.0, -2.0, 0.35]]  # sphere, box, cylinder
    torch.testing.assert_close(poses[0], torch.tensor(expected).double())
    torch.manual_seed(0)
    drawn = model.poses(torch.randn(20_000, 6).double(), torch.randn(20_000, 4).double())
    quartiles = torch.tensor([0.25, 0.5, 0.75]).double()
    torch.testing.assert_close(drawn[:, 0, 0].quantile(quartiles), 2 * quartiles - 1, atol=0.03, rtol=0)
    turns = drawn[:, 2, 2] / (2 * math.pi) + 0.5
    torch.testing.assert_close(turns.quantile(quartiles), quartiles, atol=0.015, rtol=0)


def test_kl_and_log_ratio_of_a_categorical_agree():
    torch.manual_seed(0)
    log_q = torch.randn(5, 3).double().log_softmax(-1)
    ratio = torch.stack([CategoricalLatent(torch.full((5,), s), log_q).log_ratio() for s in range(3)], -1)
    latent = CategoricalLatent(torch.zeros(5).long(), log_q)
    torch.testing.assert_close(latent.kl(), -(log_q.exp() * ratio).sum(-1))
    uniform = torch.distributions.Categorical(probs=torch.ones(5, 3).double())
    torch.testing.assert_close(latent.kl(), torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=log_q), uniform))


def test_sharpness_and_exploration_are_annealed_over_half_of_the_steps():
    model = make_scene_model(first_sharpness=10.0)
    for share, sharpness, exploration in ((0, 10, 1), (0.25, 20, 1), (0.375, 28.28427, 0.5), (0.5, 40, 0), (1, 40, 0)):
        model.anneal(share)
        assert model.sharpness.item() == pytest.approx(sharpness)
        assert model.exploration.item() == pytest.approx(exploration)
    constant = make_scene_model(annealed=0.0)
    constant.anneal(0.0)
    assert (constant.sharpness, constant.exploration) == (40, 0)


def test_the_difference_guide_sees_what_the_objects_so_far_leave(table_images):
    model, seen = make_scene_model(num_steps=3, guide="difference"), []
    encode = model.guide_net.encoder.forward
    model.guide_net.encoder.forward = lambda residual: seen.append(residual / CONTRAST) or encode(residual)
    propose_only(model, shape=1)
    trace = model.attend(table_images)
    poses = model.poses(trace.where.value, trace.turn.value)[:, :, 1]
    for t, residual in enumerate(seen):
        boxes = render(torch.ones(4, t).long(), poses[:, :t], torch.ones(4, t).double(), VIEW)
        torch.testing.assert_close(residual, table_images - boxes)
    assert len(seen) == 3


def test_the_recurrent_guide_encodes_each_image_once(table_images):
    model, seen = make_scene_model(num_steps=3), []
    model.guide_net.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0] / CONTRAST))
    model.attend(table_images, particles=2)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], table_images - model.empty)


@pytest.mark.parametrize("guide", GUIDES)
def test_with_a_single_step_nothing_is_removed_from_the_residual(table_images, guide):
    """So no object is rendered as every shape, unless the shapes are learned."""
    model = make_scene_model(1, guide=guide)
    with torch.no_grad():
        assert model.attend(table_images).candidates is None
        assert model.rollout(table_images).log_likelihood.shape == (4, 2)


def test_scenes_drawn_from_the_prior_show_their_latents():
    model = make_scene_model(3, count_prior=1.0)
    torch.manual_seed(0)
    (what, pose, z_pres), images = model.prior(2000)
    torch.testing.assert_close(images[:5], render(what[:5], pose[:5], z_pres[:5], VIEW))
    for values, kinds in ((z_pres.sum(1).long(), 4), (what.flatten(), 3)):  # each equally often
        shares = values.bincount(minlength=kinds) / len(values)
        torch.testing.assert_close(shares, torch.full((kinds,), 1 / kinds), atol=0.05, rtol=0)
    assert (z_pres.diff(dim=1) <= 0).all() and pose[..., :2].abs().max() <= 1


def test_reconstructions_are_renderings_of_what_is_inferred(table_images):
    model = make_scene_model(count_prior=0.5)
    with torch.no_grad():
        model.guide_net.predict[-1].bias[0] = 3
    inferred = model.infer(table_images)
    assert (inferred.count == 2).all() and inferred.z_where.shape == (4, 2, 4)
    torch.testing.assert_close(inferred.z_what.sum(-1), torch.ones(4, 2).double())
    canvas = render(inferred.z_what.argmax(-1), inferred.z_where, inferred.z_pres, VIEW)
    torch.testing.assert_close(inferred.reconstruction, canvas)
    torch.testing.assert_close(inferred.canvases[:, -1], canvas)
    x0, y0, x1, y1 = inferred.boxes.unbind(-1)
    assert (x1 > x0).all() and (y1 > y0).all()


def test_several_particles_are_for_evaluation(table_images):
    model = make_scene_model()
    with pytest.raises(ValueError, match="with one particle"):
        model.rollout(table_images, particles=2)
    with torch.no_grad():
        assert model.rollout(table_images, particles=2).log_likelihood.shape == (8, 3)


@pytest.mark.parametrize("guide", GUIDES)
def test_no_images_give_empty_results(guide):
    model, empty = make_scene_model(guide=guide), torch.zeros(0, 3, 8, 8)
    assert model.infer(empty).boxes.shape == (0, 2, 4) and model.rollout(empty).log_likelihood.shape == (0, 3)
    (what, poses, z_pres), x = model.prior(0)
    assert what.shape == z_pres.shape == (0, 2) and poses.shape == (0, 2, 4) and x.shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        model.prior(-1)


def test_shapes_are_drawn_by_their_probabilities():
    torch.manual_seed(0)
    q = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.1, 0.9]])
    drawn = draw_shapes(q.expand(20_000, 2, 3))
    shares = torch.stack([(drawn == shape).float().mean(0) for shape in range(3)], -1)
    torch.testing.assert_close(shares, q, atol=0.015, rtol=0)
    assert (drawn[:, 1] > 0).all()


def test_a_shape_is_drawn_even_where_rounding_makes_the_probabilities_sum_to_less_than_1(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)  # more than rand_like gives, and than the sum below
    assert draw_shapes(torch.tensor([[0.3, 0.3, 0.399999]])).tolist() == [2]


def test_a_network_that_gives_nan_gives_a_loss_of_nan(table_images):
    """And no error, which a GPU would raise too late, in the middle of something else."""
    model = make_scene_model()
    with torch.no_grad():
        model.guide_net.predict[-1].bias[1] = math.nan
    loss, _ = Enumerate(model)(table_images)
    assert loss.isnan()


def test_what_follows_from_the_view_is_neither_stored_nor_rounded():
    model = make_scene_model(guide="search").float().double()
    exact = Sight.of(VIEW, torch.zeros((), dtype=torch.float64))
    for found, expected in zip(model.sight, exact):
        assert found is expected if isinstance(found, View) else torch.equal(found, expected)
    assert torch.equal(model.guide_net.homography, unprojection(VIEW, 0.35))
    parameters = {name for name, _ in model.named_parameters()}
    assert model.state_dict().keys() - parameters == {"sharpness", "exploration", "empty", "count_prior.log_probs"}


def test_too_many_combinations_of_shapes_are_named():
    with pytest.raises(ValueError, match=r"renders 3\^4 combinations of shapes, at most 27"):
        make_scene_model(4, identity="enumerate")
