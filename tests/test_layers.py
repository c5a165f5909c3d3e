import gc
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from air import Enumerate
from air.models.distributions import draw
from air.models.layers import Linear, clamp_both_ways, lstm_cell, scale_gradient, shared_weights
from benchmarks.operations import OperationLog


def layer(weight, bias=None):
    made = Linear(weight.shape[1], weight.shape[0], bias is not None)
    del made.weight, made.bias  # parameters; these are tensors
    made.weight, made.bias = weight, bias
    return made


def chained(linear, x, other, plus=None):
    """A function of a weight through three chained products, whose batch sizes differ."""
    first = linear(x)
    second = linear(first[:2].sin(), plus)
    return first.square().sum() + (second * other).sum() + linear(second.cos()[:, None]).cumsum(0).sum()


def shared(weight, bias, x, other, plus=None):
    with shared_weights():
        return chained(layer(weight, bias), x, other, plus)


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    sizes = {"weight": (4, 4), "bias": (4,), "x": (3, 4), "other": (4,), "plus": (2, 4)}
    return {name: torch.randn(size, dtype=torch.float64, requires_grad=name != "other")
            for name, size in sizes.items()}


@pytest.mark.parametrize("without", ["bias", "plus"])
def test_shared_weights_equal_linear_in_value_and_gradient(tensors, without):
    weight, bias, x, other, plus = (value if name != without else None for name, value in tensors.items())

    def plain(weight, bias, x, other, plus=None):
        return chained(lambda x, more=None: F.linear(x, weight, bias) + (0 if more is None else more), x, other, plus)

    inputs = [each for each in (weight, bias, x, plus) if each is not None]
    wanted = torch.autograd.grad(plain(weight, bias, x, other, plus), inputs)
    loss = shared(weight, bias, x, other, plus)
    torch.testing.assert_close(loss, plain(weight, bias, x, other, plus))
    for retain in (True, False):  # backward works twice
        torch.testing.assert_close(torch.autograd.grad(loss, inputs, retain_graph=retain), wanted)


def test_rows_of_a_backward_pass_that_left_the_weight_out_are_not_counted_later(tensors):
    weight, x, other = tensors["weight"], tensors["x"], tensors["other"]
    loss = shared(weight, None, x, other)
    (wanted,) = torch.autograd.grad(loss, weight, retain_graph=True)
    torch.autograd.grad(loss, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], wanted)


@pytest.mark.parametrize("used", [[0], [1], [0, 1], [2]])
def test_calls_that_nothing_reads_add_no_gradient(tensors, used):
    weight, bias, x = tensors["weight"], tensors["bias"], tensors["x"].detach()
    with shared_weights():
        linear = layer(weight, bias)
        outputs = [linear((t + 1) * x) for t in range(3)]
    found = torch.autograd.grad(sum(outputs[t].square().sum() for t in used), (weight, bias))
    plain = sum(F.linear((t + 1) * x, weight, bias).square().sum() for t in used)
    torch.testing.assert_close(found, torch.autograd.grad(plain, (weight, bias)))


def test_layers_of_their_own_keep_their_gradients_apart():
    torch.manual_seed(0)
    net, x = nn.Sequential(Linear(3, 5), nn.Tanh(), Linear(5, 3)).double(), torch.randn(2, 3, dtype=torch.float64)

    def gradients():
        return torch.autograd.grad(net(net(x)).square().sum(), list(net.parameters()))

    plain = gradients()
    with shared_weights():
        torch.testing.assert_close(gradients(), plain)


def test_frozen_weights_get_no_gradient_and_pass_theirs_on(tensors):
    weight, x, other = tensors["weight"].detach(), tensors["x"], tensors["other"]
    (found,) = torch.autograd.grad(shared(weight, None, x, other), x)
    plain = chained(lambda x, _=None: F.linear(x, weight), x, other)
    torch.testing.assert_close(found, torch.autograd.grad(plain, x)[0])


