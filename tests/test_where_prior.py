import copy
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import air
from air import AIR
from air.checkpoints import load_checkpoint
from air.evaluation.evaluate import evaluate
from air.inference.elbo import elbo_terms
from air.models.distributions import NormalLatent
from air.models.where_prior import size_moments
from air.training.trainer import Trainer
from tests.conftest import SMALL
from tests.literal import literal_elbo

GUIDES = ["recurrent", "difference", "search"]
SPREAD = 1 / 30


@pytest.fixture
def make_moved(make_model):
    """A model whose prior of sizes is not that of its constructor any more."""
    def make(**options):
        model = make_model(**options)
        model.prior_moves = True
        model.z_where_prior_loc[0] += 0.4
        model.z_where_prior_scale[0] *= 1.7
        return model
    return make


@pytest.fixture
def found():
    """Loc and scale of z_where, (40, 3, 3), and logits (40, 3): as a guide might find them in 40 images."""
    generator = torch.Generator().manual_seed(3)
    loc, scale, logits = (torch.randn(40, 3, size, generator=generator, dtype=torch.float64) for size in (3, 3, 1))
    return 2.5 + 0.5 * loc, 0.2 * scale.exp(), logits[..., 0]


def in_units_of(model, loc, scale):
    """The posterior as a rollout has it."""
    prior_loc, prior_scale = model.z_where_prior_loc, model.z_where_prior_scale
    return NormalLatent((loc - prior_loc) / prior_scale, scale / prior_scale, 0 * loc, prior_loc, prior_scale)


def literal_sizes(loc, scale, logits):
    """Objects per image, and m and v of the prior of sizes that maximises the ELBO, object by object."""
    weights, sizes = [], []
    for b in range(len(loc)):
        at_least = 1.0
        for t in range(loc.shape[1]):
            at_least = at_least / (1 + math.exp(-logits[b, t].item()))
            weights.append(at_least)
            sizes.append((loc[b, t, 0].item(), scale[b, t, 0].item()))
    m = sum(w * mean for w, (mean, _) in zip(weights, sizes)) / sum(weights)
    v = sum(w * ((mean - m)**2 + sd**2) for w, (mean, sd) in zip(weights, sizes)) / sum(weights)
    return sum(weights) / len(loc), m, v


def test_the_moments_are_the_literal_ones(make_moved, found):
    model, (loc, scale, logits) = make_moved(), found
    objects, first, second = size_moments(in_units_of(model, loc, scale), logits)
    count, m, v = literal_sizes(loc, scale, logits)
    prior_loc, prior_scale = model.z_where_prior_loc[0], model.z_where_prior_scale[0]
    mean, square = first / objects, second / objects
    assert objects.item() == pytest.approx(count)
    assert (prior_loc + prior_scale * mean).item() == pytest.approx(m)
    assert (prior_scale**2 * (square - mean**2)).item() == pytest.approx(v)


@pytest.mark.parametrize("guide", GUIDES)
def test_the_prior_converges_to_the_sizes_of_a_fixed_posterior(make_model, found, guide):
    """From one image at a time, too, where most of the variance lies between the batches; the places' prior stays."""
    model, (loc, scale, logits) = make_model(guide=guide), found
    start = copy.deepcopy(model.state_dict())
    _, m, v = literal_sizes(loc, scale, logits)
    for _ in range(800):
        moments = size_moments(in_units_of(model, loc, scale), logits)
        model.follow_sizes(moments, SPREAD, rate=0.02)
    assert model.z_where_prior_loc[0].item() == pytest.approx(m, rel=1e-5)
    assert model.z_where_prior_scale[0].item() == pytest.approx(v**0.5, rel=1e-5)
    for name in ("z_where_prior_loc", "z_where_prior_scale"):
        assert torch.equal(model.state_dict()[name][1:], start[name][1:])

    equal = torch.full_like(logits, 20.0)  # all objects present
    _, m, v = literal_sizes(loc, scale, equal)
    for step in range(4000):
        one = slice(step % 40, step % 40 + 1)
        model.follow_sizes(size_moments(in_units_of(model, loc[one], scale[one]), equal[one]), SPREAD, rate=0.002)
    assert model.z_where_prior_loc[0].item() == pytest.approx(m, rel=0.01)
    assert model.z_where_prior_scale[0].item() == pytest.approx(v**0.5, rel=0.02)


