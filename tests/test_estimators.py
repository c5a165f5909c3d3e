import math

import pytest
import torch
from torch import nn
from toy import STEPS, Toy, exact_gradient, gradient, terms_of

from air import ESTIMATORS, NVIL, Enumerate
from air.inference.elbo import elbo_terms
from air.inference.estimator import exploration_weights, revival_weights


def test_enumerate_gives_the_exact_gradient(toy_images):
    torch.testing.assert_close(gradient(Enumerate(Toy(False)), toy_images), exact_gradient(toy_images))


def far_off(baseline):
    """A baseline that is far off, differently at each step."""
    with torch.no_grad():
        baseline.predict[0].bias.fill_(3.0)
        baseline.predict[0].weight.mul_(8)


def nvil_gradients(images, exploration=0.0, baseline=None, centre=False, draws=400, better_fit=0.0):
    """Independent gradients of NVIL, (draws, parameters), each from 150 copies of the images."""
    objective = NVIL(Toy(baseline is not None), exploration, draws=1, centre=centre)
    if baseline is not None:
        baseline(objective.baseline)
    with torch.no_grad():
        objective.model.fit.add_(better_fit * torch.arange(STEPS + 1))
    objective.mean.fill_(1.7)  # any value: eval mode does not update it
    objective.variance.fill_(1.0)
    objective.eval()
    many = images.repeat(150, 1, 1, 1)
    torch.manual_seed(11)
    return torch.stack([gradient(objective, many) for _ in range(draws)])


@pytest.mark.parametrize("options", [{}, {"baseline": lambda b: None}, {"baseline": far_off}, {"centre": True},
                                     {"baseline": far_off, "centre": True}])
def test_nvil_is_unbiased_whatever_the_baseline(toy_images, options):
    gradients = nvil_gradients(toy_images, **options)
    standard_error = gradients.std(0) / math.sqrt(len(gradients))
    assert ((gradients.mean(0) - exact_gradient(toy_images)).abs() < 4 * standard_error).all()
    assert (standard_error > 0).all()


def test_exploring_nvil_has_the_mean_gradient_of_exploring_enumerate(toy_images):
    expected = gradient(Enumerate(Toy(False), exploration=0.4), toy_images)
    gradients = nvil_gradients(toy_images, exploration=0.4, centre=True)
    standard_error = gradients.std(0) / math.sqrt(len(gradients))
    assert ((gradients.mean(0) - expected).abs() < 4 * standard_error).all()
    assert ((expected - exact_gradient(toy_images)).abs() > 8 * standard_error).any()  # exploration has an effect


def test_exploration_keeps_abandoned_branches_learning_and_leaves_q_to_the_elbo(toy_images):
    def abandoned(exploration):
        objective = Enumerate(Toy(False), exploration)
        with torch.no_grad():
            objective.model.logits.copy_(torch.tensor([30.0, -30.0]))  # q(n = 1) = 1 - e^-30
        gradient(objective, toy_images)
        return objective.model.fit.grad, objective.model.logits.grad

    (fit, logits), (explored_fit, explored_logits) = abandoned(0.0), abandoned(0.3)
    brightness = toy_images.mean((1, 2, 3))
    assert fit[2].abs() < 1e-9
    assert explored_fit[2] == pytest.approx(-0.3 / 3 * (1 + brightness).mean())
    torch.testing.assert_close(explored_logits, logits)


