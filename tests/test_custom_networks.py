"""Custom encoders and decoders are checked when a model is built."""

import pytest
import torch

from air import AIR
from tests.conftest import SMALL


class Pair(torch.nn.Module):
    """An encoder whose outputs have any sizes, with parts that a forward pass could change."""

    def __init__(self, loc=4, scale=4, offset=1.0):
        super().__init__()
        self.norm, self.drop = torch.nn.BatchNorm2d(1), torch.nn.Dropout()
        self.sizes, self.offset = (loc, scale), offset

    def forward(self, glimpse):
        code = self.drop(self.norm(glimpse)).flatten(1)
        return code[:, :self.sizes[0]], code[:, :self.sizes[1]].square() + self.offset


@pytest.mark.parametrize("networks, message", [
    ({"encoder": Pair(5)},
     r"encoder: expected loc and scale of shape \(2, 4\) .* got \(shape \(2, 5\), shape \(2, 4\)\)"),
    ({"encoder": torch.nn.Flatten()}, r"encoder: expected loc and scale .* got shape \(2, 36\)"),
    ({"encoder": Pair(offset=-1.0)}, "encoder: expected a positive scale"),
    ({"encoder": torch.nn.Linear(5, 4)}, r"encoder: fails on an input of shape \(2, 1, 6, 6\): "),
    ({"decoder": torch.nn.Linear(4, 36)}, r"decoder: expected windows of shape \(2, 1, 6, 6\) .* got shape \(2, 36\)"),
    ({"decoder": torch.nn.Linear(5, 36)}, r"decoder: fails on an input of shape \(2, 4\): "),
    ({"decoder": torch.nn.LazyLinear(36)}, "decoder: has lazy layers")])
def test_custom_networks_of_other_shapes_are_refused(make_model, networks, message):
    with pytest.raises(ValueError, match=message):
        make_model(**networks)


class Noisy(Pair):
    """Draws random numbers even in eval mode."""

    def forward(self, glimpse):
        loc, scale = super().forward(glimpse)
        return loc + torch.randn_like(loc), scale


def test_checking_a_custom_network_leaves_everything_as_it_was(monkeypatch):
    def built(encoder):
        torch.manual_seed(0)
        weights = AIR(**SMALL, encoder=encoder).state_dict()
        return weights, torch.rand(3)

    encoder = Noisy()
    encoder.norm.eval()
    found = built(encoder)
    assert encoder.training and encoder.drop.training and not encoder.norm.training
    monkeypatch.setattr("air.models.custom_networks.check_encoder", lambda *_: None)
    torch.testing.assert_close(found, built(Noisy()), rtol=0, atol=0)  # running means among the weights