def test_that_prior_has_the_least_kl(found):
    loc, scale, logits = found
    _, m, v = literal_sizes(loc, scale, logits)

    def kl(m, sd):
        return (logits.sigmoid().cumprod(-1) * kl_divergence(Normal(loc[..., 0], scale[..., 0]), Normal(m, sd))).sum()

    least = kl(m, v**0.5)
    assert all(kl(m + up, v**0.5 * wider) > least for up, wider in ((0.05, 1), (-0.05, 1), (0, 1.05), (0, 0.95)))


@pytest.mark.parametrize("guide, least", [("recurrent", 3 * SPREAD), ("search", SPREAD)])
def test_the_prior_narrows_to_the_spread_of_one_size(make_model, guide, least):
    model = make_model(guide=guide, scale_prior_sd=1.0)
    loc = model.z_where_prior_loc.expand(4, 3, 3).clone()
    for _ in range(500):
        latent = in_units_of(model, loc, torch.full_like(loc, 1e-4))
        model.follow_sizes(size_moments(latent, loc[..., 0]), SPREAD, rate=0.05)
    assert model.z_where_prior_scale[0].item() == pytest.approx(least)


def test_a_batch_without_objects_moves_nothing(make_moved, found):
    model, (loc, scale, logits) = make_moved(), found
    start = copy.deepcopy(model.state_dict())
    for few in (-40.0, -6.0):
        moments = size_moments(in_units_of(model, loc, scale), torch.full_like(logits, few))
        model.follow_sizes(moments, SPREAD)
        model.follow_sizes(0 * moments, SPREAD)
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    model.follow_sizes(size_moments(in_units_of(model, loc, scale), torch.full_like(logits, -4.0)), SPREAD)
    assert not torch.equal(model.z_where_prior_loc, start["z_where_prior_loc"])


@pytest.mark.parametrize("guide", GUIDES)
@torch.no_grad()
def test_proposals_stay_where_the_prior_moves(make_model, make_moved, images, guide):
    """In draws and at the mean; the ELBO is that of the moved prior."""
    fixed, moved, seen = make_model(guide=guide), make_moved(guide=guide), []
    for model in (fixed, moved):
        torch.manual_seed(7)
        seen.append((model.attend(images), model.infer(images)))
    (attended, inference), (again, inference_again) = seen
    torch.testing.assert_close(again.logits, attended.logits, rtol=0, atol=0)
    torch.testing.assert_close(again.painted, attended.painted, rtol=0, atol=0)
    for name in ("value", "loc", "scale"):
        torch.testing.assert_close(getattr(again.latents["where"], name), getattr(attended.latents["where"], name))
    torch.testing.assert_close(inference_again.boxes, inference.boxes, rtol=0, atol=0)

    torch.manual_seed(7)
    elbo = elbo_terms(moved, moved.rollout(images)).elbo()
    torch.manual_seed(7)
    noise = torch.empty(5, 3, 7, dtype=torch.float64).normal_()
    for image, each, drawn in zip(images, elbo, noise):
        torch.testing.assert_close(each, literal_elbo(moved, image, drawn))


@torch.no_grad()
def test_scenes_are_drawn_from_the_moved_prior(make_moved):
    torch.manual_seed(0)
    model = make_moved(count_prior=0.6)
    drawn = torch.cat(model.prior(5000)[0][0])[:, 0]
    assert drawn.mean().item() == pytest.approx(3.4, abs=0.01) and drawn.std().item() == pytest.approx(0.17, abs=0.005)


