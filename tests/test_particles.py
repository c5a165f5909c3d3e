"""Several particles: the importance-weighted bound under every estimator, and VIMCO's control variates."""

import math

import pytest
import torch
from toy import Toy, exact_bound_gradient, flat_gradient, gradient, log_weights

from air import ESTIMATORS, NVIL, VIMCO, Enumerate
from air.evaluation.evaluate import iw_bound
from air.inference.elbo import bound_with

PARTICLES = 3
SAMPLED = {"nvil": lambda **options: NVIL(Toy(), **options),
           "nvil with a baseline": lambda **options: NVIL(Toy(True), centre=True, **options),
           "vimco": lambda **options: VIMCO(Toy(), **options)}


def mean_gradient(objective, images, draws=300):
    """Mean and standard error of independent gradients, each from 150 copies of the images."""
    objective.eval()  # does not update NVIL's running moments
    many = images.repeat(150, 1, 1, 1)
    torch.manual_seed(13)
    gradients = torch.stack([gradient(objective, many) for _ in range(draws)])
    return gradients.mean(0), gradients.std(0) / math.sqrt(draws)


@pytest.mark.parametrize("particles", (2, PARTICLES))
def test_enumerate_gives_the_exact_gradient_of_the_bound(toy_images, particles):
    torch.testing.assert_close(gradient(Enumerate(Toy(), particles=particles), toy_images),
                               exact_bound_gradient(toy_images, particles))


@pytest.mark.parametrize("draws", (1, 4))
@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_counts_are_unbiased(toy_images, name, draws):
    mean, standard_error = mean_gradient(SAMPLED[name](particles=PARTICLES, draws=draws), toy_images)
    assert ((mean - exact_bound_gradient(toy_images, PARTICLES)).abs() < 4 * standard_error).all()
    assert (standard_error > 0).all()


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_counts_are_unbiased_while_exploring(toy_images, name):
    expected = gradient(Enumerate(Toy(), exploration=0.4, particles=2), toy_images)
    mean, standard_error = mean_gradient(SAMPLED[name](particles=2, exploration=0.4, draws=1), toy_images)
    assert ((mean - expected).abs() < 4 * standard_error).all()
    assert ((expected - exact_bound_gradient(toy_images, 2)).abs() > 8 * standard_error).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_variance_is_inversely_proportional_to_the_draws(toy_images, name):
    one, four = (mean_gradient(SAMPLED[name](particles=PARTICLES, draws=draws), toy_images)[1] for draws in (1, 4))
    torch.testing.assert_close(four.norm() / one.norm(), torch.tensor(0.5, dtype=torch.float64), rtol=0.15, atol=0)


def test_exploring_enumerate_weights_the_paths_by_the_mixture_and_leaves_abandoned_counts_their_gradient(toy_images):
    objective = Enumerate(Toy(), exploration=0.3, particles=2)
    with torch.no_grad():
        objective.model.logits.copy_(torch.tensor([300.0, -300.0]))  # q(n != 1) underflows
    gradient(objective, toy_images)
    assert objective.model.logits.grad.isfinite().all() and objective.model.fit.grad[2].abs() > 0.01


def skipping(objective):
    """In every particle window 1 costs and window 2 pays, and q(n) reflects it."""
    with torch.no_grad():
        objective.model.fit.copy_(torch.tensor([0.0, -4.0, 6.0]))
        objective.model.logits.copy_(torch.tensor([2.5, 2.5]))
    return objective


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_counts_are_unbiased_while_reviving(toy_images, name):
    options = {"particles": 2, "exploration": 0.3, "revive": 0.6}
    expected = gradient(skipping(Enumerate(Toy(), **options)), toy_images)
    mean, standard_error = mean_gradient(skipping(SAMPLED[name](draws=1, **options)), toy_images)
    assert ((mean - expected).abs() < 4 * standard_error).all() and (standard_error > 0).all()