def test_revival_puts_all_weight_on_the_branch_of_the_first_skipped_window():
    def weights(terms, particles=1):
        explored = exploration_weights(terms.q, torch.tensor(0.5, dtype=torch.float64))
        return explored, revival_weights(terms, explored, particles)

    q = [0.0, 0.25, 0.25, 0.5]
    explored = torch.tensor([[0.125, 0.25, 0.25, 0.375]], dtype=torch.float64)
    torch.testing.assert_close(weights(terms_of([0, 50, 90, 80], q)), (explored, explored))
    first = torch.tensor([[0.0, 1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(weights(terms_of([0, -50, -60, 80], q)), (explored, first))
    # Two particles of an image: one skips a window, the other does not; both are revived.
    fine, skipped = terms_of([0, 50, 90, 80], q), terms_of([0, -50, -60, 80], q)
    terms = fine._replace(**{field: torch.cat((getattr(fine, field), getattr(skipped, field)))
                             for field in ("q", "skipped", "skips")})
    torch.testing.assert_close(weights(terms, particles=2), (explored.repeat(2, 1), first.repeat(2, 1)))


def test_reviving_nvil_has_the_mean_gradient_of_reviving_enumerate(toy_images):
    def objective(kind, **options):
        made = kind(Toy(False), revive=0.6, **options)
        with torch.no_grad():  # window 1 costs, window 2 pays, and q(n) reflects it
            made.model.fit.copy_(torch.tensor([0.0, -2.0, 6.0]))
            made.model.logits.copy_(torch.tensor([1.5, 1.5]))
        assert made(toy_images)[1]["skipped"] > 0.5
        return made

    sampled, many = objective(NVIL, draws=1), toy_images.repeat(150, 1, 1, 1)
    torch.manual_seed(3)
    gradients = torch.stack([gradient(sampled, many) for _ in range(200)])
    standard_error = gradients.std(0) / math.sqrt(len(gradients))
    expected = gradient(objective(Enumerate), toy_images)
    assert ((gradients.mean(0) - expected).abs() < 4 * standard_error + 1e-12).all() and (standard_error > 0).all()


def test_a_trained_baseline_lowers_the_variance(toy_images):
    """Gains of ten nats per object, nearly all of which the baseline can predict."""
    def train(baseline):
        objective = NVIL(Toy(True), draws=1)
        optimizer = torch.optim.Adam(objective.baseline.parameters(), 3e-2)
        with torch.no_grad():
            objective.model.fit.add_(10 * torch.arange(STEPS + 1))
        torch.manual_seed(0)
        for _ in range(300):
            optimizer.zero_grad()
            objective(toy_images.repeat(20, 1, 1, 1))[0].backward()
            optimizer.step()
        baseline.load_state_dict(objective.baseline.state_dict())

    variances = [nvil_gradients(toy_images, baseline=baseline, draws=200, better_fit=10.0)[:, :2].var(0)
                 for baseline in (None, train)]
    assert (variances[1] < 0.3 * variances[0]).all()  # the rest: is a step reached, and what follows it


def test_with_a_perfect_baseline_both_outcomes_of_a_step_give_the_same_gradient(toy_images):
    """At the last step, whose gain depends on no later draw, the gradient is always q_t (1 - q_t) gain_t."""
    image = toy_images[:1]
    objective = NVIL(Toy(), draws=1)
    elbo = elbo_terms(objective.model, objective.model.rollout(image)).elbo().detach()
    gain = elbo[0, STEPS] - elbo[0, STEPS - 1]

    class Perfect(nn.Module):
        def forward(self, images, history, particles):
            return gain.expand(len(images), STEPS)

    objective.baseline = Perfect()
    q = objective.model.rollout(image).logits[0, -1].sigmoid()
    gradients = {}
    for seed in range(20):
        torch.manual_seed(seed)
        gradient(objective, image)
        count = int(objective.model.fit.grad.abs().argmax())
        gradients[count] = objective.model.logits.grad[-1].item()
    assert gradients == {0: 0.0, 1: pytest.approx(-(q * (1 - q) * gain).item()), 2: pytest.approx(gradients[1])}


def test_normalising_divides_the_signal_by_its_running_deviation(toy_images):
    """The score-function part shrinks by max(1, sd) and grows with signal_scale; the pathwise part does not change."""
    def parts(**options):
        objective = NVIL(Toy(False), **options).eval()
        objective.mean.zero_(), objective.variance.fill_(16.0)
        torch.manual_seed(0)
        full = gradient(objective, toy_images)
        return full[:2], full[2:]  # the logits' gradient is the score-function part alone

    raw, pathwise = parts(normalise=False)
    for options, factor in (({"normalise": True}, 1 / 4), ({"normalise": True, "signal_scale": 10.0}, 10 / 4),
                            ({"normalise": False, "signal_scale": 2.0}, 2)):
        scaled, same = parts(**options)
        torch.testing.assert_close(scaled, raw * factor)
        torch.testing.assert_close(same, pathwise)


def test_running_moments_follow_the_signal_in_training_only(toy_images):
    objective, images = NVIL(Toy(False), centre=True), toy_images.repeat(5000, 1, 1, 1)
    objective(images)
    first = objective.mean.clone()
    assert first.isfinite() and objective.variance > 0
    with torch.no_grad():
        objective.model.fit.add_(100 * torch.arange(STEPS + 1))  # stopping gains nothing, continuing 100 or 200
    objective(images)
    assert 5 < (objective.mean - first).item() < 40  # a fifth of the way, decay 0.8
    before = objective.mean.clone()
    objective.eval()(images)
    assert torch.equal(objective.mean, before)


@pytest.mark.parametrize("compositing", ["add", "over"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_elbo_metrics_are_those_of_the_terms(make_model, images, name, compositing):
    model = make_model(count_prior=0.1, compositing=compositing)
    objective = ESTIMATORS[name](model)
    torch.manual_seed(3)
    loss, metrics = objective(images.repeat(400, 1, 1, 1))
    terms = elbo_terms(model, model.rollout(images.repeat(400, 1, 1, 1)))
    parts = [metrics[term].item() for term in ("log_likelihood", "kl_pres", "kl_where", "kl_what")]
    assert metrics["elbo"].item() == pytest.approx(parts[0] - sum(parts[1:]))
    expected = (terms.log_q.exp() * terms.elbo()).sum(-1)
    assert metrics["elbo"].item() == pytest.approx(expected.mean().item(), rel=0.02)
    assert not any(value.requires_grad for value in metrics.values()) and loss.requires_grad
    if name == "enumerate":
        assert loss.item() == pytest.approx(-metrics["elbo"].item())


def test_without_masking_the_kls_of_absent_objects_count(make_model, images):
    torch.manual_seed(1)
    masked_model = make_model()
    masked = elbo_terms(masked_model, masked_model.rollout(images))
    torch.manual_seed(1)
    model = make_model(use_masking=False)
    model.load_state_dict(masked_model.state_dict())
    torch.manual_seed(1)
    rollout = model.rollout(images)
    torch.manual_seed(1)
    masked = elbo_terms(masked_model, masked_model.rollout(images))
    later = sum(latent.kl().sum(-1, keepdim=True) for latent in rollout.latents.values()) - sum(masked.kl.values())
    torch.testing.assert_close(elbo_terms(model, rollout).elbo(), masked.elbo() - later)
    for objective in (NVIL(model), Enumerate(model)):
        objective(images)[0].backward()


def test_masked_steps_change_neither_loss_nor_canvas(make_model, images):
    """With z_pres_1 = 0 for certain, steps 1..N have no effect and get no gradient."""
    losses = []
    for shift in (0.0, 5.0):
        model = make_model(use_baselines=False)
        with torch.no_grad():
            model.guide_net.predict.mlp[-1].weight[0].zero_()
            model.guide_net.predict.mlp[-1].bias[0] = -800.0  # q(n = 0) = 1
            model.decode.mlp[-1].bias.add_(shift)
            model.encode.mlp[-1].bias.add_(shift)
        for objective in (NVIL(model), Enumerate(model)):
            loss, _ = objective(images)
            loss.backward()
            losses.append(loss.item())
        for network in (model.encode, model.decode):
            assert all((p.grad == 0).all() for p in network.parameters())
        assert (model.infer(images).reconstruction == 0).all()
    assert losses == pytest.approx([losses[0]] * 4)


def test_no_gradient_passes_between_baseline_and_model(make_model, images):
    def gradients(frozen):
        model = make_model()
        torch.manual_seed(2)
        objective = NVIL(model)
        module = {"model": objective.model, "baseline": objective.baseline}.get(frozen)
        if module is not None:
            module.requires_grad_(False)
        torch.manual_seed(4)
        objective(images)[0].backward()
        return {name: parameter.grad for name, parameter in objective.named_parameters()
                if parameter.grad is not None}

    both = gradients(None)
    for frozen, other in (("model", "baseline"), ("baseline", "model")):
        alone = gradients(frozen)
        assert alone and all(name.startswith(other) for name in alone)
        for name, grad in alone.items():
            assert torch.equal(grad, both[name])
    assert {name.split(".")[0] for name in both} == {"model", "baseline"}


def test_the_baseline_learns_from_its_squared_error_alone(make_model, images):
    """The signal's scale changes the model's gradient, not the baseline's."""
    gradients = []
    for signal_scale in (1.0, 100.0):
        torch.manual_seed(2)
        objective = NVIL(make_model(), signal_scale=signal_scale)
        torch.manual_seed(4)
        objective(images)[0].backward()
        gradients.append([p.grad for module in (objective.baseline, objective.model) for p in module.parameters()])
    baseline = len(list(objective.baseline.parameters()))
    torch.testing.assert_close(gradients[0][:baseline], gradients[1][:baseline])
    assert any(not torch.allclose(a, b) for a, b in zip(gradients[0][baseline:], gradients[1][baseline:]))


def test_the_reward_of_a_step_is_the_gain_of_continuing(toy_images):
    """R_t, read off the gradient of one image's logits, (z_pres_t - q_t) R_t, equals the sum of its terms."""
    model, image = Toy(False), toy_images[:1]
    objective = NVIL(model, draws=1)
    weights = torch.tensor([1.0, 0.3, 0.09], dtype=torch.float64)
    p_count = weights / weights.sum()
    p = torch.stack((p_count[1:].sum(), p_count[2] / p_count[1:].sum()))  # p(z_pres_t = 1 | z_pres_{t-1} = 1)
    counts = set()
    for seed in range(12):
        torch.manual_seed(seed)
        objective.zero_grad()
        objective(image)[0].backward()
        count = int(model.fit.grad.abs().argmax())  # only the drawn n has a pathwise part
        counts.add(count)
        rollout = model.rollout(image)
        q, kl = rollout.logits[0].sigmoid(), rollout.latents["toy"].kl()[0]

        def from_step_on(t, n):
            """The terms of elbo_n from step t on."""
            total = rollout.log_likelihood[0, n]
            for s in range(t, min(n + 1, STEPS)):
                total = total + ((p[s] / q[s]).log() - kl[s] if s < n else ((1 - p[s]) / (1 - q[s])).log())
            return total

        for t in range(min(count + 1, STEPS)):
            gain = from_step_on(t, count) - from_step_on(t, t)  # step index t counts from 0: stopping leaves t objects
            expected = -(float(t < count) - q[t]) * gain
            assert model.logits.grad[t].item() == pytest.approx(expected.item())
    assert counts == {0, 1, 2}


def test_baseline_r2_is_the_share_of_the_gains_variance_that_it_predicts(toy_images):
    """Only draws that continue have a weight; their gains are 7 or 17 nats."""
    objective = NVIL(Toy(True), draws=1)
    gain = torch.tensor([[7.0, 17.0], [17.0, 100.0], [7.0, 7.0]], dtype=torch.float64)
    counts = torch.tensor([[[2], [1], [1]]])  # gains 7, 17, 17, 7
    objective._gain = lambda terms, log_w, bound: gain[None]
    objective._draw = lambda terms: (counts, torch.ones(1, 3, 1, dtype=torch.float64))
    for guess, r2 in ((12.0, 0.0), (17.0, -1.0), (7.0, -1.0)):
        objective.baseline.forward = lambda images, history, particles, guess=guess: torch.full_like(gain, guess)
        metrics = objective(toy_images)[1]
        assert metrics["baseline_r2"].item() == pytest.approx(r2)
        assert metrics["baseline_loss"].item() == pytest.approx(sum((g - guess)**2 for g in (7, 17, 17, 7)) / 3)


def test_parameter_groups_hold_every_parameter_once(make_model):
    objective = NVIL(make_model())
    groups = objective.parameter_groups(1e-3, 1e-2)
    assert [group["lr"] for group in groups] == [1e-3, 1e-2]
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(map(id, objective.parameters()))
    for other in (Enumerate(make_model()), NVIL(make_model(use_baselines=False))):
        assert len(other.parameter_groups(1e-3, 1e-2)) == 1 and NVIL(make_model(use_baselines=False)).baseline is None


@pytest.mark.parametrize("name", ESTIMATORS)
def test_autocast_gives_nearly_the_same_loss_and_gradients(make_model, images, name):
    results = []
    for enabled in (False, True):
        objective = ESTIMATORS[name](make_model(count_prior=0.1).float())
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, metrics = objective(images.float())
        loss.backward()
        assert loss.dtype == torch.float32
        results.append((metrics["log_likelihood"], objective.model.decode.mlp[-1].weight.grad))
    torch.testing.assert_close(results[1], results[0], rtol=0.05, atol=0.05 * results[0][1].abs().max().item())


@pytest.mark.parametrize("name", ["nvil", "enumerate", pytest.param("vimco", marks=pytest.mark.slow), "over"])
def test_compiled_in_one_graph_it_gives_the_same_loss_and_gradients(make_model, images, name):
    """Traced without a graph break, forward and backward. Inductor itself is left to the slow tests."""
    results = []
    for compiled in (False, True):
        layers = {"compositing": "over", "background": True, "guide": "search"} if name == "over" else {}
        objective = ESTIMATORS["enumerate" if layers else name](make_model(count_prior=0.1, **layers))
        objective.model.prior_moves = name == "enumerate"  # a buffer is written as well
        forward = torch.compile(objective, backend="aot_eager", fullgraph=True) if compiled else objective
        for _ in range(2):
            objective.zero_grad()
            torch.manual_seed(0)
            loss, metrics = forward(images)
            loss.backward()
        results.append((loss, metrics, objective.model.size_moments, [each.grad for each in objective.parameters()]))
    torch.testing.assert_close(results[1], results[0])
    assert results[0][2].any() == (name == "enumerate")
