"""The check that settings and constructors share: what one refuses the other refuses, with the same sentence."""

import dataclasses
import inspect
import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from air import AIR, ESTIMATORS, SceneAIR
from air.config import ESTIMATOR_SETTINGS, AIRSettings, OptimSettings, RunSettings, SceneSettings
from air.data import MultiMNIST, Sprites
from air.models.settings import SettingsError, check_memory, flag_names, from_dict, middle, to_dict
from air.training.command_line import parse
from tests.conftest import SMALL

SCENE = {"num_steps": 1, "object_size": 0.35, "rnn_hidden_size": 3, "features": 4, "predict_net": (5,),
         "bl_embed_net": (5,)}
BUILD = {AIRSettings: lambda **changed: AIR(**{**SMALL, **changed}),
         SceneSettings: lambda **changed: SceneAIR(**{**SCENE, **changed}),
         **{ESTIMATOR_SETTINGS[name]: lambda built=built, **changed: built(AIR(**SMALL), **changed)
            for name, built in ESTIMATORS.items()}}
CLASSES = {AIRSettings: AIR, SceneSettings: SceneAIR,
           **{ESTIMATOR_SETTINGS[name]: ESTIMATORS[name] for name in ESTIMATORS}}


def parts(hint):
    """The types that a type is made of."""
    return {hint}.union(*map(parts, get_args(hint))) if get_args(hint) else {hint}


def numbers(kind):
    """The names of a class's settings that are numbers or lists of them, and which are lists."""
    hints = {field.name: parts(get_type_hints(kind)[field.name]) for field in dataclasses.fields(kind)}
    return {name: Ellipsis in found for name, found in hints.items() if {int, float} & found}


FIELDS = [(kind, name, is_list) for kind in BUILD for name, is_list in numbers(kind).items()
          if name in inspect.signature(CLASSES[kind]).parameters]


def message(make, **keywords):
    """What is said of a value; empty if it is accepted."""
    try:
        make(**keywords)
    except SettingsError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        return str(error)
    return ""


def test_all_numbers_are_found():
    found = [name for kind, name, _ in FIELDS if kind is AIRSettings]
    assert {"num_steps", "encoder_net", "embed_net", "count_prior", "baseline_scalar", "likelihood_sd"} <= set(found)
    assert len(FIELDS) > 40 and "guide" not in found and "background" not in found


@pytest.mark.parametrize("kind, name, is_list", FIELDS)
def test_no_number_is_nan_infinite_a_string_or_too_large(kind, name, is_list):
    for value in (math.nan, math.inf, -math.inf, np.float32("nan"), "3", True, 10**400, 1e300):
        value = (value,) if is_list else value
        refusals = {message(kind, **{name: value}), message(BUILD[kind], **{name: value})}
        assert len(refusals) == 1 and refusals.pop().startswith(name)


@pytest.mark.parametrize("kind, name, is_list", FIELDS)
def test_constructor_and_setting_agree_on_small_and_negative_numbers(kind, name, is_list):
    for value in (0, -1, 1e-320, -1e-3):
        value = (value,) if is_list else value
        assert message(kind, **{name: value}) == message(BUILD[kind], **{name: value})
    may_be_zero = {"exploration", "revive", "annealed", "pos_prior_mean", "decoder_output_bias",
                   "baseline_scalar", "signal_scale", "touch_price"}
    assert bool(message(BUILD[kind], **{name: (0,) if is_list else 0})) == (name not in may_be_zero)


@pytest.mark.parametrize("kind, name, is_list", [(kind, name, is_list) for kind, name, is_list in FIELDS
                                                 if name in flag_names(kind)])
def test_the_command_line_agrees(capsys, kind, name, is_list):
    dataset = "scenes-single" if kind is SceneSettings else "sprites"
    group, choice = ("estimator", ["--estimator", kind.name]) if kind.name in ESTIMATORS else ("model", [])
    for value in ("nan", "inf", "0", "-1"):
        refused = value in ("nan", "inf") or message(kind, **{name: (int(value),) if is_list else int(value)})
        if refused:
            with pytest.raises(SystemExit) as ended:
                parse(["--dataset", dataset, *choice, f"--{group}.{name.replace('_', '-')}", value])
            (line,) = capsys.readouterr().err.splitlines()
            assert ended.value.code == 2 and f"--{group}.{name.replace('_', '-')}" in line