def test_an_image_s_particles_are_revived_together_and_q_follows_the_bound_throughout(toy_images):
    """If some particles did not train the skipped branch, the best of those would get all of the gradient."""
    options = {"particles": PARTICLES, "revive": 0.6}
    objective = skipping(VIMCO(Toy(), **options))
    torch.manual_seed(0)
    terms = objective._rollout(toy_images.repeat(3000, 1, 1, 1))[1]
    assert terms.skipped[:, 0].all()
    together = (objective._draw(terms)[0].view(-1, PARTICLES) == 1).all(-1)
    by_chance = terms.log_q.exp()[:, 1].view(-1, PARTICLES).prod(-1).mean()
    assert together.float().mean().item() == pytest.approx(0.6 + 0.4 * by_chance.item(), abs=0.015)

    gradients = [gradient(skipping(Enumerate(Toy(), **{**options, "revive": revive})), toy_images)
                 for revive in (0.6, 0.0)]
    torch.testing.assert_close(gradients[0][:2], gradients[1][:2])  # of the logits
    assert gradients[0][3] < -0.5 < gradients[1][3]  # of the fit with one object


def literal_vimco(images, counts, particles):
    """The gradient at given counts, particle by particle: Σ_k ∇log q(n_k) (L - L_{-k}) + Σ_k w_k/Σw ∇log w_k."""
    model = Toy()
    q, log_w = log_weights(model, images, particles)
    loss = 0.0
    for image in range(len(images)):
        rows = [image * particles + k for k in range(particles)]
        chosen = [log_w[row, counts[row]] for row in rows]
        weights = [w.detach().exp() for w in chosen]
        for k, row in enumerate(rows):
            others = [(q[j] * log_w[j].exp()).sum().log().detach() for j in rows if j != row]
            stand_in = (sum(others) / len(others)).exp()
            without = (sum(weights) - weights[k] + stand_in) / particles
            signal = (sum(weights) / particles).log() - without.log()
            loss = loss - (q[row, counts[row]].log() * signal + weights[k] / sum(weights) * chosen[k]) / len(images)
    loss.backward()
    return flat_gradient(model)


@pytest.mark.parametrize("particles", (2, 4))
def test_vimco_against_a_slow_loop(toy_images, particles):
    objective = VIMCO(Toy(), particles=particles, draws=1)
    counts = torch.randint(0, 3, (len(toy_images) * particles, 1), generator=torch.Generator().manual_seed(particles))
    objective._draw = lambda terms: (counts[None], torch.ones(1, len(counts), 1, dtype=torch.float64))
    expected = literal_vimco(toy_images, counts.flatten().tolist(), particles)
    # The signal has an additional constant 1/K, so that it is log w for K = 1: its gradient has mean 0.
    q, _ = log_weights(model := Toy(), toy_images, particles)
    (-q.log().gather(-1, counts).sum() / particles / len(toy_images)).backward()
    constant = torch.cat([torch.zeros(p.shape).flatten() if p.grad is None else p.grad.flatten()
                          for p in model.parameters()])
    torch.testing.assert_close(gradient(objective, toy_images), expected + constant)


def test_summing_out_the_other_particles_counts_lowers_the_noise_of_vimco_s_signal(toy_images):
    """Counts differ by hundreds of nats: the other particles' draws would drown a particle's own signal."""
    def noise(stand_in):
        objective = VIMCO(Toy(), particles=PARTICLES, draws=1)
        with torch.no_grad():
            objective.model.fit.copy_(torch.tensor([-300.0, 300.0, 295.0]))
            objective.model.logits.copy_(torch.tensor([1.0, 0.0]))
        if stand_in == "drawn":
            objective.forward = lambda images: drawn_stand_in(objective, images)
        return mean_gradient(objective, toy_images, draws=60)[1][1]  # of the second step's logit

    def drawn_stand_in(objective, images):
        terms = objective._rollout(images)[1]
        count, _ = objective._draw(terms)
        log_w, bound = objective._bound(terms, count)
        others = (log_w.sum(-1, keepdim=True) - log_w).detach() / (PARTICLES - 1)
        signal = objective._reward(log_w, bound) - bound_with(log_w.detach(), others[..., None]).squeeze(-1)
        return -(bound + (terms.log_q[None].gather(-1, count).view_as(signal) * signal).sum(-1)).mean(), {}

    assert noise("summed out") < 0.5 * noise("drawn")


