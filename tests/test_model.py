import inspect
from contextlib import nullcontext
from dataclasses import FrozenInstanceError

import pytest
import torch

from air import AIR
from air.inference.elbo import elbo_terms
from air.models.distributions import CountPrior
from air.models.spatial import image_to_window
from tests.literal import literal_elbo


@pytest.mark.parametrize("options", [{}, {"channels": 3}, {"guide": "difference"},
                                     {"guide": "difference", "channels": 3, "embed_net": [5]},
                                     {"guide": "search", "channels": 3}, {"guide": "search", "scale_prior_sd": 1.0},
                                     {"guide": "search", "canvas_glimpse": False},
                                     {"guide": "search", "scale_prior_sd": 1.0, "channels": 3, "touch_price": 70.0},
                                     {"background": True, "channels": 3, "touch_price": 7.0},
                                     {"background": True, "guide": "difference", "z_background_size": 2},
                                     {"compositing": "over"}, {"compositing": "over", "guide": "difference"},
                                     {"compositing": "over", "guide": "search", "channels": 3, "touch_price": 7.0},
                                     {"compositing": "over", "guide": "search", "background": True},
                                     {"compositing": "over", "background": True, "blurred_background": True}])
def test_rollout_elbo_equals_the_literal_one(make_model, images, options):
    model = make_model(**options)
    images = images.expand(-1, model.channels, -1, -1)
    torch.manual_seed(7)
    elbo = elbo_terms(model, model.rollout(images)).elbo()  # (B, N+1)
    torch.manual_seed(7)
    behind = torch.randn(5, model.z_background_size, dtype=torch.float64) if model.background else [None] * 5
    noise = torch.empty(5, 3, 7, dtype=torch.float64).normal_()
    for i in range(len(images)):
        torch.testing.assert_close(elbo[i], literal_elbo(model, images[i], noise[i], behind[i]))


@pytest.mark.parametrize("options", [{}, {"channels": 3, "embed_net": [5]}, {"guide": "difference"},
                                     {"guide": "search", "channels": 3},
                                     {"guide": "search", "scale_prior_sd": 1.0, "touch_price": 70.0},
                                     {"background": True}, {"compositing": "over", "background": True},
                                     {"guide": "search", "background": True, "blurred_background": True},
                                     {"compositing": "over", "guide": "search", "channels": 3, "background": True},
                                     {"compositing": "over", "background": True, "blurred_background": True}])
