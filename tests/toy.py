"""A toy model with closed-form mean gradients, for the tests of the estimators."""

import itertools
import math

import torch
from torch import nn

from air.inference.elbo import Terms
from air.models.base import Rollout
from air.models.distributions import CountPrior, NormalLatent
from air.models.networks import Baseline, RecurrentNet

STEPS = 2


class Toy(nn.Module):
    """A model with fixed latents and a few plain parameters: expectations over the counts are short sums.

    Particles differ by a constant; if they were all alike, K of them would be no better than one.
    """

    num_steps = STEPS
    use_masking = True

    def __init__(self, use_baselines: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.use_baselines = use_baselines
        self.count_prior = CountPrior.geometric(STEPS, 0.3).double()
        self.contains = torch.ones(STEPS + 1, STEPS, dtype=torch.float64).tril(-1)
        self.logits = nn.Parameter(torch.tensor([0.4, -0.7], dtype=torch.float64))
        self.fit = nn.Parameter(torch.tensor([-3.0, 1.0, 2.5], dtype=torch.float64))
        self.loc = nn.Parameter(torch.tensor([[0.3, -0.2], [1.1, 0.4]], dtype=torch.float64))

    def as_images(self, images, intensities=False):
        return images

    def make_baseline(self):
        return Baseline(RecurrentNet(4, None, 2, 5, "ReLU"), 5, [], "ReLU", None).double()

    def rollout(self, images, particles=1):
        rows = len(images) * particles
        brightness = images.mean((1, 2, 3))[:, None].repeat_interleave(particles, 0)
        shift = 0.5 * torch.arange(particles, dtype=torch.float64).repeat(len(images))[:, None]
        one = torch.ones((), dtype=torch.float64)
        loc = self.loc.expand(rows, -1, -1)
        # q = Normal(loc, 1), p = Normal(0, 4), and the draw is loc + shift
        latent = NormalLatent(loc / 2, (one / 2).expand_as(loc), shift[..., None].expand_as(loc), 0 * one, 2 * one)
        history = [[each] for each in loc.unbind(1)]
        return Rollout(self.logits + brightness - shift, {"toy": latent}, history, torch.zeros(rows, STEPS, 1, 2, 2),
                       self.fit * (1 + brightness) - shift)


def gradient(objective, images):
    """The gradient of the model's parameters, flattened."""
    objective.zero_grad()
    objective(images)[0].backward()
    return flat_gradient(objective.model)


def flat_gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def exact_gradient(images):
    """Gradient of -Σ_n q(n) elbo_n, with q(n) written out as a product."""
    model = Toy()
    q, rollout = probabilities(model, images)
    kl = (torch.log(torch.tensor(2.0)) + (1 + model.loc**2) / 8 - 0.5).sum(-1)  # KL(N(loc, 1) || N(0, 4)), by step
    kl = torch.stack((0 * kl[0], kl[0], kl[0] + kl[1]))
    elbo = rollout.log_likelihood - kl + log_prior() - q.log()
    (-(q * elbo).sum(-1).mean()).backward()
    return flat_gradient(model)


def log_weights(model, images, particles):
    """q(n) and log w(n) = log p(x, n, z) - log q(n, z), (B K, N+1) each."""
    q, rollout = probabilities(model, images, particles)
    z, loc = rollout.latents["toy"].value, rollout.latents["toy"].loc
    log_ratio = (-(z / 2)**2 / 2 - math.log(2) + (z - loc)**2 / 2).sum(-1)  # log N(z; 0, 4) - log N(z; loc, 1)
    log_ratio = torch.stack((0 * log_ratio[:, 0], log_ratio[:, 0], log_ratio[:, 0] + log_ratio[:, 1]), 1)
    return q, rollout.log_likelihood + log_ratio + log_prior() - q.log()


def exact_bound_gradient(images, particles):
    """Gradient of -E log 1/K Σ_k w_k(n_k), by a loop over all combinations of counts."""
    model = Toy()
    q, log_w = log_weights(model, images, particles)
    loss = 0.0
    for image in range(len(images)):
        rows = range(image * particles, (image + 1) * particles)
        for counts in itertools.product(range(STEPS + 1), repeat=particles):
            probability = math.prod(q[row, n] for row, n in zip(rows, counts))
            bound = (sum(log_w[row, n].exp() for row, n in zip(rows, counts)) / particles).log()
            loss = loss - probability * bound / len(images)
    loss.backward()
    return flat_gradient(model)


def probabilities(model, images, particles=1):
    rollout = model.rollout(images, particles=particles)
    p = rollout.logits.sigmoid()
    return torch.stack((1 - p[:, 0], p[:, 0] * (1 - p[:, 1]), p[:, 0] * p[:, 1]), 1), rollout


def log_prior():
    weights = torch.tensor([1.0, 0.3, 0.09], dtype=torch.float64)
    return (weights / weights.sum()).log()


def terms_of(elbo_but_for_entropy, q):
    """Terms of one image with KL 0 and a uniform p(n)."""
    log_likelihood, q = (torch.tensor([each], dtype=torch.float64) for each in (elbo_but_for_entropy, q))
    return Terms.of(log_likelihood, {"where": 0 * log_likelihood}, log_likelihood.new_zeros(q.shape[-1]), q.log())
