import itertools
import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from air.models.distributions import CountPrior, NormalLatent, log_at_least, log_count_probs, normal_kl, normal_log_prob


def random_normals():
    torch.manual_seed(0)
    loc, prior_loc = torch.randn(2, 5, 4, dtype=torch.float64)
    scale, prior_scale = torch.rand(2, 5, 4, dtype=torch.float64) + 0.1
    return loc, scale, prior_loc, prior_scale


def test_normal_kl_and_log_prob_equal_torch_distributions():
    loc, scale, prior_loc, prior_scale = random_normals()
    torch.testing.assert_close(normal_kl(loc, scale, prior_loc, prior_scale),
                               kl_divergence(Normal(loc, scale), Normal(prior_loc, prior_scale)))
    torch.testing.assert_close(normal_log_prob(prior_loc, loc, scale), Normal(loc, scale).log_prob(prior_loc))


def test_latent_kl_is_minus_the_mean_log_ratio():
    loc, scale, prior_loc, prior_scale = random_normals()
    noise = torch.randn(100_000, 5, 4, dtype=torch.float64)
    latent = NormalLatent(loc + scale * noise, loc, scale, prior_loc, prior_scale)
    ratios = latent.log_ratio()  # (100000, 5)
    standard_error = ratios.std(0) / math.sqrt(len(ratios))
    assert latent.kl().shape == (5,)
    assert ((ratios.mean(0) + latent.kl()).abs() < 4 * standard_error).all()


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