def test_gradients_equal_the_literal_ones(make_model, images, options):
    """Of a different combination of the counts' ELBOs for each image; the LSTM's own weights are copies there."""
    model, gradients = make_model(**options), []
    images = images.expand(-1, model.channels, -1, -1)
    for literal in (False, True):
        torch.manual_seed(7)
        behind = torch.randn(5, model.z_background_size, dtype=torch.float64) if model.background else [None] * 5
        noise = torch.empty(5, 3, 7, dtype=torch.float64).normal_()
        torch.manual_seed(7)
        elbo = (torch.stack([literal_elbo(model, images[i], noise[i], behind[i]) for i in range(5)]) if literal
                else elbo_terms(model, model.rollout(images)).elbo())
        (elbo * torch.linspace(-1, 2, 20, dtype=torch.float64).view(5, 4)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    plain, literal = gradients
    assert plain.keys() - literal.keys() == {name for name in plain if "_gates" in name} and len(literal) > 6
    torch.testing.assert_close({name: plain[name] for name in literal}, literal)


@pytest.mark.parametrize("options", [{}, {"guide": "difference", "embed_net": [5]}, {"guide": "search"},
                                     {"background": True}])
def test_shared_weights_leave_gradients_unchanged(make_model, images, options, monkeypatch):
    """Computing a shared weight's gradient in a single product for all steps changes nothing."""
    model = make_model(**options)

    def gradients():
        torch.manual_seed(7)
        elbo_terms(model, model.rollout(images, particles=2)).elbo().sum().backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad()
        return found

    together = gradients()
    monkeypatch.setattr("air.models.air.shared_weights", nullcontext)
    torch.testing.assert_close(together, gradients())
    assert together["encode.mlp.0.weight"].any() and together["encode.mlp.0.bias"].any()


def test_a_step_of_search_depends_on_the_residual_and_the_canvas_and_on_nothing_else(make_model, images):
    model = make_model(guide="search")
    whole = model.rollout(images, at_mean=True)
    left = images - whole.painted[:, 0]
    proposal, _ = model.guide_net.step(model.guide_net.start(images, 1), left, ())
    torch.testing.assert_close(proposal.logits, whole.logits[:, 1:2])
    assert not torch.allclose(model.rollout(left, at_mean=True).logits[:, :1], whole.logits[:, 1:2])


def test_constructor_has_the_reference_keywords_and_defaults():
    defaults = {name: parameter.default for name, parameter in inspect.signature(AIR).parameters.items()}
    expected = dict(encoder_net=(), decoder_net=(), predict_net=(), embed_net=None, bl_predict_net=(),
                    non_linearity="ReLU", decoder_output_bias=None, decoder_output_use_sigmoid=False,
                    use_masking=True, use_baselines=True, baseline_scalar=None, scale_prior_mean=3.0,
                    scale_prior_sd=0.1, pos_prior_mean=0.0, pos_prior_sd=1.0, likelihood_sd=0.3, channels=1)
    assert {name: defaults[name] for name in expected} == expected
    assert list(defaults)[:5] == ["num_steps", "x_size", "window_size", "z_what_size", "rnn_hidden_size"]


def test_every_keyword_takes_effect():
    model = AIR(2, 10, 4, 3, 6, encoder_net=[5], decoder_net=[8, 7], predict_net=[9], embed_net=[11],
                bl_predict_net=[4], non_linearity="Tanh", decoder_output_bias=-1.5, decoder_output_use_sigmoid=True,
                baseline_scalar=5.0,
                scale_prior_mean=2.0, scale_prior_sd=0.5, pos_prior_mean=0.25, pos_prior_sd=0.75, likelihood_sd=0.2)
    baseline = model.make_baseline()
    guide = model.guide_net
    widths = [[layer.out_features for layer in net if hasattr(layer, "out_features")]
              for net in (model.encode.mlp, model.decode.mlp, guide.predict.mlp, guide.rnn.embed, baseline.predict)]
    assert widths == [[5, 6], [8, 7, 16], [9, 7], [11], [4, 1]]
    assert isinstance(model.encode.mlp[1], torch.nn.Tanh)
    assert (model.decode.bias, model.decode.use_sigmoid, baseline.scalar) == (-1.5, True, 5.0)
    assert model.z_where_prior_loc.tolist() == [2, 0.25, 0.25]
    assert model.z_where_prior_scale.tolist() == [0.5, 0.75, 0.75]


def test_count_prior_of_another_length_is_named(make_model):
    with pytest.raises(ValueError, match=r"\(4,\), got \(3,\)"):
        make_model(count_prior=CountPrior.geometric(2, 0.5))


def test_prior_draws_scenes(make_model):
    """Counts follow p(n), z_where its prior, and the image is the sum of the present objects."""
    torch.manual_seed(0)
    model = make_model(count_prior=0.6)
    (z_where, z_pres), x = model.prior(20_000)
    assert [tuple(z.shape) for z in z_where] == [(20_000, 3)] * 3
    assert [tuple(z.shape) for z in z_pres] == [(20_000, 1)] * 3 and x.shape == (20_000, 12, 12)
    chain = torch.cat(z_pres, 1)
    assert (chain.cumprod(1) == chain).all()  # once 0, always 0
    share, p = chain.sum(1).long().bincount(minlength=4) / len(x), model.count_prior.log_probs.exp()
    assert ((share - p).abs() < 4 * (p * (1 - p) / len(x)).sqrt()).all()
    drawn = torch.cat(z_where)
    tolerance = 4 * model.z_where_prior_scale / len(drawn)**0.5
    assert ((drawn.mean(0) - model.z_where_prior_loc).abs() < tolerance).all()
    assert ((drawn.std(0) - model.z_where_prior_scale).abs() < tolerance).all()
    empty = chain[:, 0] == 0
    assert (x[empty] == 0).all() and (x[~empty].abs().sum((1, 2)) > 0).float().mean() > 0.9  # some lie outside


def test_prior_takes_step_probabilities(make_model):
    model = make_model()
    (_, z_pres), x = model.prior(50, z_pres_prior_p=lambda t: 1.0 if t < 2 else 0.0)
    assert torch.cat(z_pres, 1).sum(0).tolist() == [50, 50, 0]
    (_, z_pres), x = make_model(channels=3).prior(4, z_pres_prior_p=lambda t: 0.0)
    assert x.shape == (4, 3, 12, 12) and (x == 0).all()
    assert model.prior(4)[1].requires_grad  # as in the reference


def test_guide_draws_a_subset_without_replacement(make_model, images):
    model = make_model()
    seen = []
    model.attend = lambda subset, ground: seen.append(subset) or AIR.attend(model, subset, ground=ground)
    z_where, z_pres = model.guide(images[:, 0], batch_size=4, z_pres_prior_p=lambda t: 0.5)
    assert [tuple(z.shape) for z in z_where] == [(4, 3)] * 3 and [tuple(z.shape) for z in z_pres] == [(4, 1)] * 3
    originals = {i: image for i, image in enumerate(images[:, 0])}
    matches = [[i for i, original in originals.items() if torch.equal(original, image)] for image in seen[0][:, 0]]
    assert len({match for (match,) in matches}) == 4
    assert z_where[0].requires_grad
    with pytest.raises(ValueError, match="1..5"):
        model.guide(images, batch_size=6)


def test_guide_samples_z_pres_from_its_chain(make_model, images):
    torch.manual_seed(0)
    model = make_model()
    image = images[:1].expand(20_000, -1, -1, -1)
    with torch.no_grad():
        _, z_pres = model.guide(image)
        first = model.rollout(image[:1]).logits[0, 0].sigmoid().item()
    chain = torch.cat(z_pres, 1)
    assert (chain.cumprod(1) == chain).all()
    assert abs(chain[:, 0].mean().item() - first) < 4 * (first * (1 - first) / len(chain))**0.5


def test_infer_is_consistent(make_model, images):
    model = make_model().eval()
    seen = model.infer(images)
    assert seen.count_probs.sum(-1).allclose(torch.ones(5, dtype=torch.float64))
    assert torch.equal(seen.at_limit, seen.count_probs.argmax(-1) == 3)
    assert torch.equal(seen.count, seen.count_probs.argmax(-1))
    assert torch.equal(seen.z_pres, (torch.arange(3) < seen.count[:, None]).double())
    for i, count in enumerate(seen.count.tolist()):
        torch.testing.assert_close(seen.reconstruction[i], seen.canvases[i, count])
        assert (seen.boxes[i, count:] == 0).all() and (seen.boxes[i, :count, 2:] > seen.boxes[i, :count, :2]).all()
    assert (seen.canvases[:, 0] == 0).all()
    torch.testing.assert_close(model.infer(images[:, 0]).as_dict(), seen.as_dict())  # (B, H, W) is (B, 1, H, W)
    with pytest.raises(FrozenInstanceError):
        seen.count = seen.count + 1


def test_uint8_images_are_intensities_times_255(make_model):
    model = make_model()
    images = torch.randint(0, 256, (3, 1, 12, 12), dtype=torch.uint8)
    torch.testing.assert_close(model.infer(images).as_dict(), model.infer(images.double() / 255).as_dict())


@pytest.mark.parametrize("channels, shape", [(1, (5, 13, 12)), (1, (5, 2, 12, 12)), (3, (5, 12, 12)), (1, (12, 12))])
def test_images_of_the_wrong_size_are_named(make_model, channels, shape):
    with pytest.raises(ValueError) as error:
        make_model(channels=channels).infer(torch.zeros(shape))
    assert str(shape) in str(error.value) and f"(B, {channels}, 12, 12)" in str(error.value)


def test_ceiling_is_the_log_likelihood_of_a_perfect_reconstruction(make_model, images):
    model = make_model()
    painted = torch.zeros(5, 3, 1, 12, 12, dtype=torch.float64)
    painted[:, 1] = images
    log_likelihood = model.log_likelihood(images, painted)
    assert log_likelihood[:, 2:].sub(model.log_likelihood_ceiling).abs().max() < 1e-9
    assert AIR(3, 50, 28, 50, 8).log_likelihood_ceiling == pytest.approx(712.6, abs=0.05)


def test_the_image_is_read_once_per_rollout(make_model, images):
    model, calls = make_model(), []
    model.guide_net.rnn.image_gates.register_forward_hook(lambda *_: calls.append(1))
    model.rollout(images)
    assert len(calls) == 1


def test_background_lies_behind_the_objects(make_model, images):
    model = make_model(background=True, count_prior=0.5)
    _, behind = model.infer_background(images, at_mean=True)
    seen = model.infer(images)
    torch.testing.assert_close(seen.canvases[:, 0], behind)
    plain = make_model(count_prior=0.5)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "background" not in k})
    with pytest.warns(UserWarning, match="should lie in"):
        without = plain.infer(images - behind)
    torch.testing.assert_close(without.canvases + behind[:, None], seen.canvases)
    first, second = model.rollout(images, particles=2).latents["background"].value[:2]
    assert not torch.equal(first, second)  # each particle has a draw of its own
    _, x = model.prior(500, z_pres_prior_p=lambda t: 0.0)
    assert x.std(0).min() > 0  # without objects, the scenes still differ