def test_nothing_is_kept_when_part_of_a_model_is_frozen_or_left_out_of_a_backward_pass(make_model, images):
    """Rows that no weight's gradient takes must not keep the graph alive."""
    model = make_model(guide="difference", embed_net=[5])

    def nodes():
        gc.collect()
        return sum(type(each).__name__.endswith("Backward") for each in gc.get_objects())

    def loss():
        return Enumerate(model)(images)[0]

    loss().backward()
    before = nodes()
    torch.autograd.grad(loss(), list(model.decode.parameters()))
    for part in (model.encode, model.guide_net.predict, model.guide_net.rnn, model.decode):
        part.requires_grad_(False)
        for _ in range(3):
            loss().backward()
        part.requires_grad_(True)
    assert nodes() <= before  # other tests' may end meanwhile


def test_each_layer_has_a_gradient_of_its_own_where_weights_are_tied_or_parametrised(tensors):
    x, one, other = tensors["x"].detach(), Linear(4, 4).double(), Linear(4, 4).double()
    other.weight = one.weight
    torch.nn.utils.parametrizations.weight_norm(third := Linear(4, 4).double())
    parameters = [*one.parameters(), other.bias, *third.parameters()]

    def gradients():
        return torch.autograd.grad(third(other(one(x)).sin()).sin().sum() + third(one(x)).sum(), parameters)

    plain = gradients()
    with shared_weights():
        torch.testing.assert_close(gradients(), plain)


def test_calls_whose_outputs_are_never_differentiated_do_no_harm(tensors):
    x, scale = tensors["x"].detach(), tensors["other"].clone().requires_grad_()
    with shared_weights():
        loc = Linear(4, 4).double()(x)
    draw(loc, scale.expand_as(loc), loc.detach())[2].sum().backward()
    assert (scale.grad == 3).all()


def test_low_precision_and_no_gradients_take_the_plain_layer():
    torch.manual_seed(0)
    linear, x = Linear(7, 5), torch.randn(3, 7)
    with shared_weights():
        with torch.autocast("cpu", torch.bfloat16):
            low = linear(x)
            assert low.dtype == torch.bfloat16 and torch.equal(low, F.linear(x, linear.weight, linear.bias))
        with torch.no_grad():
            plain = linear(x)
    assert not plain.requires_grad and torch.equal(plain, F.linear(x, linear.weight, linear.bias))


def test_the_gradient_of_a_shared_weight_is_one_product(tensors):
    weight, bias, x = tensors["weight"], tensors["bias"], tensors["x"].detach()
    with shared_weights():
        linear = layer(weight, bias)
        loss = sum(linear(t * x).sum() for t in range(5))
    with OperationLog() as log:
        loss.backward()
    assert log.counts["mm"] == 1


def test_the_cell_is_that_of_torch():
    torch.manual_seed(0)
    cell = nn.LSTMCell(3, 5).double()
    x, h, c = torch.randn(2, 3).double(), torch.randn(2, 5).double(), torch.randn(2, 5).double()
    gates = F.linear(x, cell.weight_ih, cell.bias_ih) + F.linear(h, cell.weight_hh, cell.bias_hh)
    torch.testing.assert_close(lstm_cell(gates, c), cell(x, (h, c)))


@pytest.mark.parametrize("read", [lambda h, c: (h, c), lambda h, c: h, lambda h, c: c])
def test_the_cell_s_gradient(read):
    torch.manual_seed(0)
    gates, c = torch.randn(3, 20, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda gates, c: read(*lstm_cell(gates, c)),
                                    (gates.requires_grad_(), c.requires_grad_()))


def test_a_clamp_lets_values_return():
    value = torch.tensor([-3.0, -3, -1, 1, 3, 3], requires_grad=True)
    clamped = clamp_both_ways(value, torch.tensor(2.0))
    assert clamped.tolist() == [-2, -2, -1, 1, 2, 2]
    (clamped * torch.tensor([-1.0, 1, -1, 1, -1, 1])).sum().backward()
    assert value.grad.tolist() == [-1, 0, -1, 1, 0, 1]  # a loss is reduced by going against it
    assert torch.equal(clamp_both_ways(value, torch.tensor(math.inf)), value)


def test_scale_gradient_keeps_the_value():
    value = torch.tensor([1.5, -2.0], dtype=torch.float64, requires_grad=True)
    scaled = scale_gradient(value.square(), torch.tensor(0.25))
    assert torch.equal(scaled, value.square())
    gradient, = torch.autograd.grad(scaled.sum(), value)
    torch.testing.assert_close(gradient, 0.25 * 2 * value.detach())
