import torch
from torch.distributions import Normal

from air.models import likelihoods

CONTAINS = torch.ones(4, 3, dtype=torch.float64).tril(-1)


def test_the_likelihood_of_every_sum_of_objects():
    torch.manual_seed(0)
    images, painted = torch.rand(4, 6, dtype=torch.float64), torch.rand(4, 3, 6, dtype=torch.float64)
    found = likelihoods.given_each_count(images, painted, CONTAINS, 0.3)
    for n in range(4):
        torch.testing.assert_close(found[:, n], Normal(painted[:, :n].sum(1), 0.3).log_prob(images).sum(-1))
    assert torch.autograd.gradcheck(lambda x, y: likelihoods.given_each_count(x, y, CONTAINS, 0.3),
                                    (images.requires_grad_(), painted.requires_grad_()))
    assert torch.autograd.gradcheck(lambda y: likelihoods.given_each_count(images.detach(), y, CONTAINS, 0.3), painted)


def test_a_perfect_canvas_has_the_largest_likelihood_and_a_gradient_of_zero():
    images = torch.ones(2, 5, dtype=torch.float64)
    painted = images[:, None].clone().requires_grad_()
    found = likelihoods.given_each_count(images, painted, CONTAINS[:2, :1], 0.3)[:, 1]
    torch.testing.assert_close(found, torch.full_like(found, likelihoods.ceiling_of(5, 0.3)))
    found.sum().backward()
    assert (painted.grad == 0).all()
