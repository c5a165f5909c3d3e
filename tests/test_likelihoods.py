import torch

from air.models.likelihoods import squared_errors


def test_squared_errors_of_every_canvas():
    torch.manual_seed(0)
    images, painted = torch.rand(4, 6, dtype=torch.float64), torch.rand(4, 3, 6, dtype=torch.float64)
    contains = torch.ones(4, 3, dtype=torch.float64).tril(-1)
    found = squared_errors(images, painted, contains)
    for n in range(4):
        torch.testing.assert_close(found[:, n], (images - painted[:, :n].sum(1)).square().sum(-1))
    assert torch.autograd.gradcheck(lambda x, y: squared_errors(x, y, contains),
                                    (images.requires_grad_(), painted.requires_grad_()))
    assert torch.autograd.gradcheck(lambda y: squared_errors(images.detach(), y, contains), painted)


def test_a_perfect_canvas_has_a_gradient():
    images = torch.ones(2, 5, dtype=torch.float64)
    painted = images[:, None].clone().requires_grad_()
    squared_errors(images, painted, torch.tensor([[0.0], [1.0]], dtype=torch.float64))[:, 1].sum().backward()
    assert (painted.grad == 0).all()
