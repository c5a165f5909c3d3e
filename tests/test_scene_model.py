import itertools
import math

import pytest
import torch

from air import NVIL, Enumerate
from air.models.distributions import CategoricalLatent
from air.scenes3d import model as scene_model
from air.scenes3d.model import CONTRAST, IDENTITIES, SceneAIR, _chosen
from air.scenes3d.renderer import SHAPES, View, render

VIEW = View(image_size=8)


@pytest.fixture
def make_scene_model():
    def make(num_steps=2, **kwargs) -> SceneAIR:
        torch.manual_seed(0)
        return SceneAIR(num_steps, 0.35, VIEW, rnn_hidden_size=8, features=6, predict_net=(7,), bl_embed_net=(5,),
                        **kwargs).double()
    return make


@pytest.fixture
def table_images():
    torch.manual_seed(1)
    shape = torch.randint(3, (4, 2))
    pose = torch.cat((torch.rand(4, 2, 2) * 2 - 1, torch.rand(4, 2, 1), torch.full((4, 2, 1), 0.35)), -1).double()
    return render(shape, pose, torch.ones(4, 2).double(), VIEW)


def gradients(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(
        loss, list(model.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True)])


def test_likelihoods_are_those_of_the_first_n_objects_rendered(make_scene_model, table_images):
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


@pytest.mark.parametrize("identity", ["local", "nvil"])
@pytest.mark.parametrize("exploration, difference", [(0.0, False), (0.6, True)])
def test_the_shapes_gradient_is_that_of_the_sum_over_all_of_them(make_scene_model, table_images, monkeypatch,
                                                                 exploration, difference, identity):
    """Places and turns held fixed, the drawn shapes summed out by their probabilities: of every elbo_n."""
    exact, model = (make_scene_model(identity=each, difference=difference) for each in ("enumerate", identity))
    model.load_state_dict(exact.state_dict())
    for each in (exact, model):
        each.exploration.fill_(exploration)
    torch.manual_seed(2)
    wanted = exact.rollout(table_images).log_likelihood.sum(0)
    found = torch.zeros_like(wanted)
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)  # every shape that is tried is one of `anything`
    of_two = list(itertools.product(range(len(SHAPES)), repeat=2))
    for combination, anything in itertools.product(of_two, of_two if exploration else [(0, 0)]):
        what, tried = (torch.tensor(each).repeat(len(table_images), 1) for each in (combination, anything))
        monkeypatch.setattr(torch, "multinomial", lambda *args, what=what: what.view(-1, 1))
        monkeypatch.setattr(torch, "randint_like", lambda *args, tried=tried: tried)
        torch.manual_seed(2)
        rollout = model.rollout(table_images)
        share = rollout.latents["what"].log_q.detach().exp().gather(-1, what[..., None]).prod(1)
        if exploration:
            tried_by = (1 - exploration) * (tried == what).double() + exploration / len(SHAPES)
            share = share * tried_by.prod(1, keepdim=True)
        found = found + (share * rollout.log_likelihood).sum(0)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    for n in range(3):
        expected = gradients(exact, wanted[n])
        assert expected.norm() > 0 or n == 0
        torch.testing.assert_close(gradients(model, found[n]), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("identity, estimator", [(IDENTITIES[0], NVIL), *((each, Enumerate) for each in IDENTITIES)])
def test_every_estimator_of_the_count_trains_it(make_scene_model, table_images, identity, estimator, search):
    objective = estimator(make_scene_model(identity=identity, count_prior=1e-3, likelihood_sd=0.03, difference=search,
                                           search=search))
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    objective.exploration.fill_(1.0)
    losses = []
    for _ in range(60):
        loss, metrics = objective(table_images)
        losses.append(metrics["elbo"].item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-5:]) / 5 > sum(losses[:5]) / 5 + 50
    assert {"kl_where", "kl_turn", "kl_what", "kl_pres"} <= set(metrics)


@pytest.mark.parametrize("identity", IDENTITIES)
def test_compiled_in_one_graph_it_gives_the_same_loss_and_gradients(make_scene_model, table_images, identity):
    """Without a break, for which a CUDA graph would have no place either: nothing in a step waits for the device."""
    results = []
    for compiled in (False, True):
        objective = Enumerate(make_scene_model(1, identity=identity), rescue=0.5)
        forward = torch.compile(objective, backend="eager", fullgraph=True) if compiled else objective
        torch.manual_seed(3)
        loss, metrics = forward(table_images)
        loss.backward()
        results.append((loss, metrics, [parameter.grad for parameter in objective.parameters()]))
    torch.testing.assert_close(results[1], results[0])


