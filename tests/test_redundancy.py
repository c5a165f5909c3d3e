"""Objects that others have made redundant are left out."""

from itertools import count as count_from

import pytest
import torch

from air import refine
from air.inference import tiles
from air.models import redundancy
from air.models.base import Inference
from air.models.distributions import NormalLatent
from air.models.opaque import Over
from air.models.redundancy import redundant

C, SIDE = 3, 12
LAYERS = {"compositing": "over", "guide": "search", "background": True, "channels": C, "num_steps": 4,
          "likelihood_sd": 0.1, "count_prior": 1e-4}


def squares(colours, columns, alpha=0.99):
    """(1, N, C + 1, SIDE, SIDE), opaque in rows 4 to 7 of the given columns."""
    painted = torch.zeros(1, len(colours), C + 1, SIDE, SIDE, dtype=torch.float64)
    for t, (colour, (first, last)) in enumerate(zip(colours, columns)):
        painted[0, t, :C] = torch.tensor(colour, dtype=torch.float64)[:, None, None]
        painted[0, t, C, 4:8, first:last] = alpha
    return painted


def latents_of(batch, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def latent(size):
        offset, ratio = (torch.rand(batch, steps, size, generator=generator, dtype=torch.float64) for _ in range(2))
        zero = torch.zeros(1, 1, dtype=torch.float64)
        return NormalLatent(offset, ratio + 0.1, torch.zeros_like(offset), zero, zero + 1)

    return {"where": latent(3), "what": latent(4)}


RED, BLUE, GREEN = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.1, 0.9, 0.1)


def test_a_window_between_two_objects_is_left_out_once_each_has_its_own(make_model):
    model = make_model(**LAYERS)
    painted = squares([RED, RED, BLUE, GREEN], [(4, 8), (2, 6), (6, 10), (0, 2)])
    images = model.compositing.canvases(painted[:, 1:3], torch.zeros(1, C, SIDE, SIDE, dtype=torch.float64))[:, -1]
    latents = latents_of(1, 4)
    for n, left_out in ((0, []), (1, []), (2, [0]), (3, [0]), (4, [0, 3])):
        found = redundant(model, images, painted, None, latents, torch.tensor([n]))
        assert found[0].nonzero().squeeze(-1).tolist() == left_out


@pytest.mark.parametrize("touch_price", [0.0, 20.0])
def test_one_after_the_other_is_left_out_until_all_pay(make_model, touch_price):
    """Against a literal version on random layers, of which some repeat others."""
    model, generator = make_model(**LAYERS, touch_price=touch_price), torch.Generator().manual_seed(0)
    batch, steps = 40, 6  # more than the prior knows: k is the same for all
    painted = torch.rand(batch, steps, C + 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    painted[:, :, C] *= torch.rand(batch, steps, SIDE, SIDE, generator=generator) < 0.05
    painted[:, 3], painted[:, 4] = painted[:, 1], painted[:, 0]
    ground = torch.rand(batch, C, SIDE, SIDE, generator=generator, dtype=torch.float64)
    images = model.compositing.canvases(painted[:, 1:3], ground)[:, -1]
    latents, counts = latents_of(batch, steps), torch.arange(batch) % (steps + 1)
    kl, price = latents["where"].kl() + latents["what"].kl(), model.prices(painted)

    def bound(b, present):
        shown = painted[b:b + 1, present]
        price_of = 0 if price is None else price.expand(batch, -1)[b]
        explained = model.compositing.log_likelihood(images[b:b + 1], shown, ground[b:b + 1], torch.empty(0))[0, -1]
        return explained - ((kl[b] + price_of) * torch.isin(torch.arange(steps), torch.tensor(present))).sum() \
            + len(present) * torch.log(torch.tensor(1e-4, dtype=torch.float64))

    found = redundant(model, images, painted, ground, latents, counts)
    numbers = set()
    for b, n in enumerate(counts.tolist()):
        present = list(range(n))
        while present:
            without = [bound(b, [s for s in present if s != t]) for t in present]
            if max(without) <= bound(b, present):
                break
            present.pop(int(torch.stack(without).argmax()))
        assert [t for t in range(n) if not found[b, t]] == present and not found[b, n:].any()
        numbers.add(n - len(present))
    assert len(numbers) > 2


def test_they_come_last_and_their_count_goes_to_what_is_left():
    over, zero = Over(C, 0.1), torch.zeros(2, C, SIDE, SIDE)
    painted = squares([RED, BLUE, GREEN], [(0, 2), (4, 6), (8, 10)]).float().expand(2, -1, -1, -1, -1)
    q, z = torch.tensor([[0.1, 0.2, 0.1, 0.6]] * 2), torch.arange(3.0).view(1, 3, 1).expand(2, 3, 3)
    images = over.canvases(painted, zero)[:, -1]
    extra = torch.tensor([[True, False, False], [False, False, False]])
    found = Inference.of(over, q, z, z, painted, images, zero, SIDE, extra)
    torch.testing.assert_close(found.count_probs, torch.tensor([[0.3, 0.1, 0.6, 0], [0.1, 0.2, 0.1, 0.6]]))
    assert found.count.tolist() == [2, 3] and found.at_limit.tolist() == [False, True]
    assert found.z_where[:, :, 0].tolist() == [[1, 2, 0], [0, 1, 2]] and found.z_pres.sum(1).tolist() == [2, 3]
    assert found.boxes[0].tolist() == [[4, 4, 6, 8], [8, 4, 10, 8], [0, 0, 0, 0]]
    assert found.segmentation.amax((1, 2)).tolist() == [2, 3] and not found.segmentation[0, :, :4].any()


@pytest.mark.parametrize("compositing, fewer", [("over", 1), ("add", 0)])
def test_infer_refine_and_tiles_leave_them_out(make_model, monkeypatch, compositing, fewer):
    """The first object of each image is made redundant; without that, all that the guide finds count."""
    model = make_model(**{**LAYERS, "compositing": compositing, "blurred_background": True}).eval()
    images = torch.zeros(3, C, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        model.guide_net.mlp[-1].bias[0] = 9
    first = torch.arange(4) == 0

    def worth(self, images, painted, ground, z_pres):
        return torch.where(first, -1e9, 1e9).expand_as(z_pres).double()

    monkeypatch.setattr(Over, "worth", worth)
    assert model.infer(images).count.tolist() == [4 - fewer] * 3
    monkeypatch.setattr("air.inference.refine.elbo_terms", lambda model, rollout: type(
        "Terms", (), {"log_joint": torch.arange(5.0, dtype=torch.float64).expand(len(rollout.logits), 5)}))
    assert refine(model, images).count.tolist() == [4 - fewer] * 3
    found = tiles.infer_tiles(model, images[0], most=4)
    assert found.count == 4 - fewer


def test_no_value_is_asked_for_while_torch_compiles(make_model, monkeypatch):
    """A program of a fixed number of rounds gives the same."""
    model, painted = make_model(**LAYERS), squares([RED, RED, RED, BLUE], [(4, 8), (2, 6), (2, 6), (6, 10)])
    images = model.compositing.canvases(painted[:, 2:], torch.zeros(1, C, SIDE, SIDE, dtype=torch.float64))[:, -1]
    arguments = model, images, painted, None, latents_of(1, 4), torch.tensor([4])
    found, calls = redundant(*arguments), count_from()
    monkeypatch.setattr(redundancy, "_is_traced", lambda images: next(calls) >= 0)
    assert found.sum() == 2 and torch.equal(redundant(*arguments), found) and next(calls) == 4