def test_kl_of_the_background_is_part_of_every_elbo(make_model, images):
    model = make_model(background=True)
    terms = elbo_terms(model, model.rollout(images))
    loc, scale = model.encode_background(images)
    kl = (scale.square() / 2 + loc.square() / 2 - 0.5 - scale.log()).sum(-1, keepdim=True)
    torch.testing.assert_close(terms.kl["background"], kl)
    torch.testing.assert_close(terms.per_image()["kl_background"], kl[:, 0].detach())


def test_custom_networks_replace_the_built_in_ones(make_model, images):
    class Mean(torch.nn.Module):
        def forward(self, glimpse):
            brightness = glimpse.mean((1, 2, 3))[:, None]
            return brightness.expand(-1, 4), torch.full_like(brightness, 0.5).expand(-1, 4)

    class Flat(torch.nn.Module):
        def forward(self, z_what):
            return z_what.mean(-1)[:, None, None, None].expand(-1, 1, 6, 6)

    model = make_model(encoder=Mean(), decoder=Flat())
    rollout = model.rollout(images)
    what, painted = rollout.latents["what"], rollout.painted
    assert torch.equal(what.scale, torch.full_like(what.scale, 0.5)) and (what.loc[..., :1] == what.loc).all()
    torch.testing.assert_close(painted.amax((2, 3, 4)), what.value.mean(-1).clamp(min=0), atol=1e-9, rtol=0.2)


