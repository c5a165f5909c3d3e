"""Layers against a literal version, pixel by pixel."""

import math

import pytest
import torch
from torch.distributions import Normal

from air.models.opaque import FALLING, FLOOR, MARGIN, Over

N, C, SIDE = 3, 3, 4


def a_scene(seed=0, channels=C):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    images, ground = rand(2, channels, SIDE, SIDE), rand(2, channels, SIDE, SIDE)
    painted = rand(2, N, channels + 1, SIDE, SIDE)
    painted[:, 1, -1, :2], painted[:, 0, -1, 0, 0], painted[0, 2, :-1] = 0, 1, images[0]
    return images, painted, ground


def owners(images, painted, ground, sd, n):
    """own_t Normal(x_p; rgb_t, sd²) and own_t of the first n layers and of the ground, by pixel, and the floor."""
    parts = torch.zeros(2, n + 1, SIDE, SIDE, dtype=torch.float64)
    own = torch.zeros_like(parts)
    for b in range(2):
        for row in range(SIDE):
            for column in range(SIDE):
                logits, densities = [], []
                for t in range(n):
                    *rgb, alpha = painted[b, t, :, row, column]
                    logits.append(torch.log(alpha / (1 + MARGIN - alpha)))
                    densities.append(Normal(torch.stack(rgb), sd).log_prob(images[b, :, row, column]).sum().exp())
                densities.append(Normal(ground[b, :, row, column], sd).log_prob(images[b, :, row, column]).sum().exp())
                own[b, :, row, column] = torch.tensor([*logits, 0.0], dtype=torch.float64).softmax(0)
                parts[b, :, row, column] = own[b, :, row, column] * torch.stack(densities)
    return parts, own, FLOOR * (sd * math.sqrt(2 * math.pi))**-images.shape[1]


@pytest.mark.parametrize("sd, channels", [(0.3, 3), (0.1, 3), (0.3, 1)])
def test_likelihoods_are_those_of_a_mixture_over_owners(sd, channels):
    images, painted, ground = a_scene(channels=channels)
    over = Over(channels, sd).double()
    found = over.log_likelihood(images, painted, ground, torch.empty(0))
    for n in range(N + 1):
        parts, _, floor = owners(images, painted, ground, sd, n)
        torch.testing.assert_close(found[:, n], (parts.sum(1) + floor).log().sum((1, 2)))


def test_gradients_of_the_mixture():
    images, painted, ground = a_scene()
    painted[:, :, -1] *= 0.9
    each = [each.requires_grad_() for each in (images, painted, ground)]
    over = Over(C, 0.3).double()
    assert torch.autograd.gradcheck(lambda *each: over.log_likelihood(*each, torch.empty(0)), each)


def test_a_small_sd_is_safe_in_single_precision():
    """Colours that are missed by far have density 0, and opaque layers leave nearly no scope."""
    images, painted, ground = (each.float() for each in a_scene())
    painted[:, :, -1] = painted[:, :, -1].round()
    images, ground = images.round(), 1 - images.round()
    painted.requires_grad_()
    over = Over(C, 0.05)
    found = over.log_likelihood(images, painted, ground, torch.empty(0))
    worst = SIDE**2 * (math.log(FLOOR) - C * math.log(0.05 * math.sqrt(2 * math.pi)))
    assert found.isfinite().all() and found[:, 0].sub(worst).abs().max() < 1e-2
    found.sum().backward()
    assert painted.grad.isfinite().all()
    assert over.view(over.add(over.start(images, ground), painted.detach()[:, 0])).isfinite().all()


def test_shares_are_posteriors_of_the_owner():
    images, painted, ground = a_scene()
    over = Over(C, 0.3).double()
    for n in range(N + 1):
        z_pres = (torch.arange(N) < n).double().expand(2, N)
        shares = over.shares(images, painted, ground, z_pres)
        parts, own, floor = owners(images, painted, ground, 0.3, n)
        posterior = (parts + floor * own) / (parts.sum(1, keepdim=True) + floor)
        torch.testing.assert_close(shares[:, :n], posterior[:, :n])
        assert not shares[:, n:].any()
        torch.testing.assert_close(1 - shares.sum(1), posterior[:, n])


def test_a_pixel_that_nothing_explains_is_the_most_opaque_objects():
    images, painted, _ = a_scene()
    painted[:, 1:, -1] /= 2
    painted[:, 0, -1] = 1
    off = 1 - images.round()  # by half the range at least
    painted[:, :, :-1] = off[:, None]
    shares = Over(C, 0.05).double().shares(images, painted, off, torch.ones(2, N, dtype=torch.float64))
    torch.testing.assert_close(shares[:, 0], torch.ones_like(shares[:, 0]), atol=1e-3, rtol=0)