@pytest.mark.parametrize("kind", [MultiMNIST, OptimSettings, RunSettings])
def test_settings_without_a_constructor_refuse_the_same(kind):
    for name, is_list in numbers(kind).items():
        for value in (math.nan, math.inf, "3", 10**400):
            assert message(kind, **{name: (value,) if is_list else value}).startswith(name)


def test_numbers_of_numpy_and_torch_and_lists_are_taken():
    model = AIR(**{**SMALL, "num_steps": np.int64(2), "encoder_net": np.array([7, 5]), "decoder_net": [6],
                   "likelihood_sd": np.float32(0.25), "scale_prior_mean": torch.tensor(4), "use_masking": np.bool_(0)})
    assert (model.num_steps, model.likelihood_sd, model.use_masking) == (2, 0.25, False)
    assert [model.encode.mlp[place].out_features for place in (0, 2, 4)] == [7, 5, 8]
    assert model.z_where_prior_loc[0] == 4 and type(model.num_steps) is int
    assert MultiMNIST(counts=np.array([2, 0, 2])).counts == (0, 2) and RunSettings(seed=np.int64(3)).seed == 3


def test_none_is_taken_where_it_is_the_default():
    assert AIR(**SMALL, embed_net=None, baseline_scalar=None).num_steps == 3
    for name in ("num_steps", "guide", "likelihood_sd"):
        assert message(BUILD[AIRSettings], **{name: None}) == f"{name}: input should not be None"


def test_object_sizes_are_one_share_or_two():
    for given, size in ((0.25, (0.25,)), ([0.25], (0.25,)), (1, (1.0,)), (np.float32(0.5), (0.5,)),
                        ((0.1, 0.1), (0.1, 0.1)), (np.array([0.25, 0.5]), (0.25, 0.5))):
        assert MultiMNIST(object_size=given).object_size == Sprites(object_size=given).object_size == size
    assert from_dict(MultiMNIST, {"object_size": 0.25}) == MultiMNIST(object_size=(0.25,))  # as files of 0.1.0 have it
    assert from_dict(MultiMNIST, to_dict(MultiMNIST(object_size=(0.1, 0.3)))).object_size == (0.1, 0.3)
    for wrong in (0, -0.1, 1.5, (0.3, 0.1), (0.1, 0.2, 0.3), (0, 0.1), (0.5, 1.1), ()):
        assert message(MultiMNIST, object_size=wrong) == (
            "object_size: input should be one share of the image's side, or the lowest and the highest, each above 0 "
            f"and at most 1, got {wrong}")
    assert middle((0.3,)) == middle(0.3) == 0.3 and middle((0.1, 0.4)) == pytest.approx(0.2)


def test_object_sizes_on_the_command_line(capsys):
    for words, size in ((["0.25"], (0.25,)), (["0.1", "0.4"], (0.1, 0.4))):
        assert parse(["--dataset", "sprites", "--data.object-size", *words]).config.data.object_size == size
    for words in (["0.4", "0.1"], ["0.1", "0.2", "0.3"], ["2"]):
        with pytest.raises(SystemExit):
            parse(["--dataset", "multi-mnist", "--data.object-size", *words])
        (line,) = capsys.readouterr().err.splitlines()
        assert "--data.object-size: input should be one share of the image's side, or the lowest and" in line


@pytest.mark.parametrize("text", ["a\0b", "a\udc80b", "a" * 5000])
def test_text_that_no_path_can_be_is_refused(text):
    assert message(MultiMNIST, root=text).startswith("root: ")
    assert message(BUILD[AIRSettings], non_linearity=text).startswith("non_linearity: ")


def test_large_values_are_not_repeated_whole():
    refused = message(BUILD[AIRSettings], num_steps=10**5000)
    assert refused.endswith("less than or equal to 1000000000, got a number of thousands of digits")
    assert len(message(MultiMNIST, **{"x" * 5000: 1})) < 300


def test_memory_is_compared_with_what_there_is():
    check_memory("the scenes", 10e9, 10 * 10**9, "lower the counts")
    with pytest.raises(SettingsError) as error:
        check_memory("the scenes", 1234.56e9, 10 * 10**9, "lower the counts")
    assert str(error.value) == ("the scenes need about 1,234.6 GB of memory, and there are 10.0 GB: lower the counts")