def test_convolutional_networks_replace_the_mlps(make_model, images):
    model = make_model(convolutional=True, window_size=8)
    torch.manual_seed(0)
    rollout = model.rollout(images)
    what, where = rollout.latents["what"], rollout.latents["where"]
    for t in range(3):
        loc, scale = model.encode(image_to_window(images, where.value[:, t], 8))
        torch.testing.assert_close((what.loc[:, t], what.scale[:, t]), (loc, scale))
    torch.testing.assert_close(rollout.painted, model.paint(where.value, what.value))
    with pytest.raises(ValueError, match="divisible by 4, got 6 pixels"):
        make_model(convolutional=True)


def test_infer_takes_arrays_and_names_bad_images(make_model, images):
    model = make_model(count_prior=0.5)
    expected = model.infer(images).count_probs
    torch.testing.assert_close(model.infer(images[:, 0].numpy()).count_probs, expected)
    levels = (255 * images).round().to(torch.uint8)
    torch.testing.assert_close(model.infer(levels.numpy()).count_probs, model.infer(levels.double() / 255).count_probs)
    for wrong, words in ((levels.long(), "uint8 or floats, got torch.int64"), (images[0, 0], r"got \(12, 12\)"),
                         (images[..., :11], r"got \(5, 1, 12, 11\)"), (images / 0, "got nan or infinite")):
        with pytest.raises(ValueError, match=words):
            model.infer(wrong)


def test_attend_takes_images_as_rollout_does(make_model, images):
    model = make_model()
    raw = (255 * images).to(torch.uint8)
    for given in (raw[:, 0], raw.double() / 255):
        assert torch.equal(model.attend(given, at_mean=True).logits, model.attend(raw, at_mean=True).logits)


def test_annealing_layers_reaches_the_rollout(make_model, images):
    """What the trainer calls before each step: how sure counts are, the likelihood, and what an object costs."""
    model = make_model(compositing="over", guide="search", first_sd=0.6)
    with torch.no_grad():
        model.guide_net.mlp[-1].bias[0] += 9
    rollouts = []
    for share in (0.0, 1.0):
        model.anneal(share)
        torch.manual_seed(0)
        rollouts.append(model.rollout(images))
    first, last = rollouts
    assert (first.logits == 2).all() and (last.logits > 5).all()
    literal = make_model(compositing="over", guide="search", likelihood_sd=0.6)
    literal.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    torch.testing.assert_close(first.log_likelihood, literal.rollout(images).log_likelihood)
    assert not torch.isclose(first.log_likelihood, last.log_likelihood).any()
    # an object costs log 1/k at the last sd, and in proportion to 1 / sd² before
    k = -model.count_prior.log_probs.diff()
    torch.testing.assert_close(first.price, (k * (0.3**2 / 0.6**2 - 1))[None])
    assert not last.price.any()
