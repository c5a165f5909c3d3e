"""The weights of the branches n = 0..N, by which an estimator trains the likelihood and the latents."""

import pytest
import torch
from toy import Toy, gradient

from air import Enumerate
from air.inference.estimator import anytime_weights


def test_anytime_weights_are_spread_over_smaller_counts_in_proportion_to_q_of_at_least_n():
    q = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    third = 1 / 3
    spread = [[0.1, 0.9 * 0.9 / 2, 0.9 * 0.7 / 2, 0.9 * 0.4 / 2], [1, 0, 0, 0], [0, third, third, third]]
    spread = torch.tensor(spread, dtype=torch.float64)
    torch.testing.assert_close(anytime_weights(q, 1.0), spread)
    torch.testing.assert_close(anytime_weights(q, 0.25), 0.75 * q + 0.25 * spread)


def test_anytime_trains_smaller_counts_and_leaves_q_to_the_elbo(toy_images):
    """q(n) is certain of 2 objects: half of the share goes to the branch of 1."""
    def gradients(anytime):
        objective = Enumerate(Toy(False), anytime=anytime)
        with torch.no_grad():
            objective.model.logits.fill_(30.0)
        gradient(objective, toy_images)
        return objective.model.fit.grad, objective.model.logits.grad

    (fit, logits), (anytime_fit, anytime_logits) = gradients(0.0), gradients(0.4)
    brightness = toy_images.mean((1, 2, 3))
    assert fit[1].abs() < 1e-9
    assert anytime_fit[1] == pytest.approx(-0.2 * (1 + brightness).mean())
    assert anytime_fit[2] == pytest.approx(0.8 * fit[2])
    torch.testing.assert_close(anytime_logits, logits)
