import pytest
import torch

from experiments.studies import gradient_variance
from experiments.studies.gradient_variance import NETWORKS, Draws, squared_bias


def test_the_squared_bias_is_estimated_without_bias():
    """From blocks with a known offset and noise."""
    torch.manual_seed(0)
    for offset in (0.0, 3.0):
        estimates = torch.tensor([squared_bias(list(torch.randn(10, 40) + offset / 40**0.5), list(torch.randn(10, 40)))
                                  for _ in range(200)])
        mean, error = estimates.mean(0)
        assert mean.item() == pytest.approx(offset**2, abs=4 * (estimates[:, 0].std() / 200**0.5).item())
        # If anything, the standard error is too large: without a bias.
        assert 0.8 < error.item() / estimates[:, 0].std().item() < 2


def test_mean_and_variance_are_those_of_the_gradients():
    """Each network is one weight whose gradient is drawn from Normal(2, 3²)."""
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Module()
            for name in NETWORKS:
                self.model.add_module(name, torch.nn.Linear(1, 1, bias=False))

        def forward(self, images):
            noise = 2 + 3 * torch.randn(4)
            return sum(n * getattr(self.model, name).weight.sum() for n, name in zip(noise, NETWORKS)), {}

    torch.manual_seed(0)
    draws = Draws(Noisy(), torch.zeros(1), 4000)
    for name in NETWORKS:
        assert draws.mean(name).item() == pytest.approx(2, abs=4 * 3 / 4000**0.5)
        assert draws.variance(name) == pytest.approx(9, rel=4 * (2 / 4000)**0.5)


def test_the_table_has_every_moment_and_estimator(capsys):
    gradient_variance.main(["--table"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == 7 * ["250"] + 7 * ["1000"] + 7 * ["4000"]


@pytest.mark.parametrize("arguments, word", [(["--draws", "5"], "--draws 20"), (["--moments", "0"], "--moments"),
                                             (["--data.root", "/nowhere"], "MNIST")])
def test_wrong_arguments_are_explained(arguments, word, capsys):
    with pytest.raises(SystemExit) as ended:
        gradient_variance.main(arguments)
    assert ended.value.code == 2 and word in capsys.readouterr().err
