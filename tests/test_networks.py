import pytest
import torch
import torch.nn.functional as F
from torch import nn

from air import AIR, Enumerate, SceneAIR
from air.models.guides import Predict
from air.models.networks import (
    MLP,
    Baseline,
    ConvDecoder,
    ConvEncoder,
    Decoder,
    Encoder,
    RecurrentNet,
    fold,
    non_linearity_class,
)
from air.scenes3d.renderer import View
from tests.conftest import SMALL
from tests.literal import as_lstm_cell


@pytest.mark.parametrize("embed_net", [None, [6, 5]])
def test_recurrent_net_is_an_lstm_on_image_and_latents(embed_net):
    torch.manual_seed(0)
    net = RecurrentNet(16, embed_net, 3, 7, "ReLU").double()
    nn.init.normal_(net.h_init), nn.init.normal_(net.c_init)
    cell, images = as_lstm_cell(net), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    gates, state = net.read(images)
    expected = state.h.expand(2, -1), state.c
    for latents in torch.randn(3, 2, 3, dtype=torch.float64):
        state = net(gates, latents.split((2, 1), -1), state)
        expected = cell(torch.cat((net.embed(images.flatten(1)), latents), 1), expected)
        torch.testing.assert_close(tuple(state), tuple(expected))


def test_image_is_multiplied_by_its_weights_once(monkeypatch):
    net, calls = RecurrentNet(16, None, 3, 7, "ReLU"), []
    net.image_gates.register_forward_hook(lambda *_: calls.append(1))
    gates, state = net.read(torch.randn(2, 1, 4, 4))
    for _ in range(5):
        state = net(gates, [torch.randn(2, 3)], state)
    assert len(calls) == 1


def test_fold_repeats_each_row_and_copies_nothing_for_one_particle():
    rows = torch.arange(12.0).view(3, 2, 2)
    assert torch.equal(fold(rows, 4), rows.repeat_interleave(4, 0))
    assert fold(rows, 1).data_ptr() == rows.data_ptr()


def test_mlp_has_the_requested_layers():
    assert [type(layer).__name__ for layer in MLP(4, [3, 2], "Tanh")] == ["Linear", "Tanh", "Linear"]
    assert [type(layer).__name__ for layer in MLP(4, [3], "Tanh", True)] == ["Linear", "Tanh"]


def test_mlp_names_what_it_cannot_build():
    with pytest.raises(ValueError, match="at least one layer"):
        MLP(4, [], "ReLU")
    with pytest.raises(ValueError, match="'Relu'"):
        MLP(4, [3], "Relu")


@pytest.mark.parametrize("name", sorted(name for name in dir(nn) if not name.startswith("_")))
def test_every_name_in_torch_nn_trains_or_is_refused(name):
    """In the guides, the encoders and decoders, and the 3D model's networks."""
    random = torch.get_rng_state()
    try:
        non_linearity_class(name)
    except ValueError as error:
        assert str(error) == f"torch.nn has no non-linearity named {name!r}"
        assert name not in ("ReLU", "Tanh", "ELU", "GELU", "PReLU", "RReLU", "SiLU", "Sigmoid", "Softplus", "LeakyReLU")
        return
    finally:
        assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(0)  # the recurrent guide in 3D with Dropout, a linear network, may start with an sd of 0
    small = {**SMALL, "window_size": 8, "embed_net": [5], "predict_net": [4], "non_linearity": name}
    models = [AIR(**small), AIR(**small, guide="search", convolutional=True), AIR(**small, background=True),
              SceneAIR(1, 0.35, View(image_size=8), 8, 6, (7,), (5,), non_linearity=name, guide="search"),
              SceneAIR(1, 0.35, View(image_size=8), 8, 6, (7,), (5,), non_linearity=name)]
    for model in models:
        images = torch.rand(2, model.channels, model.x_size, model.x_size)
        loss, _ = Enumerate(model)(images)
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_decoder_bias_and_sigmoid():
    torch.manual_seed(0)
    decoder, z_what = Decoder(4, [5], 2, 3, None, False, "ReLU"), torch.randn(6, 4)
    plain = decoder(z_what)
    assert plain.shape == (6, 2, 3, 3)
    decoder.bias = -2.0
    torch.testing.assert_close(decoder(z_what), plain - 2)
    decoder.use_sigmoid = True
    torch.testing.assert_close(decoder(z_what), (plain - 2).sigmoid())


def test_convolutions_halve_and_double_the_side():
    torch.manual_seed(0)
    encoder, decoder = ConvEncoder(3, 12, 4, "ReLU"), ConvDecoder(3, 12, 4, "ReLU")
    glimpse, z_what = torch.randn(2, 3, 12, 12), torch.randn(2, 4)
    one, two, last = encoder.net[0], encoder.net[2], encoder.net[-1]
    hidden = F.conv2d(glimpse, one.weight, one.bias, 2, 1).relu()
    hidden = F.conv2d(hidden, two.weight, two.bias, 2, 1).relu()
    code = F.linear(hidden.flatten(1), last.weight, last.bias)
    torch.testing.assert_close(encoder(glimpse), (code[:, :4], F.softplus(code[:, 4:])))
    first, one, two = decoder.net[0], decoder.net[3], decoder.net[5]
    hidden = F.linear(z_what, first.weight, first.bias).relu().view(2, 64, 3, 3)
    hidden = F.conv_transpose2d(hidden, one.weight, one.bias, 2, 1).relu()
    torch.testing.assert_close(decoder(z_what), F.conv_transpose2d(hidden, two.weight, two.bias, 2, 1))


def test_scales_are_positive_and_outputs_keep_their_dtype_under_autocast():
    torch.manual_seed(0)
    encoder, predict = Encoder(9, [5], 4, "ReLU"), Predict(6, [5], "ReLU")
    baseline = Baseline(RecurrentNet(9, None, 3, 6, "ReLU"), 6, [], "ReLU", 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        loc, scale = encoder(100 * torch.randn(8, 1, 3, 3))
        logit, where_loc, where_scale = predict(100 * torch.randn(8, 6))
        b = baseline(torch.randn(8, 1, 3, 3), torch.randn(2, 1, 8, 3))
    assert (scale > 0).all() and (where_scale > 0).all()
    assert {t.dtype for t in (loc, scale, logit, where_loc, where_scale, b)} == {torch.float32}
    assert b.shape == (8, 2)


def test_baseline_sees_the_past_only():
    """b_t depends on the image and the draws up to step t - 1, not on later ones."""
    torch.manual_seed(0)
    baseline = Baseline(RecurrentNet(9, None, 3, 6, "ReLU"), 6, [4], "ReLU", None).double()
    images = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    history = [[torch.randn(rows, 2, dtype=torch.float64), torch.ones(1, 1).expand(rows, 1).double()]
               for rows in (1, 2, 2, 2)]
    b = baseline(images, history)
    changed = [*history[:2], [history[2][0] + 1, history[2][1]], history[3]]
    again = baseline(images, changed)
    assert (again[:, :2] == b[:, :2]).all() and (again[:, 2:] != b[:, 2:]).all()
    assert (baseline(images + 1, history) != b).all()
    baseline.scalar = 3.0
    torch.testing.assert_close(baseline(images, history), 3 * b)
