"""Intensities that add up; layers are in test_opaque.py."""

import torch

from air.models.compositing import Add


def test_shares_of_intensities_that_add_up():
    painted = torch.zeros(1, 2, 1, 1, 5)
    painted[0, 0, 0, 0], painted[0, 1, 0, 0] = torch.tensor([0.8, 0.4, 0.1, 0, 0]), torch.tensor([0, 0.2, 0, 0.1, -0.1])
    shares = Add(1, 0.3).shares(painted[:, 0], painted, painted[:, 0] * 0, torch.ones(1, 2))[0, :, 0]
    torch.testing.assert_close(shares[0], torch.tensor([1 / 1.2, 0.5 / 1.7, 0.125 / 0.325, 0, 0]))
    torch.testing.assert_close(shares[1], torch.tensor([0, 1 / 1.7, 0, 0.5 / 0.7, 0]))
    one = Add(1, 0.3).shares(painted[:, 0], painted, painted[:, 0] * 0, torch.tensor([[1.0, 0.0]]))[0, :, 0]
    torch.testing.assert_close(one[0], torch.tensor([1 / 1.2, 0.5 / 0.7, 0.125 / 0.325, 0, 0]))
    assert not one[1].any()
