"""The search guide: what it finds, at any place, of any size and on images of any size."""

import math

import pytest
import torch
from torch.nn.functional import interpolate

from air import Enumerate
from air.evaluation.evaluate import evaluate
from air.models.distributions import log_count_probs, settled
from air.models.search import Level, SearchGuide, log_scales
from air.models.spatial import from_centre, invert_z_where, sample


def guide(log_scale=math.log(6), sd=0.03, x_size=96, canvas_glimpse=True):
    """A guide whose objects have about 16 of 96 pixels; a larger sd adds a wider look, with weights as if trained."""
    torch.manual_seed(0)
    search = SearchGuide(1, x_size, (log_scale, 0, 0), (sd, 0.6, 0.6), "ReLU", canvas_glimpse).double()
    if len(search.pyramid.levels) > 1:
        assert not any(parameter.any() for parameter in search.pyramid.where.parameters())
        torch.nn.init.normal_(search.pyramid.where.weight)
    return search


def blobs(*places, side=8, shape=(96, 96)):
    """(1, 1, *shape) float64: bright squares with their top left corners at (x, y)."""
    image = torch.zeros(1, 1, *shape, dtype=torch.float64)
    for x, y in places:
        image[..., y:y + side, x:x + side] = 1
    return image


def propose(search, residual, canvas=0):
    """The proposal of a step that has this residual and canvas."""
    return search.step(search.start(residual + canvas, 1), residual, ())[0]


def proposed(search, image, x_size=96):
    """The side and centre, (side, x, y) in pixels, of the object that is proposed first."""
    where = propose(search, image).loc + torch.tensor([search.where_loc]).double()
    inverse, x, y = invert_z_where(search.z_where(where))[0]
    height, width = image.shape[-2:]
    return torch.stack((x_size * inverse, width / 2 + x_size / 2 * x, height / 2 + x_size / 2 * y))


def test_search_is_equivariant_to_shifts():
    """For shifts by whole places, away from the borders: the proposal moves along, and nothing else changes."""
    search = guide()
    here, there = blobs((36, 44)), blobs((52, 40))
    move = proposed(search, there) - proposed(search, here)
    torch.testing.assert_close(move, torch.tensor([0.0, 16, -4]).double(), atol=1e-6, rtol=0)
    (logit, loc, scale), (other_logit, other_loc, other_scale) = propose(search, here), propose(search, there)
    torch.testing.assert_close((other_logit, other_scale, other_loc[:, :1]), (logit, scale, loc[:, :1]))


def test_search_is_equivariant_to_the_size():
    """An image of twice as many pixels, for objects of twice as many: the proposal has twice as many."""
    image = torch.zeros(1, 1, 48, 48, dtype=torch.float64)
    bump = torch.hann_window(10, False, dtype=torch.float64)[1:-1]  # of one hottest place, whatever the resampling
    image[..., 20:28, 18:26] = bump[:, None] * bump
    twice = interpolate(image, scale_factor=2)
    one = guide(-math.log(8 / 48), x_size=48)
    two = guide(-math.log(16 / 96), x_size=96)
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(proposed(two, twice), 2 * proposed(one, image, 48), atol=0.3, rtol=0.01)


def test_search_goes_to_one_of_two_objects_and_not_between_them():
    search = guide()
    one, other, both = (proposed(search, blobs(*places))[1:] for places in
                        ([(20, 20)], [(68, 68)], [(20, 20), (68, 68)]))
    assert min((both - one).norm(), (both - other).norm()) < 0.5 < 60 < (one - other).norm()


