"""Read checkpoints of Pyro's examples/air: a `state_dict` saved by its `main.py --save`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from air.files import CheckpointError
from air.models.air import AIR
from air.models.archive import load_tensors, mismatches, not_finite
from air.models.guides import RecurrentGuide
from air.models.networks import RecurrentNet

# Prefixes of parameter names, Pyro's -> ours, for the parameters that have the same shape in both.
PREFIXES = {"encode.mlp.seq.": "encode.mlp.", "decode.mlp.seq.": "decode.mlp.",
            "predict.mlp.seq.": "guide_net.predict.mlp.",
            "embed.seq.": "guide_net.rnn.embed.", "h_init": "guide_net.rnn.h_init", "c_init": "guide_net.rnn.c_init",
            "z_where_init": "z_where_init", "z_what_init": "z_what_init", "z_where_loc_prior": "z_where_prior_loc",
            "z_where_scale_prior": "z_where_prior_scale"}
CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of nn.LSTMCell, gates in the order i, f, g, o
BASELINE = ("bl_rnn.", "bl_predict.", "bl_embed.", "bl_h_init", "bl_c_init")


def load_pyro_checkpoint(path: str | Path, **keywords: Any) -> AIR:
    """Load a model trained by Pyro's example, in eval mode on the CPU: same distributions for the same image and z.

    The baseline is dropped, since only NVIL's training needs it. The checkpoint does not contain the count prior and
    the likelihood's sd: pass `count_prior` and `likelihood_sd`.

    Args:
        path: the file that main.py wrote with --save.
        keywords: of AIR's constructor, with the values that Pyro's class had in training; the prior of z_where is read
            from the checkpoint. The guide must be "recurrent", its default.
    Raises:
        CheckpointError: the file cannot be read, weights are not finite, or keys are missing, unexpected or of another
            shape than the keywords imply; the message lists them.
        ValueError: another guide than "recurrent".
    """
    state = load_tensors(Path(path))
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(value, Tensor)
                                              and value.is_floating_point() for name, value in state.items()):
        raise CheckpointError(f"{path} is not a state_dict of Pyro's AIR: expected tensors by name, all of floats")
    model = AIR(**keywords)
    if type(model.guide_net) is not RecurrentGuide:
        raise ValueError(f"Pyro's example has the recurrent guide, not guide={keywords['guide']!r}")
    rnn = model.guide_net.rnn
    expected = _expected_shapes(model, rnn)
    state = {name: value for name, value in state.items() if not name.startswith(BASELINE)}
    if wrong := mismatches(expected, state):
        raise CheckpointError(f"{path} does not fit these keywords; {'; '.join(wrong)}")
    if bad := not_finite(state):
        raise CheckpointError(f"{path} holds weights that are nan or infinite: {', '.join(bad)}")
    model.place_where_prior(state["z_where_loc_prior"].tolist(), state["z_where_scale_prior"].tolist())
    model.load_state_dict(_translated(state, rnn), strict=False)  # the checkpoint has no p(n)
    return model.eval()


def _expected_shapes(model: AIR, rnn: RecurrentNet) -> dict[str, torch.Size]:
    """Pyro's names and shapes for the parameters of a model and its recurrent net."""
    ours = model.state_dict()
    shapes: dict[str, torch.Size] = {}
    for prefix, own in PREFIXES.items():
        shapes |= {prefix + name.removeprefix(own): value.shape for name, value in ours.items() if name.startswith(own)}
    gates, features = rnn.image_gates.weight.shape
    hidden = gates // 4
    latents = rnn.step_gates.in_features - hidden
    cell = ((gates, features + latents), (gates, hidden), (gates,), (gates,))
    return shapes | {f"rnn.{name}": torch.Size(shape) for name, shape in zip(CELL, cell)}


def _translated(state: dict[str, Tensor], rnn: RecurrentNet) -> dict[str, Tensor]:
    """Rename Pyro's parameters. The input of its LSTM cell is (image, latents), and it has two biases; our cell has a
    separate weight for the image, and one bias.
    """
    translated = {own + name.removeprefix(prefix): value for prefix, own in PREFIXES.items()
                  for name, value in state.items() if name.startswith(prefix)}
    weight_ih, weight_hh, bias_ih, bias_hh = (state[f"rnn.{name}"] for name in CELL)
    features = rnn.image_gates.in_features
    return translated | {"guide_net.rnn.image_gates.weight": weight_ih[:, :features],
                         "guide_net.rnn.image_gates.bias": bias_ih + bias_hh,
                         "guide_net.rnn.step_gates.weight": torch.cat((weight_hh, weight_ih[:, features:]), 1)}