def test_a_view_shows_what_the_objects_so_far_leave():
    images, painted, ground = a_scene()
    over = Over(C, 0.3).double()
    state = over.start(images, ground)
    for n, canvas in enumerate(over.canvases(painted, ground).unbind(1)):
        left, seen, scope, surprise = over.view(state).split((C, C, 1, 1), 1)
        torch.testing.assert_close(left, images - canvas)
        assert torch.equal(seen, images)
        parts, own, floor = owners(images, painted, ground, 0.3, n)
        torch.testing.assert_close(scope[:, 0], own[:, n])
        perfect = (0.3 * math.sqrt(2 * math.pi))**-C
        torch.testing.assert_close(surprise[:, 0], ((parts.sum(1) + floor) / perfect).log() / -10)
        state = over.add(state, painted[:, n]) if n < N else state


@pytest.mark.parametrize("dtype, sd, within", [(torch.float64, 0.3, 1e-9), (torch.float32, 0.05, 1e-3)])
def test_the_worth_of_an_object_is_what_the_likelihood_loses_without_it(dtype, sd, within):
    """Also where it has a pixel nearly for itself, and rounding would leave nothing of the others."""
    images, painted, ground = a_scene()
    painted[:, 0, -1, 1:] = 1
    painted[:, 0, :-1, 1:] = images[:, :, 1:]
    exact, over = Over(C, sd).double(), Over(C, sd).to(dtype)
    for present in ([1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]):
        z_pres = torch.tensor([present] * 2, dtype=torch.float64)
        found = over.worth(*(each.to(dtype) for each in (images, painted, ground, z_pres)))

        def log_likelihood(z_pres):
            some = torch.cat((painted[:, :, :-1], painted[:, :, -1:] * z_pres[..., None, None, None]), 2)
            return exact.log_likelihood(images, some, ground, torch.empty(0))[:, -1]

        for t in range(N):
            without = log_likelihood(z_pres * (torch.arange(N) != t))
            torch.testing.assert_close(found[:, t].double(), log_likelihood(z_pres) - without, atol=within, rtol=within)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_more_opaque_object_is_in_front_whatever_the_order(order):
    _, painted, ground = a_scene()
    painted = painted[:, order].contiguous()
    front, back = (order.index(t) for t in (0, 1))
    painted[:, front, -1], painted[:, back, -1] = 1, 0.99
    canvases = Over(C, 0.3).double().canvases(painted, ground)
    assert torch.equal(canvases[:, 0], ground)
    torch.testing.assert_close(canvases[:, 2], painted[:, front, :-1], atol=0.01, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8])
def test_alpha_is_the_share_of_one_object(alpha):
    _, painted, ground = a_scene()
    painted[:, 0, -1] = alpha
    canvas = Over(C, 0.3).double().canvases(painted[:, :1], ground)[:, 1]
    torch.testing.assert_close(canvas, alpha * painted[:, 0, :-1] + (1 - alpha) * ground, atol=2e-4, rtol=0)


def test_boxes_are_around_what_is_opaque_and_hidden_parts_count():
    painted = torch.zeros(1, 2, C + 1, 8, 8)
    painted[0, 0, -1, 1:4, 2:7], painted[0, 1, -1, 3:8, 0:5], painted[0, 1, :-1] = 0.9, 0.8, 0.3
    painted[0, 0, -1, 5] = 0.3
    boxes = Over(C, 0.3).boxes(painted, torch.ones(1, 2, 3), 8)
    assert boxes.tolist() == [[[2, 1, 7, 4], [0, 3, 5, 8]]]


def test_counts_are_not_sure_before_objects_are_drawn():
    over, logits = Over(C, 0.1), torch.tensor([[-9.0, 0.5, 9.0]])
    most = []
    for share in (None, 0, 0.9 * FALLING, FALLING, 1):
        if share is not None:
            over.anneal(share)
        most.append(over.held_back(logits).abs().amax(1).item())
        assert over.held_back(logits)[0, 1] == 0.5
    assert most == [9, 2, 2, 9, 9]


def test_the_sd_falls_to_its_last_value():
    over = Over(C, 0.1, first_sd=0.4)
    assert over.sd == torch.tensor(0.1)  # of a model that nobody anneals
    sds = []
    for share in (0, 0.5 * FALLING, FALLING, 1):
        over.anneal(share)
        sds.append(over.sd.item())
    assert sds == pytest.approx([0.4, 0.2, 0.1, 0.1])
    constant = Over(C, 0.1)
    constant.anneal(0)
    assert constant.sd == torch.tensor(0.1) and not over.state_dict()  # the share of training decides


def test_what_training_changes_stays_exact_when_the_model_moves():
    over = Over(C, 0.1, first_sd=0.4)
    over.anneal(0.5 * FALLING)
    for moved in (over.to_empty(device="cpu"), over.float().double()):
        assert moved.sd.item() == pytest.approx(0.2, abs=1e-7) and moved.surest == 2
    assert over.sd.item() == 0.1 * 4**0.5


@pytest.mark.parametrize("options, message", [
    ({"first_sd": 0.7}, "first_sd is for compositing='over'"),
    ({"compositing": "over", "first_sd": 0.2}, "must be at least as large: got 0.2 and 0.3"),
    ({"compositing": "over", "decoder_output_use_sigmoid": True}, "alpha has a sigmoid already")])
def test_keywords_that_do_not_go_together_are_refused(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(**options)
