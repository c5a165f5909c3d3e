"""The recipe: training settings for every data set and estimator. docs/recipe.md says what fails without each."""

import inspect
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from air.data import IMAGE_SIZE, LAYOUT, OBJECT_SIZE, Dataset, usual_counts
from air.inference.estimators import ESTIMATORS
from air.kinds import MODELS
from air.training.trainer import Config

SETTINGS: dict[str, Any] = {
    **LAYOUT, "background": False, "difference": False,
    "estimator": "nvil", "batch_size": 64, "shift": 0, "lr": 1e-3, "final_lr": 0.0, "baseline_lr": 1e-2,
    "count_prior": 1e-8, "learn_count_prior": False, "exploration": 1.0, "exploration_share": 0.5, "rescue": 0.8,
    "seed": 0, "device": "cpu", "precision": "fp32", "compile": False, "eval_every": 500, "checkpoint_every": 500,
    "data_root": "data"}
STEPS = {"nvil": 4000, "enumerate": 2000, "vimco": 3000}
SCENE_STEPS = 3000  # of 3D scenes
PARTICLES = {"nvil": 1, "enumerate": 1, "vimco": 3}
PRIOR_WARM_UP = 0.5  # share of the steps before a learned p(n) begins to follow q(n)
MODEL = {"window_size": 28, "z_what_size": 50, "rnn_hidden_size": 256, "encoder_net": [200], "decoder_net": [200]}
NOT_TO_SET = {"model.x_size", "model.channels", "model.count_prior", "model.background", "model.difference",
              "model.encoder", "model.decoder", "model.object_size", "model.view",
              "estimator.model", "estimator.exploration", "estimator.particles", "estimator.rescue"}
UNKNOWN_STEPS = 4  # where nobody knows how many objects there are
LIKELIHOOD_SD = 0.3  # of a pixel, for objects of the usual side in pixels and larger ones; in proportion for smaller
BEFORE_A_BACKGROUND = 2 / 3  # of that sd: what objects stand before takes a third of their contrast, as a guess
SCALE_PRIOR_SPREAD = 1 / 30  # sd over mean of the scale's prior


def configure(dataset: Dataset, **settings: Any) -> Config:
    """The configuration of a run on a data set.

    Args:
        dataset: gives the images' size and channels.
        settings: what departs from the recipe, by the names of SETTINGS, "steps", "particles", "model.KEYWORD" (of AIR)
            and "estimator.KEYWORD".
    Raises:
        ValueError: a setting has no such name.
    """
    names = [*SETTINGS, "steps", "particles"]
    unknown = sorted(name for name in settings if name not in names and not name.startswith(("model.", "estimator.")))
    if unknown:
        raise ValueError(f"the recipe has no setting named {', '.join(unknown)}; it has {', '.join(names)}, "
                         "model.KEYWORD, estimator.KEYWORD")
    chosen = {**SETTINGS, **settings}
    kind, estimator = "air" if dataset.train.poses is None else "scene", chosen["estimator"]
    _check(chosen, {"model.": MODELS[kind], "estimator.": ESTIMATORS[estimator]})
    chosen["counts"] = sorted(set(usual_counts(dataset.name) if chosen["counts"] is None else chosen["counts"]))
    chosen["unseen_counts"] = sorted(set(chosen["unseen_counts"]))
    model = (_air_model if kind == "air" else _scene_model)(dataset, chosen) | _pop(chosen, "model.")
    options = {"particles": chosen.pop("particles", PARTICLES[estimator]), "rescue": chosen.pop("rescue"),
               **_pop(chosen, "estimator.")}
    steps = chosen.pop("steps", STEPS[estimator] if kind == "air" else SCENE_STEPS)
    learn_from = round(PRIOR_WARM_UP * steps) if chosen.pop("learn_count_prior") else None
    exploration_steps = round(chosen.pop("exploration_share") * steps)
    return Config(dataset=dataset.name, dataset_reason=dataset.reason, model=model, steps=steps,
                  kind=kind, estimator_options=options, learn_count_prior_from=learn_from,
                  exploration_steps=exploration_steps, **chosen)


