"""Layers that a rollout calls at every step, with backward passes of few operations.

`shared_weights` takes the gradient of a weight that all steps share as one matrix product over the steps, and
`lstm_cell` is an LSTM's nonlinearity. Neither changes a number by more than rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Rows = list[tuple[Tensor, Tensor]]  # of one weight's products: (gradient, x), (rows, out) and (rows, in)

_products: "ContextVar[dict[nn.Module, _SharedWeight] | None]" = ContextVar("products", default=None)


@contextmanager
def shared_weights() -> Iterator[None]:
    """Inside, the gradient of a `Linear` that is called several times is taken as one product.

    The gradient of a shared weight is a sum over its calls, dL/dW = Σ_t g_tᵀ x_t. Concatenated, the rows g_t and x_t
    give the same sum in one matrix product, which is faster and takes fewer operations. While torch compiles, under
    autocast and without gradients, layers work as usual.

    Use one block per backward pass: a pass through one call of a layer frees the graph of all its calls before.
    Such a graph can be differentiated once, and its layers cannot be recomputed by non-reentrant checkpointing.
    """
    if torch.compiler.is_compiling():  # which knows no ContextVar
        yield
        return
    token = _products.set({})
    try:
        yield
    finally:
        _products.reset(token)


class Linear(nn.Linear):
    """nn.Linear that heeds `shared_weights`."""

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """x (..., in) -> x Wᵀ + b (..., out); or x Wᵀ + plus, for x (B, in) and a layer without a bias."""
        assert plus is None or self.bias is None
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            y = super().forward(x)  # whose cast of the weight is cached, as that of its transpose is not
            return y if plus is None else plus + y
        shared = None if torch.compiler.is_compiling() else _products.get()
        if shared is None or x.ndim < 2 or x.is_meta or not torch.is_grad_enabled():
            return super().forward(x) if plus is None else torch.addmm(plus, x, self.weight.T)
        if self not in shared:
            shared[self] = _SharedWeight(self.weight, self.bias)
        return shared[self](x, plus)


class _SharedWeight:
    """Calls of one layer inside `shared_weights`.

    A call returns a token that the next one takes, so the backward passes of the calls run one after the other, from
    the last to the first, and then that of `_WeightGradient`, which finds the rows that they have left in `rows`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.learned = weight.requires_grad or bias is not None and bias.requires_grad
        self.rows: Rows = []
        self.token: Tensor = _WeightGradient.apply(self.rows, weight, bias)

    def __call__(self, x: Tensor, plus: Tensor | None) -> Tensor:
        rows = self.rows if self.learned else None
        y, self.token = _Product.apply(rows, self.token, x, self.weight, self.bias if plus is None else plus)
        return y


class _WeightGradient(torch.autograd.Function):
    """Weight and bias -> a token without elements; backward gives their gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Rows, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        return weight.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor | None) -> tuple[None, Tensor | None, Tensor | None]:
        if not ctx.rows:  # nothing has read what the calls gave
            return None, None, None
        gradient, x = (each[0] if len(each) == 1 else torch.cat(each) for each in zip(*ctx.rows))
        ctx.rows.clear()
        of_weight, of_bias = ctx.needs_input_grad[1:]
        return None, gradient.T @ x if of_weight else None, gradient.sum(0) if of_bias else None


class _Product(torch.autograd.Function):
    """x Wᵀ + plus, whose gradient for W is left to `_WeightGradient`; so is that for plus if it is the bias."""

    @staticmethod
    def forward(ctx: Any, rows: Rows | None, token: Tensor, x: Tensor, weight: Tensor, plus: Tensor | None
                ) -> tuple[Tensor, Tensor]:
        ctx.rows = rows
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        y = F.linear(x, weight, plus) if plus is None or plus.ndim == 1 else torch.addmm(plus, x, weight.T)
        return y, token.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, later: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        *_, of_x, _, of_plus = ctx.needs_input_grad
        if ctx.rows is not None and later is None:  # the last call of this pass: an earlier pass may have left its rows
            ctx.rows.clear()
        if gradient is None:
            return None, later, None, None, None
        if ctx.rows is not None:  # without the graph of x, which holds this list
            ctx.rows.append((gradient.flatten(0, -2), x.detach().flatten(0, -2)))
        of_x = gradient @ weight if of_x else None
        return None, gradient.new_empty(0), of_x, None, gradient if of_plus else None


def scale_gradient(value: Tensor, factor: Tensor | float) -> Tensor:
    """Return `value` unchanged, with its gradient multiplied by `factor`."""
    return value.detach().lerp(value, factor)


def clamp_both_ways(value: Tensor, most: Tensor) -> Tensor:
    """Clamp to [-most, most], so that what has left the interval can return: there, a gradient of a loss passes if
    following it leads back.
    """
    clamped: Tensor = _ClampBothWays.apply(value, most)
    return clamped


class _ClampBothWays(torch.autograd.Function):
    """See `clamp_both_ways`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, most: Tensor) -> Tensor:
        ctx.save_for_backward(value, most)
        return torch.minimum(torch.maximum(value, -most), most)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        value, most = ctx.saved_tensors
        return gradient * ((value.abs() <= most) | (gradient * value > 0)), None


def lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """An LSTM's next h and c.

        i, f, g, o = σ(gates_i), σ(gates_f), tanh(gates_g), σ(gates_o)
        c' = f c + i g,   h' = o tanh(c')

    Args:
        gates: (B, 4 R), in the order i, f, g, o.
        c: (B, R).
    Returns:
        h' and c', (B, R) each.
    Source: Hochreiter & Schmidhuber (1997), with forget gates.
    """
    h, c = _LSTMCell.apply(gates, c)
    return h, c


class _LSTMCell(torch.autograd.Function):
    """See `lstm_cell`. autograd would take eight elementwise operations forward and fifteen backward."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        squashed = gates.sigmoid()
        i, f, _, o = squashed.chunk(4, -1)
        g = gates.chunk(4, -1)[2].tanh()
        new_c = torch.addcmul(f * c, i, g)
        tanh_c = new_c.tanh()
        h = o * tanh_c
        ctx.save_for_backward(squashed, g, c, tanh_c, h)
        ctx.set_materialize_grads(False)
        return h, new_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_h: Tensor | None, d_c: Tensor | None) -> tuple[Tensor, Tensor]:
        squashed, g, c, tanh_c, h = ctx.saved_tensors
        i, f, _, o = squashed.chunk(4, -1)
        if d_h is None:
            d_h = torch.zeros_like(c)
        of_c = torch.addcmul(o, h, tanh_c, value=-1)  # ∂h' / ∂c' = o (1 - tanh²)
        d_c = d_h * of_c if d_c is None else torch.addcmul(d_c, d_h, of_c)
        # The gradients of c and of the squashed i, f, g, o, side by side
        gradient = torch.cat((f, g, c, i, tanh_c), -1).unflatten(-1, (5, -1))
        gradient[:, :4].mul_(d_c[:, None])
        gradient[:, 4].mul_(d_h)
        of_gates = torch.ops.aten.sigmoid_backward(gradient[:, 1:].flatten(1), squashed)
        of_i_f, _, of_o = of_gates.split((2 * c.shape[-1], c.shape[-1], c.shape[-1]), -1)
        of_g = torch.ops.aten.tanh_backward(gradient[:, 3], g)
        return torch.cat((of_i_f, of_g, of_o), -1), gradient[:, 0]
