import pytest
import torch

from air.inference.elbo import Terms, elbo_terms
from air.inference.refine import refine
from air.models.touching import touching


def painted(*objects, channels=1):
    """(1, N, C, 20, 20): squares (left, top, side, intensity), each alone on a canvas."""
    canvas = torch.zeros(1, len(objects), channels, 20, 20, dtype=torch.float64)
    for n, (x, y, side, level) in enumerate(objects):
        canvas[0, n, -1, y:y + side, x:x + side] = level
    return canvas


FIRST = (4, 4, 6, 1.0)


@pytest.mark.parametrize("second, touch", [((12, 4, 4, 1.0), 0), ((11, 4, 4, 1.0), 0), ((10, 4, 4, 1.0), 1),
                                           ((8, 8, 4, 1.0), 1), ((10, 10, 4, 1.0), 1), ((11, 11, 4, 1.0), 0)])
def test_objects_touch_where_their_ink_is_on_neighbouring_pixels(second, touch):
    for channels in (1, 3):
        assert touching(painted(FIRST, second, channels=channels)).tolist() == [[0, touch]]


def test_each_object_is_compared_with_all_before_it():
    assert touching(painted(FIRST, (14, 14, 3, 1.0), (10, 4, 3, 1.0), (14, 17, 2, 1.0))).tolist() == [[0, 0, 1, 1]]
    assert touching(painted(FIRST)).tolist() == [[0]]


def test_ink_is_a_share_of_its_object_s_peak_whatever_its_sign():
    """So that objects on a bright ground, or of little contrast, touch as others do."""
    for first, second in ((0.1, 1.0), (-0.5, 0.06), (1.0, -0.3)):
        assert touching(painted((4, 4, 6, first), (10, 4, 4, second))).tolist() == [[0, 1]]


def test_a_blank_window_touches_nothing():
    for first, second in ((1e-3, 1.0), (1.0, 1e-3), (0.0, 1.0), (0.0, 0.0)):
        assert touching(painted((4, 4, 6, first), (10, 4, 4, second))).tolist() == [[0, 0]]


def test_faint_halos_do_not_touch_and_what_is_between_counts_in_part():
    objects = painted(FIRST, (14, 4, 4, 1.0))
    for level, touch in ((0.2, 0), (0.3, 0), (0.45, 0.5), (0.6, 1), (0.9, 1)):
        objects[0, 1, 0, 4:8, 10:14] = level  # a halo of the second that reaches the first
        torch.testing.assert_close(touching(objects)[0, 1].item(), float(touch))


def test_the_price_lowers_the_odds_of_a_count_and_no_gradient_sees_it(make_model, images):
    free, charged = (make_model(guide="search", touch_price=price, count_prior=0.1) for price in (0.0, 9.0))
    touch = touching(free.rollout(images, at_mean=True).painted)
    assert touch[:, 1:].max() > 0.5
    without, with_price = (elbo_terms(model, model.rollout(images, at_mean=True)) for model in (free, charged))
    expected = torch.cat((torch.zeros(len(images), 1), 9 * touch.cumsum(-1)), -1)
    torch.testing.assert_close(without.log_joint - with_price.log_joint, expected.double())
    torch.testing.assert_close(without.metrics()["kl_pres"] + (with_price.q * expected).sum(-1).mean(),
                               with_price.metrics()["kl_pres"])
    for n in range(4):  # each branch on its own pulls at the objects as it did
        for model, terms in ((free, without), (charged, with_price)):
            model.zero_grad()
            terms.log_joint[:, n].sum().backward(retain_graph=True)
        assert all(torch.equal(one.grad, other.grad) for one, other in zip(free.parameters(), charged.parameters())
                   if one.grad is not None)


def test_a_window_that_explains_something_is_not_skipped_because_it_costs_something():
    log_likelihood, log_q = torch.tensor([[0.0, 5.0, 9.0]]), torch.tensor([[0.1, 0.1, 0.8]]).log()
    for price, joint in ((None, [0, 5, 9]), (torch.tensor([[20.0, 0.0]]), [0, -15, -11])):
        terms = Terms.of(log_likelihood, {"where": torch.zeros(1, 3)}, torch.zeros(3), log_q, price)
        assert terms.log_joint.tolist() == [joint] and not terms.skipped.any()
    assert Terms.of(-log_likelihood, {"where": torch.zeros(1, 3)}, torch.zeros(3), log_q).skipped.any()


def test_each_particle_has_prices_of_its_own(make_model, images):
    rollout = make_model(guide="search", touch_price=9.0).rollout(images, particles=3)
    assert rollout.price.shape == (15, 3) and rollout.price.unique().numel() > 3
    torch.testing.assert_close(rollout.price, 9 * touching(rollout.painted))


def test_refine_counts_with_the_price(make_model, images):
    """A price that nothing can be worth leaves at most one object, and those that do not touch it."""
    found = refine(make_model(guide="search", touch_price=1e6, count_prior=1.0, likelihood_sd=0.1), images)
    touch = touching(make_model(guide="search").paint(found.z_where, found.z_what))
    assert (touch * found.z_pres).max() < 1e-3