@pytest.mark.parametrize("sd", [0.03, 0.4])
@pytest.mark.parametrize("shape", [(96, 96), (72, 200), (200, 90)])
def test_an_object_is_seen_the_same_in_an_image_of_any_size(shape, sd):
    """Its proposal has the same size in pixels, logit and place relative to it."""
    search = guide(sd=sd)
    usual, other = blobs((40, 40)), blobs((40, 32), shape=shape)
    move = proposed(search, other) - proposed(search, usual)
    torch.testing.assert_close(move, torch.tensor([0.0, 0, -8]).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(propose(search, other).logits, propose(search, usual).logits, atol=1e-5, rtol=0)


def test_a_level_shrinks_by_means_and_keeps_a_constant_image():
    level = Level(40, math.log(2.5)).double()  # objects of 16 pixels: half as many pixels
    images = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    small, places = level(images), level.places_in(40, 40)
    assert small.shape == (2, 3, 20, 20) and places.shape == (100, 3)
    torch.testing.assert_close(level(torch.ones(1, 1, 40, 40).double()), torch.ones(1, 1, 20, 20).double())
    torch.testing.assert_close(small, interpolate(images, (20, 20), mode="bilinear", antialias=True))
    torch.testing.assert_close(places[11], torch.tensor([math.log(2.5), -0.75, -0.75]).double())
    wide, places = level(torch.rand(1, 1, 40, 100).double()), level.places_in(40, 100)
    assert wide.shape == (1, 1, 20, 50) and places[:, 1].max() > 2 and places[:, 2].max() < 1


def test_levels_cover_the_prior_of_the_size():
    assert log_scales(1.0, 0.03) == pytest.approx([1.0])
    low, middle, high = log_scales(1.0, 0.3)  # sizes within 0.45 of the mean
    assert (low, middle, high) == pytest.approx((0.7, 1, 1.3))
    many = log_scales(0.0, 1.0)
    assert len(many) == 5 and max(b - a for a, b in zip(many, many[1:])) <= 0.75


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_glimpse_is_read_in_the_level_of_the_object_s_size(level):
    """Whatever the image's size; the wider look says what the object's is, and where its centre."""
    search, image = guide(sd=0.4), torch.rand(1, 1, 80, 120, dtype=torch.float64)
    pyramid = search.pyramid
    log_s = pyramid.log_scales[level] + 0.1
    with torch.no_grad():
        pyramid.where.weight.zero_()
        pyramid.where.bias.copy_(torch.tensor([(log_s - math.log(6)) / pyramid.span, 0.5, 0]).double().atanh())
        found, plain = pyramid(image), guide().pyramid(image)
        glimpse = search._read(found.levels, found.where, image.shape[-2:])
    assert len(found.levels) == 3 and found.where[0, 0].item() == pytest.approx(log_s)
    if level == 1:  # of the same reach as a guide that knows one size
        torch.testing.assert_close(found.where[0, 1:] - plain.where[0, 1:],
                                   torch.tensor([math.exp(-log_s) / 2, 0]).double(), atol=0.02, rtol=0)
    where = from_centre(found.where + torch.tensor([-math.log(1.8), 0, 0], dtype=torch.float64))
    expected = sample(found.levels[level], where, search.glimpse.xy, (120 / 96, 80 / 96))[0]
    torch.testing.assert_close(glimpse, expected, rtol=0, atol=0)


def test_the_canvas_is_seen_near_what_was_found_and_nowhere_else():
    """It decides together with the residual, but does not stand out itself."""
    search, residual = guide(), blobs((44, 44))
    alone, near, far = (propose(search, residual, canvas) for canvas in (0, blobs((50, 50)), blobs((80, 12))))
    torch.testing.assert_close(far, alone)
    assert (near.logits - alone.logits).abs() > 1e-3 and (near.loc - alone.loc).abs().max() < 0.5
    search = guide(canvas_glimpse=False)
    torch.testing.assert_close(propose(search, residual, blobs((50, 50))), propose(search, residual), atol=0, rtol=0)


def test_what_is_larger_is_told_from_the_same_picture_of_what_is_smaller():
    """Its size is known to the networks, not only its glimpse."""
    search = guide(sd=0.4)
    with torch.no_grad():
        for parameter in search.pyramid.where.parameters():
            parameter.zero_()
        search.mlp[0].weight[:, :-1] = 0
        usual = propose(search, blobs((44, 44))).logits
        search.pyramid.where.bias[0] = 0.3
        assert (propose(search, blobs((44, 44))).logits - usual).abs() > 1e-4


def test_places_are_exact_whatever_the_precision_of_the_layers():
    """Only the features are of low precision; what is attended to, and where, follows from them in full."""
    pyramid = guide().pyramid.float()
    image = blobs((20, 44), (68, 44)).float()
    with torch.no_grad():
        pyramid.heat.copy_(3 * torch.rand_like(pyramid.heat))
        with torch.autocast("cpu", torch.bfloat16):
            low = pyramid.net(pyramid.levels[0](image))
            found = pyramid(image)
        assert low.dtype == torch.bfloat16
        pyramid.net = torch.nn.Identity()
        pyramid.net.forward = lambda level: low.float()
        torch.testing.assert_close(found, pyramid(image), rtol=0, atol=0)
    # An object's centre: no bfloat16 number is within 0.001 of it.
    assert found.where[0, 1:].tolist() != found.where[0, 1:].bfloat16().tolist()


def test_an_empty_image_has_no_heat_and_neither_has_its_border():
    """Whatever the biases, and with a non-linearity that is not 0 at 0."""
    pyramid = SearchGuide(2, 48, (math.log(4), 0, 0), (1.0, 0.6, 0.6), "Softplus").pyramid.double()
    with torch.no_grad():
        for parameter in pyramid.parameters():
            parameter.normal_()
        black = torch.zeros(1, 2, 48, 48, dtype=torch.float64)
        near = pyramid.net(black)
        assert near.abs().max() < 1e-12 and pyramid.wider(near).abs().max() < 1e-12
        assert pyramid.net(blobs((20, 20), shape=(48, 48)).expand(1, 2, 48, 48)).abs().max() > 0.1


@pytest.mark.parametrize("sd", [0.03, 0.4])
def test_search_keeps_its_dtype_under_autocast(sd):
    search = guide(sd=sd).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert {each.dtype for each in propose(search, blobs((20, 44)).float())} == {torch.float32}


def test_z_where_and_the_numbers_that_are_normal_are_inverses():
    search, where = guide(), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(search.normal_where(search.z_where(where)), where)
    assert torch.autograd.gradcheck(from_centre, where.requires_grad_())
    s, x, y = from_centre(torch.tensor([math.log(4.0), 0.5, -0.25], dtype=torch.float64))
    torch.testing.assert_close(torch.stack((s, -x / s, -y / s)), torch.tensor([4, 0.5, -0.25]).double())


def counter(make_model, num_steps, bias):
    """A search model with weights that do not depend on num_steps; a larger bias sees more objects."""
    torch.manual_seed(0)
    model = make_model(guide="search", num_steps=num_steps)
    with torch.no_grad():
        model.guide_net.mlp[-1].weight.mul_(20)
        model.guide_net.mlp[-1].bias[0] = bias
    return model


@pytest.mark.parametrize("bias", [-3.0, 0.5, 50.0])
def test_counting_further_is_what_a_model_of_more_steps_does(make_model, images, bias):
    """Steps end early only where more of them change no most probable count."""
    few, many = counter(make_model, 2, bias), counter(make_model, 9, bias)
    seen, expected = few.infer(images, most=9), many.infer(images)
    steps = seen.z_pres.shape[1]
    assert torch.equal(seen.count, expected.count)
    torch.testing.assert_close(seen.z_where, expected.z_where[:, :steps])
    torch.testing.assert_close(seen.boxes, expected.boxes[:, :steps])
    torch.testing.assert_close(seen.count_probs[:, :-1], expected.count_probs[:, :steps])
    torch.testing.assert_close(seen.count_probs.sum(-1), torch.ones(len(images)).double())
    assert (steps == 9) == (bias > 1) and steps <= 9


def test_settled_counts_stay_whatever_follows():
    torch.manual_seed(0)
    found = 0
    logits = 3 * torch.randn(50, 5, dtype=torch.float64)
    for t in range(1, 6):
        log_q = log_count_probs(logits[:, :t])  # the last is of t objects or more
        assert torch.equal(settled(logits)[:, t - 1], log_q[:, -1] < log_q[:, :-1].amax(-1))
    for _ in range(300):
        logits = 3 * torch.randn(2, 3, dtype=torch.float64)
        more = torch.cat((logits, 9 * torch.randn(2, 4, dtype=torch.float64)), -1)
        if settled(logits)[:, -1].all():
            found += 1
            assert torch.equal(log_count_probs(more).argmax(-1), log_count_probs(logits).argmax(-1))
    assert 20 < found < 280
    assert not settled(torch.full((1, 3), 5.0)).any()


def test_only_search_reads_images_of_another_size(make_model, images):
    wider = torch.nn.functional.pad(images, (4, 4, 2, 2))
    seen = counter(make_model, 3, 50.0).infer(wider)
    assert seen.reconstruction.shape == wider.shape and seen.canvases.shape == (5, 4, 1, 16, 20)
    layers = make_model(guide="search", compositing="over", background=True, blurred_background=True)
    seen = layers.infer(wider)
    assert layers.reads_any_size and seen.canvases.shape == (5, 4, 1, 16, 20) and seen.masks.shape == (5, 3, 16, 20)
    coarse = layers.decode_background(layers.encode_background(wider)[0])
    torch.testing.assert_close(seen.canvases[:, 0, :, 1::4, 2::5].mean((2, 3)), coarse.mean((2, 3)), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 1, 12, 12\)"):
        make_model().infer(wider)


def test_who_cannot_count_further_says_so(make_model, images):
    for model in (make_model(), make_model(guide="search", background=True)):
        with pytest.raises(ValueError, match="only guide='search' without a background, or with a blurred one"):
            model.infer(images, most=9)
    with pytest.raises(ValueError, match="most must be a whole number of at least 1, got 0"):
        make_model(guide="search").infer(images, most=0)


def test_an_evaluation_that_counts_further(make_model, scenes):
    model = counter(make_model, 1, 3.0)
    metrics = evaluate(model, scenes, most=4)
    count = model.infer(scenes.images, most=4).count
    assert metrics["count_accuracy_map"] == pytest.approx((count == scenes.counts).double().mean().item())
    assert len(metrics["counted"]) == 5 and metrics["box_iou"] >= 0 and "elbo" not in metrics
    with pytest.raises(ValueError, match="leave out most"):
        evaluate(model, scenes, refined=True, most=4)


@pytest.mark.slow
def test_compiled_in_one_graph_it_gives_the_same_loss_and_gradients(make_model, images):
    """With all parts: several levels, the wider look, the canvas and the touch price."""
    objective = Enumerate(make_model(guide="search", scale_prior_sd=1.0, touch_price=30.0, count_prior=0.1))
    results = []
    for forward in (objective, torch.compile(objective, backend="aot_eager", fullgraph=True)):
        objective.zero_grad()
        torch.manual_seed(0)
        loss, _ = forward(images)
        loss.backward()
        results.append((loss, [each.grad for each in objective.parameters()]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("sizes, hidden", [((), [128]), ((20, 10), [20, 10])])
def test_predict_net_sizes_the_layers_behind_the_glimpses(make_model, sizes, hidden):
    mlp = make_model(guide="search", predict_net=sizes).guide_net.mlp
    assert [layer.out_features for layer in mlp if hasattr(layer, "out_features")] == [*hidden, 7]