def test_with_gradients_it_is_what_it_is_without(make_scene_model, table_images):
    """They are rendered by another path."""
    model = make_scene_model(3, identity="local")
    rollouts = []
    for learns in (False, True):
        torch.manual_seed(4)
        with torch.set_grad_enabled(learns):
            rollouts.append(model.rollout(table_images))
    assert (rollouts[0].latents["what"].value == rollouts[1].latents["what"].value).all()
    for without, learning in zip(rollouts[0][-2:], rollouts[1][-2:]):
        torch.testing.assert_close(learning.detach(), without)


def test_places_and_rotations_are_uniform_a_priori(make_scene_model):
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


def test_a_categorical_s_kl_and_ratio_agree():
    torch.manual_seed(0)
    log_q = torch.randn(5, 3).double().log_softmax(-1)
    ratio = torch.stack([CategoricalLatent(torch.full((5,), s), log_q).log_ratio() for s in range(3)], -1)
    latent = CategoricalLatent(torch.zeros(5).long(), log_q)
    torch.testing.assert_close(latent.kl(), -(log_q.exp() * ratio).sum(-1))
    uniform = torch.distributions.Categorical(probs=torch.ones(5, 3).double())
    torch.testing.assert_close(latent.kl(), torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=log_q), uniform))


def test_the_renderer_grows_sharp_over_half_of_the_steps(make_scene_model):
    model = make_scene_model(first_sharpness=10.0)
    for share, sharpness, exploration in ((0, 10, 1), (0.25, 20, 1), (0.375, 28.28427, 0.5), (0.5, 40, 0), (1, 40, 0)):
        model.anneal(share)
        assert model.sharpness.item() == pytest.approx(sharpness)
        assert model.exploration.item() == pytest.approx(exploration)
    still = make_scene_model(annealed=0.0)
    still.anneal(0.0)
    assert (still.sharpness, still.exploration) == (40, 0)


def test_the_difference_is_what_the_objects_so_far_leave(make_scene_model, table_images):
    model, seen = make_scene_model(num_steps=3, difference=True), []
    see = model.guide.see.forward
    model.guide.see.forward = lambda left: seen.append(left / CONTRAST) or see(left)
    with torch.no_grad():
        model.guide.predict[-1].weight[1:4] = 0
        model.guide.predict[-1].bias[1:4] = torch.tensor([0.0, 99, 0])  # boxes, surely
    _, latents, _, _ = model.attend(table_images)
    poses = model.poses(latents["where"].value, latents["turn"].value)[:, :, 1]
    for t, left in enumerate(seen):
        boxes = render(torch.ones(4, t).long(), poses[:, :t], torch.ones(4, t).double(), VIEW)
        torch.testing.assert_close(left, table_images - boxes)
    assert len(seen) == 3


def test_shapes_are_tried_by_q_and_at_random_in_training_alone(make_scene_model, table_images, monkeypatch):
    """The guide is sure of spheres, and ε = 0.6: what is drawn are spheres, what is tried is so in 0.4 + 0.6 / 3."""
    model, rendered = make_scene_model(num_steps=1), []
    monkeypatch.setattr(scene_model, "_chosen", lambda every, what: rendered.append(what) or _chosen(every, what))
    last = model.guide.predict[-1]
    with torch.no_grad():
        last.weight[1:4], last.bias[1:4] = 0, torch.tensor([99.0, 0, 0])
    model.exploration.fill_(0.6)
    torch.manual_seed(6)
    many = table_images[:1].expand(3000, -1, -1, -1)
    assert (model.rollout(many).latents["what"].value == 0).all()
    drawn, tried = (what.flatten().bincount(minlength=3) / len(many) for what in rendered)
    assert drawn.tolist() == [1, 0, 0]
    torch.testing.assert_close(tried, torch.tensor([0.6, 0.2, 0.2]), atol=0.03, rtol=0)
    with torch.no_grad():
        assert (model.rollout(many).latents["what"].value == 0).all()
    assert len(rendered) == 2


