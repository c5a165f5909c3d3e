"""Guides: the protocol, and what the search guide finds."""

import pytest
import torch

from air import AIR
from air.models.guides import GUIDES, RecurrentGuide, SearchGuide
from tests.conftest import SMALL


@pytest.mark.parametrize("name", GUIDES)
def test_steps_are_pure_functions(make_model, images, name):
    """A step depends on its arguments alone: a state can be continued from several times."""
    guide, particles = make_model(guide=name).guide_net, 2
    residual = images.repeat_interleave(particles, 0)
    latents = [each.split((3, 4, 1), -1) for each in torch.rand(10, 3, 8, dtype=torch.float64).unbind(1)]
    with torch.no_grad():
        state = guide.start(images, particles)
        first, after_first = guide.step(state, residual, latents[0])
        second, after_second = guide.step(after_first, residual / 2, latents[1])
        third, _ = guide.step(after_second, residual / 3, latents[2])
        guide.step(after_first, residual / 5, latents[2])
        torch.testing.assert_close(guide.step(state, residual, latents[0])[0], first)
        torch.testing.assert_close(guide.step(after_first, residual / 2, latents[1])[0], second)
        torch.testing.assert_close(guide.step(after_second, residual / 3, latents[2])[0], third)
    assert [each.shape for each in first] == [(10, 1), (10, 3), (10, 3)] and (first.scale > 0).all()


@pytest.mark.parametrize("name, reads_residual, reads_latents", [
    ("recurrent", False, True), ("difference", True, True), ("search", True, False)])
def test_guides_declare_what_they_read(make_model, images, name, reads_residual, reads_latents):
    guide = make_model(guide=name).guide_net
    assert (guide.reads_residual, guide.reads_latents) == (reads_residual, reads_latents)
    latents = torch.zeros(5, 8, dtype=torch.float64)

    def second(residual, latents):
        with torch.no_grad():
            _, state = guide.step(guide.start(images, 1), images, [torch.zeros_like(latents)])
            return guide.step(state, residual, [latents])[0].logits

    usual = second(images, latents)
    assert torch.equal(second(images / 2, latents), usual) != reads_residual
    assert torch.equal(second(images, latents + 1), usual) != reads_latents


def test_the_paper_s_guide_is_the_default_and_an_unknown_one_is_named():
    assert type(AIR(**SMALL).guide_net) is RecurrentGuide
    with pytest.raises(ValueError, match="guide: input should be 'recurrent', .* or 'search', got 'diffrence'"):
        AIR(**SMALL, guide="diffrence")


def blobs(*places):
    """(1, 1, 96, 96) float64: bright squares of 8 x 8 pixels with their top left corners at (x, y)."""
    image = torch.zeros(1, 1, 96, 96, dtype=torch.float64)
    for x, y in places:
        image[..., y:y + 8, x:x + 8] = 1
    return image


def centre(search, image):
    """Centre of the proposed object, (x, y) in pixels."""
    loc = search(image).loc
    s, x, y = (loc + torch.tensor([search.scale_mean, 0, 0], dtype=loc.dtype))[0]
    return torch.stack((1 - x / s, 1 - y / s)) * image.shape[-1] / 2


def test_search_is_equivariant_to_shifts():
    """For shifts by whole places, away from the borders: the proposal moves along, and nothing else changes."""
    torch.manual_seed(0)
    search = SearchGuide(1, 96, 6.0, "ReLU").double()
    here, there = blobs((36, 44)), blobs((52, 40))
    torch.testing.assert_close(centre(search, there) - centre(search, here), torch.tensor([16.0, -4]).double())
    (logit, loc, scale), (other_logit, other_loc, other_scale) = search(here), search(there)
    torch.testing.assert_close((other_logit, other_scale, other_loc[:, :1]), (logit, scale, loc[:, :1]))


def test_search_goes_to_one_of_two_objects_and_not_between_them():
    torch.manual_seed(0)
    search = SearchGuide(1, 96, 6.0, "ReLU").double()
    one, other, both = (centre(search, blobs(*places)) for places in
                        ([(20, 20)], [(68, 68)], [(20, 20), (68, 68)]))
    assert min((both - one).norm(), (both - other).norm()) < 0.5 < 60 < (one - other).norm()


def test_search_learns_preferred_places_and_keeps_its_dtype_under_autocast():
    torch.manual_seed(0)
    search = SearchGuide(1, 96, 6.0, "ReLU")
    image = blobs((20, 44), (68, 44)).float()
    with torch.no_grad():
        for direction in (-1, 1):
            search.attention.preference.copy_(0.1 * direction * torch.linspace(-1, 1, 24).repeat(24))
            assert (centre(search, image)[0] - 48) * direction > 10
    with torch.autocast("cpu", torch.bfloat16):
        assert {each.dtype for each in search(image)} == {torch.float32}


def test_places_are_exact_whatever_the_precision_of_the_layers():
    """Only the features are of low precision; what is attended to, and where, follows from them in full."""
    torch.manual_seed(0)
    attention = SearchGuide(1, 96, 6.0, "ReLU").attention
    image = blobs((20, 44), (68, 44)).float()
    with torch.no_grad():
        attention.heat.copy_(3 * torch.rand_like(attention.heat))
        with torch.autocast("cpu", torch.bfloat16):
            low = attention.net(image)
            found = attention(image)
        assert low.dtype == torch.bfloat16
        attention.net = torch.nn.Identity()
        attention.net.forward = lambda image: low.float()
        torch.testing.assert_close(found, attention(image), rtol=0, atol=0)
    # An object's centre: no bfloat16 number is within 0.001 of it.
    assert found[2][0].tolist() != found[2][0].bfloat16().tolist()
