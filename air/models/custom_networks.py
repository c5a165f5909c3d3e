"""Custom encoders and decoders are checked once, when a model is built: by one forward pass of two black inputs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from air.models.settings import shortened


def check_networks(encoder: nn.Module | None, decoder: nn.Module | None, seen: int, painted: int, window_size: int,
                   z_what_size: int) -> None:
    """Check custom networks, where there are any: the encoder's glimpses have `seen` channels, the decoder's windows
    `painted`. Raises ValueError: as below.
    """
    if encoder is not None:
        check_encoder(encoder, seen, window_size, z_what_size)
    if decoder is not None:
        check_decoder(decoder, painted, window_size, z_what_size)


def check_encoder(encoder: nn.Module, channels: int, window_size: int, z_what_size: int) -> None:
    """Check that a module maps a glimpse (B, C, w, w) to loc and scale of z_what, (B, D) each.

    Raises:
        ValueError: it raises an error, or returns something else.
    """
    shape, wanted = (2, channels, window_size, window_size), (2, z_what_size)
    found = _output("encoder", encoder, shape)
    if not isinstance(found, (tuple, list)) or [_shape(each) for each in found] != [wanted, wanted]:
        raise ValueError(f"encoder: expected loc and scale of shape {wanted} each for glimpses {shape}, "
                         f"got {_described(found)}")
    if not (found[1] > 0).all():
        raise ValueError("encoder: expected a positive scale, its second output")


def check_decoder(decoder: nn.Module, channels: int, window_size: int, z_what_size: int) -> None:
    """Check that a module maps z_what (B, D) to a window (B, C, w, w).

    Raises:
        ValueError: it raises an error, or returns something else.
    """
    shape, wanted = (2, z_what_size), (2, channels, window_size, window_size)
    found = _output("decoder", decoder, shape)
    if _shape(found) != wanted:
        raise ValueError(f"decoder: expected windows of shape {wanted} for z_what {shape}, got {_described(found)}")


def _output(name: str, module: nn.Module, shape: tuple[int, ...]) -> Any:
    """What a module makes of zeros; its modes, its buffers and the random state stay as they are."""
    if any(is_lazy(parameter) for parameter in module.parameters()):  # to be initialised by the first images
        raise ValueError(f"{name}: has lazy layers: run it once before the model is built")
    like = next(module.parameters(), torch.zeros(()))
    modes = {part: part.training for part in module.modules()}
    devices = [like.device] if like.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            return module.eval()(torch.zeros(shape, dtype=like.dtype, device=like.device))
    except Exception as error:  # whatever a custom module raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}: fails on an input of shape {shape}: {shortened(reason)}") from error
    finally:
        for part, training in modes.items():
            part.training = training


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_described, value))})"
    return f"shape {_shape(value)}" if isinstance(value, Tensor) else type(value).__name__
