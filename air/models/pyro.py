"""Checkpoints of Pyro's examples/air: a `state_dict` saved by its main.py --save."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from air.checkpoints import CheckpointError
from air.models.air import AIR

# Pyro's name -> ours, of what only has another name; a key ends as its module's own do.
PREFIXES = {"encode.mlp.seq.": "encode.mlp.", "decode.mlp.seq.": "decode.mlp.", "predict.mlp.seq.": "predict.mlp.",
            "embed.seq.": "rnn.embed.", "h_init": "rnn.h_init", "c_init": "rnn.c_init", "z_where_init": "z_where_init",
            "z_what_init": "z_what_init", "z_where_loc_prior": "z_where_prior_loc",
            "z_where_scale_prior": "z_where_prior_scale"}
CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of nn.LSTMCell, gates in the order i, f, g, o
BASELINE = ("bl_rnn.", "bl_predict.", "bl_embed.", "bl_h_init", "bl_c_init")


def load_pyro_checkpoint(path: str | Path, **keywords: Any) -> AIR:
    """A model that Pyro's example trained, in eval mode on the CPU: the same distributions for the same image and z.

    Its baseline is left behind: it belongs to the training of NVIL, not to the model. The prior over counts and the
    likelihood's sd are no part of the checkpoint: `count_prior` and `likelihood_sd` are as given.

    Args:
        path: the file that main.py wrote with --save.
        keywords: of AIR's constructor, as those of Pyro's were when it was trained; the priors of z_where are the
            checkpoint's own.
    Raises:
        CheckpointError: it cannot be read; or a key is missing, not expected, or of another shape than the keywords
            make it, all of which are named.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is not a checkpoint that can be read: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is not a state_dict of Pyro's AIR: expected tensors by name")
    model = AIR(**keywords)
    expected = _expected_shapes(model)
    state = {name: value for name, value in state.items() if not name.startswith(BASELINE)}
    wrong = [f"missing: {name} {tuple(expected[name])}" for name in expected if name not in state]
    wrong += [f"not expected: {name} {tuple(state[name].shape)}" for name in state if name not in expected]
    wrong += [f"{name}: expected {tuple(expected[name])}, found {tuple(state[name].shape)}"
              for name in expected if name in state and state[name].shape != expected[name]]
    if wrong:
        raise CheckpointError(f"{path} does not fit these keywords; {'; '.join(wrong)}")
    model.load_state_dict(_translated(state, model), strict=False)  # what it does not hold is p(n)
    return model.eval()


def _expected_shapes(model: AIR) -> dict[str, torch.Size]:
    """Pyro's names and shapes of a model's parameters."""
    ours = model.state_dict()
    shapes: dict[str, torch.Size] = {}
    for prefix, own in PREFIXES.items():
        shapes |= {prefix + name.removeprefix(own): value.shape for name, value in ours.items() if name.startswith(own)}
    gates, features = model.rnn.image_gates.weight.shape
    hidden = gates // 4
    latents = model.rnn.step_gates.in_features - hidden
    cell = ((gates, features + latents), (gates, hidden), (gates,), (gates,))
    return shapes | {f"rnn.{name}": torch.Size(shape) for name, shape in zip(CELL, cell)}


def _translated(state: dict[str, Tensor], model: AIR) -> dict[str, Tensor]:
    """The same parameters by our names. The cell's input is (image, latents); ours keeps the image's part apart, and
    has one bias.
    """
    translated = {own + name.removeprefix(prefix): value for prefix, own in PREFIXES.items()
                  for name, value in state.items() if name.startswith(prefix)}
    weight_ih, weight_hh, bias_ih, bias_hh = (state[f"rnn.{name}"] for name in CELL)
    features = model.rnn.image_gates.in_features
    return translated | {"rnn.image_gates.weight": weight_ih[:, :features], "rnn.image_gates.bias": bias_ih + bias_hh,
                         "rnn.step_gates.weight": torch.cat((weight_hh, weight_ih[:, features:]), 1)}
