import itertools
import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from air.models.distributions import (
    CategoricalLatent,
    CountPrior,
    NormalLatent,
    divergences,
    draw,
    log_at_least,
    log_count_probs,
    standard_normal_kl,
)


def random_latent():
    """Shape (5, 4), with a prior for each of the four."""
    torch.manual_seed(0)
    offset, prior_loc = torch.randn(2, 5, 4, dtype=torch.float64)
    ratio, prior_scale = torch.rand(2, 5, 4, dtype=torch.float64) + 0.1
    return NormalLatent(offset, ratio, torch.randn(5, 4, dtype=torch.float64), prior_loc[0], prior_scale[0])


def test_the_kl_equals_that_of_torch_distributions():
    latent = random_latent()
    expected = kl_divergence(Normal(latent.loc, latent.scale), Normal(latent.prior_loc, latent.prior_scale))
    torch.testing.assert_close(latent.kl(), expected.sum(-1))
    torch.testing.assert_close(standard_normal_kl(latent.offset, latent.ratio), expected)
    assert torch.autograd.gradcheck(standard_normal_kl, (latent.offset.requires_grad_(), latent.ratio.requires_grad_()))


def test_the_log_ratio_is_that_of_torch_distributions_at_the_draw():
    latent = random_latent()
    q, p = Normal(latent.loc, latent.scale), Normal(latent.prior_loc, latent.prior_scale)
    torch.testing.assert_close(latent.log_ratio(), (p.log_prob(latent.value) - q.log_prob(latent.value)).sum(-1))
    torch.testing.assert_close(latent.value, latent.loc + latent.scale * latent.noise)


def test_latent_kl_is_minus_the_mean_log_ratio():
    latent = random_latent()
    latent = latent._replace(noise=torch.randn(100_000, 5, 4, dtype=torch.float64))
    ratios = latent.log_ratio()  # (100000, 5)
    standard_error = ratios.std(0) / math.sqrt(len(ratios))
    assert latent.kl().shape == (5,)
    assert ((ratios.mean(0) + latent.kl()).abs() < 4 * standard_error).all()


def test_a_latent_moved_is_drawn_at_its_mean():
    moved = random_latent().at(torch.full((5, 4), 0.3, dtype=torch.float64))
    torch.testing.assert_close(moved.loc, torch.full_like(moved.loc, 0.3))
    torch.testing.assert_close(moved.value, moved.loc)
    torch.testing.assert_close(moved.scale, random_latent().scale)


def test_divergences_are_those_of_each_latent():
    first, other = random_latent(), random_latent()
    narrow = NormalLatent(*(field[..., :3] for field in other))
    what = CategoricalLatent(torch.tensor([0, 1, 2, 0, 1]), torch.randn(5, 3, dtype=torch.float64).log_softmax(-1))
    latents = {"scene": NormalLatent(*(field[:1] for field in first[:3]), *first[3:]), "first": first, "what": what,
               "narrow": narrow}
    assert list(divergences(latents)) == list(divergences(latents, sampled=True)) == list(latents)
    torch.testing.assert_close(divergences(latents), {name: latent.kl() for name, latent in latents.items()})
    torch.testing.assert_close(divergences(latents, sampled=True),
                               {name: -latent.log_ratio() for name, latent in latents.items()})


def test_the_gradients_of_a_draw_and_of_what_is_read_beside_it_add_up():
    torch.manual_seed(0)
    loc, scale, noise = torch.rand(3, 2, 4, dtype=torch.float64)
    loc.requires_grad_(), scale.requires_grad_()
    torch.testing.assert_close(draw(loc, scale, noise)[0], loc + scale * noise)
    noise.requires_grad_()
    for read in (lambda v, m, s: v, lambda v, m, s: v.sin() * m * s, lambda v, m, s: m / s, lambda v, m, s: v * s):
        assert torch.autograd.gradcheck(lambda m, s, e: read(*draw(m, s, e)), (loc, scale, noise))