def test_bound_with_a_stand_in_equals_values_by_hand():
    weights = torch.tensor([[2.0, 8.0, 1.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    stand_in = torch.tensor([[[4.0, 1.0], [2.0, 6.0], [4.0, 7.0]], [[5.0, 2.0]] * 3], dtype=torch.float64)
    expected = [[[13 / 3, 10 / 3], [5 / 3, 3.0], [14 / 3, 17 / 3]], [[5.0, 4.0]] * 3]
    torch.testing.assert_close(bound_with(weights.log(), stand_in.log()).exp(),
                               torch.tensor(expected, dtype=torch.float64))
    alone = torch.tensor([[7.0]], dtype=torch.float64)
    assert torch.equal(bound_with(torch.zeros_like(alone), alone), alone)


@pytest.mark.parametrize("name", ["nvil", "vimco"])
def test_the_control_variates_lower_the_variance(toy_images, monkeypatch, name):
    def variance():
        objective = SAMPLED[name](particles=PARTICLES, draws=1)
        with torch.no_grad():
            objective.model.fit.add_(10)
        _, standard_error = mean_gradient(objective, toy_images, draws=60)
        return standard_error[:2].square()  # of the logits

    with_them = variance()
    monkeypatch.setattr(f"air.inference.{name}.bound_with", lambda log_w, stand_in: torch.zeros_like(stand_in))
    assert (with_them < 0.1 * variance()).all()


def test_the_bound_rises_with_the_particles_towards_the_one_of_the_evaluation(make_model, images):
    """With drawn counts it is below the bound that sums the counts out, and approaches it with more particles."""
    model = make_model(count_prior=0.1)
    many = images.repeat(300, 1, 1, 1)
    torch.manual_seed(0)
    bounds = {particles: Enumerate(model, particles=particles)(many)[1].get("bound") for particles in (2, 5)}
    elbo = Enumerate(model)(many)[1]["elbo"]
    with torch.no_grad():
        summed_out = iw_bound(model, many, 5).mean()
    assert elbo < bounds[2] < bounds[5] < summed_out


@pytest.mark.parametrize("name", ["nvil", "vimco"])
def test_the_bound_is_enumerate_s_whatever_draws_the_counts(make_model, images, name):
    model, many = make_model(count_prior=0.1), images.repeat(600, 1, 1, 1)
    bounds = []
    for each in (name, "enumerate"):
        torch.manual_seed(0)
        bounds.append(ESTIMATORS[each](model, particles=2)(many)[1]["bound"].item())
    assert bounds[0] == pytest.approx(bounds[1], rel=0.02)


def test_particles_are_folded_into_the_batch_image_by_image(make_model, images):
    model = make_model()
    one, folded = model.rollout(images, at_mean=True), model.rollout(images, at_mean=True, particles=3)
    torch.testing.assert_close(folded.log_likelihood, one.log_likelihood.repeat_interleave(3, 0))
    torch.testing.assert_close(folded.logits, one.logits.repeat_interleave(3, 0))
    drawn = model.rollout(images, particles=3)
    first, second = drawn.latents["what"].value[:2, 0]
    assert not torch.equal(first, second)
    baseline = model.make_baseline()
    second = [[each if len(each) == 1 else each[3:6] for each in step] for step in drawn.history]
    torch.testing.assert_close(baseline(images, drawn.history, 3)[3:6], baseline(images[1:2], second, 3))


def test_bad_particles_are_named(make_model):
    model = make_model()
    for name, least in (("nvil", 1), ("enumerate", 1), ("vimco", 2)):
        with pytest.raises(ValueError, match=f"particles: input should be greater than .* got {least - 1}"):
            ESTIMATORS[name](model, particles=least - 1)
    with pytest.raises(ValueError, match=r"\(N\+1\)\^K = 4\^9 combinations"):
        Enumerate(model, particles=9)


def test_draws_are_paired_with_the_baseline_of_their_image(toy_images):
    objective = NVIL(Toy(True), draws=2)
    prediction = torch.arange(6, dtype=torch.float64).view(3, 2)  # three images, two steps
    objective.baseline.forward = lambda images, history, particles: prediction
    # Each image's first draw is as predicted, its second 1 more; all chains continue to the end.
    objective._gain = lambda terms, log_w, bound: torch.stack((prediction, prediction + 1))
    objective._draw = lambda terms: (torch.full((2, 3, 1), 2), torch.ones(2, 3, 1, dtype=torch.float64))
    assert objective(toy_images)[1]["baseline_loss"].item() == pytest.approx(6 / 6)  # squared errors of 1, six rows