def _check(chosen: dict[str, Any], takers: dict[str, type]) -> None:
    """Raises ValueError: a setting is not what it is to be, or the class under its prefix takes no such keyword."""
    for prefix, taker in takers.items():
        signature = inspect.signature(taker)
        for name in (name.removeprefix(prefix) for name in chosen if name.startswith(prefix)):
            if name not in signature.parameters:
                raise ValueError(f"there is no keyword {prefix}{name}; there are {', '.join(signature.parameters)}")
            if prefix + name in NOT_TO_SET:
                raise ValueError(f"{prefix}{name} follows from the data, or from a setting of its own")
            kinds, value = _kinds(signature.parameters[name].annotation), chosen[prefix + name]
            if not any(fits(value) for _, fits in kinds):
                raise ValueError(f"{prefix}{name} must be {' or '.join(words for words, _ in kinds)}, got {value!r}")
    for name in ("exploration", "exploration_share", "rescue", "final_lr"):
        if not isinstance(chosen[name], int | float) or not 0 <= chosen[name] <= 1:
            raise ValueError(f"{name} must be a number in [0, 1], got {chosen[name]!r}")
    if type(chosen["shift"]) is not int or chosen["shift"] < 0:
        raise ValueError(f"shift must be a whole number of pixels, at least 0, got {chosen['shift']!r}")


def _air_model(dataset: Dataset, chosen: dict[str, Any]) -> dict[str, Any]:
    """AIR's keywords; the settings that they are made of are taken out of `chosen`."""
    channels, x_size = dataset.train.images.shape[1:3]
    side = x_size * chosen["object_size"] / (IMAGE_SIZE * OBJECT_SIZE)  # of an object, 1 is the usual one
    contrast = BEFORE_A_BACKGROUND if chosen["background"] else 1.0
    most = int(dataset.train.counts.max())
    # One step more than there are objects, so that counting one too many is possible and seen.
    num_steps = max([most + 1, *chosen["unseen_counts"]]) if most >= 0 else UNKNOWN_STEPS
    return {**MODEL, "num_steps": num_steps, "x_size": x_size, "channels": channels,
            **{name: chosen.pop(name) for name in ("count_prior", "background", "difference")},
            "scale_prior_mean": 1 / chosen["object_size"],
            "scale_prior_sd": SCALE_PRIOR_SPREAD / chosen["object_size"],
            "likelihood_sd": LIKELIHOOD_SD * min(1.0, side) * contrast}


def _scene_model(dataset: Dataset, chosen: dict[str, Any]) -> dict[str, Any]:
    """SceneAIR's keywords, likewise. Raises ValueError: something was asked for that it cannot do."""
    idle = [name for name in ("background", "shift") if chosen[name]]
    if idle:
        raise ValueError(f"{', '.join(idle)}: {dataset.name} has no use for that; leave it out")
    if chosen["estimator"] == "vimco" or chosen.get("particles", 1) > 1:
        raise ValueError(f"the shapes of {dataset.name} are learned with one particle: take nvil or enumerate")
    assert dataset.train.poses is not None
    num_steps = max([1, int(dataset.train.counts.max()), *chosen["unseen_counts"]])
    del chosen["background"]
    search = num_steps > 1  # an overview of several objects gives them their places slowly
    difference = chosen.pop("difference") or search and chosen.get("model.search", search)
    return {"num_steps": num_steps, "object_size": dataset.train.poses[..., 3].max().item(),
            "count_prior": chosen.pop("count_prior"), "difference": difference, "search": search,
            "identity": "enumerate" if num_steps == 1 else "local"}


def _kinds(annotation: Any) -> list[tuple[str, Callable[[Any], bool]]]:
    """What a keyword so annotated takes, in words and as a test of a JSON value."""
    return [_KINDS[kind] for kind in (get_args(annotation) if get_origin(annotation) is UnionType else [annotation])]


_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: type(value) is bool),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: type(value) in (int, float)),
    str: ("a name", lambda value: type(value) is str),
    NoneType: ("null", lambda value: value is None),
    Sequence[int]: ("a list of layers' sizes, such as [200]",
                    lambda value: type(value) is list and all(type(size) is int and size > 0 for size in value))}


def _pop(settings: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The settings under a prefix, taken out, the prefix left off."""
    return {name.removeprefix(prefix): settings.pop(name) for name in list(settings) if name.startswith(prefix)}