def test_offsets_are_from_the_moved_prior(make_model, make_moved, scenes):
    moved, fixed = make_moved().float(), make_model().float()
    for model in (moved, fixed):
        torch.nn.init.zeros_(model.guide_net.predict.mlp[-1].weight)
        model.guide_net.predict.mlp[-1].bias.data = torch.tensor([5.0, 0.4, 0, 0, 0, 0, 0])  # s = 3.4
    assert evaluate(fixed, scenes)["scale_offset"] == pytest.approx(4, rel=1e-4)
    assert evaluate(moved, scenes)["scale_offset"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("guide, expected", [("recurrent", (12 / 3.4, 12 / 3.4 * 0.17 / 3.4)),
                                             ("search", (4 * math.exp(-0.4), 4 * math.exp(-0.4) * 1.7 / 30))])
def test_sides_of_the_prior(make_moved, guide, expected):
    assert list(make_moved(guide=guide).prior_sides().values()) == pytest.approx(expected, rel=1e-5)


def test_moments_are_recorded_in_training_where_the_prior_moves(make_model, make_moved, images):
    fixed, moved = make_model(), make_moved()
    fixed.rollout(images)
    assert not fixed.size_moments.any()
    moved.eval().rollout(images)
    assert not moved.size_moments.any()
    rollout = moved.train().rollout(images, particles=2)
    torch.testing.assert_close(moved.size_moments, size_moments(rollout.latents["where"], rollout.logits))
    assert moved.size_moments.all() and not moved.size_moments.requires_grad


def test_loaded_weights_tell_whether_their_prior_has_moved(make_model, make_moved):
    moved, other = make_moved(), make_model()
    assert moved.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(make_model().state_dict())
    assert not other.prior_moves
    other.load_state_dict(moved.state_dict())
    assert other.prior_moves and other.reference.loc.tolist() == make_model().z_where_prior_loc.tolist()
    assert not AIR(**SMALL).prior_moves  # of its own, not of the class


def test_the_scale_prior_follows_what_is_inferred_after_the_warm_up(make_config, dataset, tmp_path):
    config = make_config(changes={"optim.learn_scale_prior": True, "optim.learn_scale_prior_from": 3})
    trainer = Trainer(config, dataset, tmp_path)
    loc, scale = (trainer.model.state_dict()[f"z_where_prior_{name}"] for name in ("loc", "scale"))
    fixed = loc.clone(), scale.clone()
    for _ in range(3):
        trainer.train_step()
    assert torch.equal(loc, fixed[0]) and torch.equal(scale, fixed[1])
    for _ in range(2):
        before = loc[0].item(), scale[0].item()
        trainer.train_step()
        objects, first, second = trainer.model.size_moments.tolist()
        mean = before[0] + before[1] * first / objects
        square = before[1]**2 * second / objects + 2 * before[0] * mean - before[0]**2  # E[loc² + scale²]
        assert loc[0].item() == pytest.approx(0.99 * before[0] + 0.01 * mean)
        moment = 0.99 * (before[0]**2 + before[1]**2) + 0.01 * square
        assert scale[0].item() == pytest.approx((moment - loc[0].item()**2)**0.5, rel=1e-3)
    assert not torch.equal(loc, fixed[0])


def test_a_run_with_a_learned_scale_prior_is_loaded_and_reports_it(make_config, dataset, images, tmp_path):
    config = make_config("enumerate", {"optim.learn_scale_prior": True, "optim.learn_scale_prior_from": 3,
                                       "model.guide": "search"})
    trainer = Trainer(config, dataset, tmp_path)
    metrics, model = trainer.run(), trainer.model.eval()
    loaded = air.load(tmp_path)
    assert loaded.prior_moves and metrics["scale_prior"] == loaded.prior_sides() == model.prior_sides()
    assert metrics["scale_prior"]["mean"] != pytest.approx(4, rel=1e-4)
    torch.testing.assert_close(loaded.infer(images).boxes, model.infer(images).boxes, rtol=0, atol=0)
    assert loaded.reference.loc[0].item() == pytest.approx(math.log(3))
    assert "model.size_moments" not in load_checkpoint(tmp_path)[1]["objective"]


def test_by_default_the_scale_prior_is_fixed(make_config, dataset, tmp_path):
    trainer = Trainer(make_config(), dataset, tmp_path)
    assert "scale_prior" not in trainer.run() and not trainer.model.prior_moves
    assert trainer.model.z_where_prior_loc.tolist() == [3, 0, 0] and not trainer.model.size_moments.any()
