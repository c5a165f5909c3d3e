"""Checkpoints of runs: written atomically, and checked whole before anything is made of them."""

import json
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, with_config
from torch import Tensor, nn
from typing_extensions import TypedDict

from air.config import Config, config_from_dict
from air.files import CheckpointError, atomic_write
from air.inference.estimator import Estimator
from air.models.air import AIR
from air.models.archive import NAMED, load_tensors, mismatches, not_finite, printable
from air.models.base import CountingModel
from air.models.settings import NonNegative, NonNegativeInt, SettingsError, to_dict
from air.recipe import build_model, build_objective
from air.scenes3d.model import SceneAIR

FILE_NAME = "checkpoint.pt"
FORMAT = 9
MAX_PROCESSES = 2**12  # of one run
# Which versions read the formats before this one.
READERS = {**dict.fromkeys(range(1, 7), "an earlier commit of air 0.1.0"), 7: "air 0.1.0 (commit a34ee63)",
           8: "commit 3f59a48"}


def _floats(value: Tensor) -> Tensor:
    if value.dtype != torch.float32:
        raise ValueError("expected a tensor of float32")
    return value


def _cpu_generator(state: Tensor) -> Tensor:
    try:
        torch.Generator().set_state(state)
    except (RuntimeError, TypeError):
        raise ValueError("expected the state of a generator on the CPU") from None
    return state


def _cuda_generator(state: Tensor) -> Tensor:
    """A seed and an offset in multiples of four, eight bytes each."""
    if state.dtype != torch.uint8 or state.shape != (16,) or state[8] % 4:
        raise ValueError("expected the state of a generator on CUDA")
    return state


def _pack(digests: Mapping[str, int]) -> Tensor:
    """Digests of any number of images as the bytes of their JSON text, since the pickle's size is bounded."""
    return torch.frombuffer(bytearray(json.dumps(digests).encode()), dtype=torch.uint8)


def _unpack(packed: Tensor) -> dict[str, int]:
    try:
        if packed.dtype != torch.uint8:
            raise TypeError
        return TypeAdapter(dict[str, int]).validate_python(json.loads(packed.numpy().tobytes()), strict=True)
    except (ValueError, TypeError, RecursionError):
        raise ValueError("expected digests of images") from None


Floats = Annotated[InstanceOf[Tensor], AfterValidator(_floats)]
STRICT = ConfigDict(strict=True, extra="forbid")


@with_config(STRICT)
class Means(TypedDict):
    """The training metrics' sums since the last evaluation."""

    names: list[str]
    sums: Floats
    steps: NonNegativeInt


@with_config(STRICT)
class Process(TypedDict):
    """What each process of a run has of its own."""

    rng: Annotated[InstanceOf[Tensor], AfterValidator(_cpu_generator)]
    cuda_rng: Annotated[InstanceOf[Tensor], AfterValidator(_cuda_generator)] | None
    means: Means


@with_config(STRICT)
class Moments(TypedDict):
    """Adam's, of one parameter."""

    step: Floats
    exp_avg: Floats
    exp_avg_sq: Floats


@with_config(ConfigDict(strict=True))
class Group(TypedDict):
    """Parameters that share a learning rate; the optimiser's settings beside them are the configuration's."""

    params: list[int]


@with_config(STRICT)
class Optimizer(TypedDict):
    """An optimiser's state_dict."""

    state: dict[int, Moments]
    param_groups: list[Group]


@with_config(STRICT)
class State(TypedDict):
    """What a run needs to go on, beside its configuration."""

    objective: dict[str, Floats]  # the estimator's state_dict
    optimizer: Optimizer
    step: NonNegativeInt
    seconds: NonNegative
    gradient_norms: dict[str, float]  # of the last step, by network
    images: Annotated[InstanceOf[Tensor], AfterValidator(_unpack)]  # `Dataset.digests`, packed in the file
    processes: Annotated[list[Process], Field(min_length=1, max_length=MAX_PROCESSES)]


def save_checkpoint(path: Path, config: Config, state: dict[str, Any]) -> None:
    """Write a checkpoint; an existing file is replaced once the new one is complete.

    Args:
        path: the file.
        config: the run's.
        state: see `State`.
    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with atomic_write(path, regular=True) as file:
        try:
            torch.save({**state, "images": _pack(state["images"]), "format": FORMAT, "config": to_dict(config)}, file)
        except RuntimeError as error:  # torch's archive, closed after a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: str | Path) -> tuple[Config, dict[str, Any]]:
    """Read what `save_checkpoint` wrote: the run's configuration and its state, on the CPU.

    Args:
        path: the file, or the run's folder.
    Raises:
        CheckpointError: the file is missing, damaged, of another version, or not a checkpoint of this package.
    """
    path = checkpoint_path(path)
    content = load_tensors(path)
    found = content.pop("format", None) if isinstance(content, dict) else None
    found = found if type(found) is int and found in range(1000) else None
    if found != FORMAT:
        reader = READERS.get(found) if found else None
        raise CheckpointError(f"{path} has checkpoint format {found}, expected {FORMAT}"
                              + (f": read it with {reader}" if reader else ""))
    if "config" not in content:
        raise CheckpointError(f"{path} is incomplete: it holds no config")
    try:
        config = config_from_dict(content.pop("config"))
        state: Any = TypeAdapter(State).validate_python(content)
        _check_fit(config, state)
    except SettingsError as error:
        raise CheckpointError(f"{path} holds settings that this version does not know: {printable(str(error))}"
                              ) from None
    except ValidationError as error:
        raise CheckpointError(f"{path} {_fault(error)}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{path} is damaged: it is nested too deeply") from None
    return config, state


def _fault(error: ValidationError) -> str:
    """The first thing that is wrong, without what the file holds there."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = printable(".".join(map(str, first["loc"])))
    if first["type"] == "missing":
        return f"is incomplete: it holds no {where}"
    message = first["msg"].removeprefix("Value error, ")
    return f"is damaged: {where or 'a name'}: {message[:1].lower()}{message[1:]}"