@pytest.mark.parametrize("identity", IDENTITIES)
def test_places_of_all_shapes_learn_while_they_are_explored(make_scene_model, table_images, identity):
    """The guide is sure of spheres: with ε = 0 the places of the others have no gradient, with ε = 1 all have one."""
    model = make_scene_model(num_steps=1, identity=identity)
    last = model.guide.predict[-1]
    with torch.no_grad():
        last.weight[1:4], last.bias[1:4] = 0, torch.tensor([99.0, 0, 0])
    for exploration, learn in ((0.0, [True, False, False]), (1.0, [True] * 3)):
        model.exploration.fill_(exploration)
        gradient, = torch.autograd.grad(model.rollout(table_images.repeat(9, 1, 1, 1)).log_likelihood.sum(),
                                        last.bias)
        assert gradient[4:10].view(3, 2).abs().sum(1).gt(1e-6).tolist() == learn


@pytest.mark.parametrize("identity", IDENTITIES)
def test_shapes_are_learned_before_the_count_and_neither_from_what_is_tried(make_scene_model, table_images, identity):
    """Wrong shapes explain less than nothing: judged by them, the count would go to 0 and stay there."""
    model, results = make_scene_model(num_steps=1, identity=identity), []
    for exploration in (0.0, 0.25, 0.75, 1.0):
        model.exploration.fill_(exploration)
        torch.manual_seed(5)
        rollout = model.rollout(table_images)
        bias = model.guide.predict[-1].bias
        of_logits, of_likelihood = (torch.autograd.grad(each.sum(), bias, retain_graph=True)[0][:4]
                                    for each in (rollout.logits, rollout.log_likelihood))
        results.append((rollout.log_likelihood.detach(), of_logits[0], of_likelihood[1:]))
    value, of_logits, of_shapes = results[0]
    assert min(of_logits.abs(), of_shapes.abs().min()) > 1e-3
    for (count, shapes), found in zip(((1, 1), (0.5, 0.75), (0, 0.25), (0, 0)), results):
        torch.testing.assert_close(found, (value, count * of_logits, shapes * of_shapes))


def test_scenes_drawn_from_the_prior_show_their_latents(make_scene_model):
    model = make_scene_model(3, count_prior=1.0)
    torch.manual_seed(0)
    (what, pose, z_pres), images = model.prior(2000)
    torch.testing.assert_close(images[:5], render(what[:5], pose[:5], z_pres[:5], VIEW))
    for values, kinds in ((z_pres.sum(1).long(), 4), (what.flatten(), 3)):  # all of them equally often
        shares = values.bincount(minlength=kinds) / len(values)
        torch.testing.assert_close(shares, torch.full((kinds,), 1 / kinds), atol=0.05, rtol=0)
    assert (z_pres.diff(dim=1) <= 0).all() and pose[..., :2].abs().max() <= 1


def test_what_it_infers_is_what_it_renders(make_scene_model, table_images):
    model = make_scene_model(count_prior=0.5)
    with torch.no_grad():
        model.guide.predict[-1].bias[0] = 3
    seen = model.infer(table_images)
    assert (seen.count == 2).all() and seen.z_where.shape == (4, 2, 4)
    torch.testing.assert_close(seen.z_what.sum(-1), torch.ones(4, 2).double())
    canvas = render(seen.z_what.argmax(-1), seen.z_where, seen.z_pres, VIEW)
    torch.testing.assert_close(seen.reconstruction, canvas)
    torch.testing.assert_close(seen.canvases[:, -1], canvas)
    x0, y0, x1, y1 = seen.boxes.unbind(-1)
    assert (x1 > x0).all() and (y1 > y0).all()


def test_several_particles_are_for_evaluation(make_scene_model, table_images):
    model = make_scene_model()
    with pytest.raises(ValueError, match="with one particle"):
        model.rollout(table_images, particles=2)
    with torch.no_grad():
        assert model.rollout(table_images, particles=2).log_likelihood.shape == (8, 3)


def test_what_it_cannot_be_built_as_is_said(make_scene_model):
    with pytest.raises(ValueError, match="no identity='magic'; there are local, nvil, enumerate"):
        make_scene_model(identity="magic")
    with pytest.raises(ValueError, match="search=True goes with difference=True"):
        make_scene_model(search=True)
    with pytest.raises(ValueError, match=r"renders 3\^4 combinations of shapes, at most 27"):
        make_scene_model(4, identity="enumerate")