def test_count_distribution_equals_a_sum_over_all_z_pres():
    """Enumerate z_pres in {0, 1}^N: q(n) is the probability of n leading ones."""
    logits = torch.randn(6, 3, dtype=torch.float64)
    q = torch.zeros(6, 4, dtype=torch.float64)
    for z_pres in itertools.product((0.0, 1.0), repeat=3):
        probability = torch.ones(6, dtype=torch.float64)
        previous = 1.0
        for t, z in enumerate(z_pres):
            p = logits[:, t].sigmoid() * previous  # once 0, always 0
            probability = probability * (p if z else 1 - p)
            previous = z
        q[:, int(sum(z_pres))] += probability
    torch.testing.assert_close(log_count_probs(logits).exp(), q)
    torch.testing.assert_close(log_at_least(logits).exp(), q.flip(-1).cumsum(-1).flip(-1))


def test_count_distribution_is_finite_where_probabilities_are_not():
    logits = torch.tensor([[200.0, -200.0, 200.0]], requires_grad=True)
    log_q = log_count_probs(logits)
    assert log_q.isfinite().all() and log_q.argmax() == 1
    log_q.sum().backward()
    assert logits.grad.isfinite().all()
    certain = log_count_probs(torch.tensor([[math.inf, -math.inf, 0.0]]))
    assert certain[0, 1] == 0 and not certain.isnan().any()
    assert torch.autograd.gradcheck(log_count_probs, torch.randn(4, 3, dtype=torch.float64, requires_grad=True))


def test_geometric_prior():
    k, prior = 0.2, CountPrior.geometric(3, 0.2)
    weights = [k**n for n in range(4)]
    torch.testing.assert_close(prior.log_probs.exp(), torch.tensor(weights) / sum(weights))


@pytest.mark.parametrize("k", [0.0, -1.0, 1.5, float("nan")])
def test_geometric_prior_names_a_bad_k(k):
    with pytest.raises(ValueError, match=f"k = {k}"):
        CountPrior.geometric(3, k)


def test_prior_from_steps_equals_the_chain():
    p = [0.7, 0.4, 0.9]
    log_probs = CountPrior.from_steps(3, lambda t: p[t]).log_probs
    chain = [Bernoulli(torch.tensor(value)) for value in p]
    for n in range(4):
        steps = [chain[t].log_prob(torch.tensor(float(t < n))) for t in range(min(n + 1, 3))]
        assert log_probs[n].item() == pytest.approx(sum(steps).item(), abs=1e-6)
    certain = CountPrior.from_steps(2, lambda t: 1.0).log_probs
    assert certain.exp().tolist() == [0, 0, 1]


def test_prior_from_steps_names_a_bad_probability():
    with pytest.raises(ValueError, match="1.5"):
        CountPrior.from_steps(2, lambda t: 1.5)


def test_prior_samples_follow_p():
    torch.manual_seed(0)
    prior, size = CountPrior.geometric(3, 0.5), 50_000
    share = prior.sample(size).bincount(minlength=4) / size
    p = prior.log_probs.exp()
    assert ((share - p).abs() < 4 * (p * (1 - p) / size).sqrt()).all()


def test_a_prior_that_follows_keeps_what_is_too_improbable_for_single_precision():
    prior = CountPrior.geometric(2, 1e-60)
    for _ in range(3):
        prior.follow(torch.tensor([1.0, 0.0, 0.0]), rate=0.1)
    torch.testing.assert_close(prior.log_probs[1:], torch.tensor([1.0, 2.0]) * math.log(1e-60) + 3 * math.log(0.9))
    prior.follow(torch.tensor([0.5, 0.5, 0.0]), rate=1)
    assert prior.log_probs.exp().tolist() == [0.5, 0.5, 0]


def test_a_prior_that_follows_the_counts_converges_to_them():
    prior = CountPrior.geometric(3, 1e-8).double()
    counts = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=torch.float64)
    prior.follow(counts, rate=0.25)
    torch.testing.assert_close(prior.log_probs.exp(), 0.75 * CountPrior.geometric(3, 1e-8).double().log_probs.exp()
                               + 0.25 * counts)
    for _ in range(100):
        prior.follow(counts, rate=0.25)
    torch.testing.assert_close(prior.log_probs.exp(), counts)
    assert prior.log_probs.isfinite().all()  # counts that never occur keep a positive probability


def test_the_ratios_of_a_count_prior_go_on_beyond_n_as_at_n():
    prior = CountPrior(torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64).log())
    expected = torch.tensor([6.0, 0.5, 0.5, 0.5], dtype=torch.float64).log()
    for steps in (1, 2, 4):
        torch.testing.assert_close(prior.log_ratios(steps), expected[:steps])