def _check_fit(config: Config, state: State) -> None:
    """Check a state against the model and the optimiser that its configuration describes, without allocating them.

    Raises:
        CheckpointError: as above.
    """
    try:
        with torch.device("meta"):
            objective = build_objective(config.estimator, build_model(config.model))
    except (ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        reason = printable(" ".join(str(error).split()))
        raise CheckpointError(f"its settings do not describe a model ({reason})") from None
    check_weights(objective, state["objective"])
    _check_optimizer(objective, state)
    for means in (process["means"] for process in state["processes"]):
        if means["sums"].shape != (len(means["names"]),) or means["steps"] > state["step"]:
            raise CheckpointError("the sums of the metrics do not fit their names and the steps taken")


def _check_optimizer(objective: Estimator, state: State) -> None:
    """Check the optimiser's state against the parameters. Raises CheckpointError: it is not of them, or impossible."""
    parameters: list[Tensor] = []
    for given, group in zip_longest(state["optimizer"]["param_groups"], objective.parameter_groups(0.0, 0.0)):
        end = len(parameters) + (len(group["params"]) if group else 0)
        if given is None or group is None or given["params"] != list(range(len(parameters), end)):
            raise CheckpointError("the optimiser's parameters are not the model's")
        parameters += group["params"]
    for number, moments in state["optimizer"]["state"].items():
        taken, mean, square = moments["step"], moments["exp_avg"], moments["exp_avg_sq"]
        shape = parameters[number].shape if number in range(len(parameters)) else None
        if mean.shape != shape or square.shape != shape or taken.ndim:
            raise CheckpointError("the optimiser's state does not fit the model")
        if not (0 <= taken <= state["step"] and mean.isfinite().all() and square.isfinite().all()
                and (square >= 0).all()):
            raise CheckpointError("the optimiser's state is not that of a run")


def checkpoint_path(path: str | Path) -> Path:
    """The checkpoint file of a run's folder, or the file itself."""
    path = Path(path)
    return path / FILE_NAME if path.is_dir() else path


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a state_dict from a checkpoint; arguments and errors as of `check_weights`."""
    check_weights(module, weights)
    module.load_state_dict(weights)


def check_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Check a state_dict from a checkpoint.

    Raises:
        CheckpointError: it is not that of this module, or a weight is nan or infinite.
    """
    if wrong := mismatches({name: value.shape for name, value in module.state_dict().items()}, weights):
        raise CheckpointError(f"the weights do not fit the model: {'; '.join(wrong)}")
    # NVIL's own running moments, whose names have no dot, are nan before its first step.
    if bad := not_finite({name: value for name, value in weights.items() if "." in name}):
        raise CheckpointError(f"weights are nan or infinite: {', '.join(bad[:NAMED])}")


def load(path: str | Path) -> AIR:
    """A trained model of 2D scenes, in eval mode on the CPU.

    Args:
        path: a checkpoint that train.py wrote, or the folder of its run.
    Raises:
        CheckpointError: the file is missing, damaged, of another version, or holds a model of 3D scenes.
    """
    return load_with_config(path)[0]


def load_with_config(path: str | Path) -> tuple[AIR, Config]:
    """A trained model of 2D scenes with its run's configuration; arguments and errors as of `load`."""
    model, config = _load(path)
    if not isinstance(model, AIR):
        raise CheckpointError(f"{path} is a model of 3D scenes: load it with air.load_scene_model")
    return model, config


def load_scene_model(path: str | Path) -> SceneAIR:
    """A trained model of 3D scenes, in eval mode on the CPU; arguments and errors as of `load`."""
    model, _ = _load(path)
    if not isinstance(model, SceneAIR):
        raise CheckpointError(f"{path} is a model of 2D scenes: load it with air.load")
    return model


def _load(path: str | Path) -> tuple[CountingModel, Config]:
    config, content = load_checkpoint(path)
    model = build_model(config.model)
    prefix = "model."
    load_weights(model, {name.removeprefix(prefix): value for name, value in content["objective"].items()
                         if name.startswith(prefix)})
    return model.eval(), config
