"""The protocol of guides."""

import pytest
import torch

from air import AIR
from air.models.guides import GUIDES, RecurrentGuide
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
