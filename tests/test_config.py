"""Settings, the configuration, and the command line that follows from it."""

import dataclasses
import inspect
import json

import pytest

from air import AIR, ESTIMATORS, SceneAIR
from air.config import (
    ESTIMATOR_SETTINGS,
    AIRSettings,
    SceneSettings,
    config_from_dict,
    default_config,
    with_settings,
)
from air.data import DATASETS, MultiMNIST
from air.models.settings import SettingsError, flag_names, to_dict
from air.training.command_line import parse, peek


@pytest.mark.parametrize("dataset", list(DATASETS))
@pytest.mark.parametrize("estimator", list(ESTIMATOR_SETTINGS))
def test_a_configuration_survives_json(dataset, estimator):
    config = default_config(dataset, estimator)
    again = config_from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config and type(again.data) is type(config.data)


@pytest.mark.parametrize("dataset", list(DATASETS))
@pytest.mark.parametrize("estimator", list(ESTIMATOR_SETTINGS))
def test_the_command_line_has_a_flag_for_every_setting(dataset, estimator, capsys):
    """No argument: the defaults. Every setting that is not derived has its path in the help, with a help text."""
    arguments = ["--dataset", dataset, "--estimator", estimator]
    if (dataset.startswith("scenes-"), estimator) != (True, "vimco"):  # which do not go together
        assert parse(arguments).config == default_config(dataset, estimator)
    with pytest.raises(SystemExit) as ended:
        parse([*arguments, "--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    lines = [line.strip(" │") for line in told.splitlines()]
    text = " ".join(lines).replace(",", " ")
    config = default_config(dataset, estimator)
    flags = [f"--{group.name}.{name.replace('_', '-')}" for group in dataclasses.fields(config)
             for name in flag_names(type(getattr(config, group.name)))]
    assert len(flags) > 30 and not [flag for flag in flags if f"{flag} " not in text]
    # Below a setting without a help text there is only its default.
    assert not [flag for flag, below in zip(lines, lines[1:]) if flag.startswith("--") and below.startswith("(default")]


def test_arguments_reach_their_settings():
    config = parse(["--dataset", "multi-mnist", "--data.counts", "2", "0", "2", "--steps", "5", "--guide", "search",
                    "--model.embed-net", "30", "40", "--model.no-use-masking", "--estimator.revive", "0.5",
                    "--device", "cpu", "--compile", "--model.predict-net", "7", "--model.num-steps", "6"]).config
    assert config.data.counts == (0, 2) and config.optim.steps == 5 and config.model.guide == "search"
    assert config.model.embed_net == (30, 40) and config.model.use_masking is False and config.estimator.revive == 0.5
    assert config.run.device == "cpu" and config.run.compile and config.model.predict_net == (7,)
    assert config.model.num_steps == 6
    assert parse(["--optim.steps", "5", "--model.guide", "search"]).config.optim.steps == 5  # the full path as well


def test_a_resumed_run_s_settings_are_the_defaults():
    own = with_settings(default_config("sprites", "vimco"), {"optim.lr": 0.5, "model.guide": "difference"})
    assert peek(["--resume", "runs/x", "--steps", "9"]).resume == "runs/x"
    arguments = parse(["--resume", "runs/x", "--steps", "9"], resumed=own)
    assert arguments.config == with_settings(own, {"optim.steps": 9}) and arguments.dataset == "sprites"


def said(capsys, arguments):
    """What is printed about wrong arguments: one line on stderr."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    (message,) = printed.err.splitlines()
    assert not printed.out
    return message


@pytest.mark.parametrize("arguments, message", [
    (["--steps", "0"], "train.py: error: --optim.steps: input should be greater than 0, got 0"),
    (["--batch-size", "-4"], "--optim.batch-size: input should be greater than 0, got -4"),
    (["--batch-size", "x"], "Error parsing --batch-size/--optim.batch-size: invalid literal for int"),
    (["--optim.lr", "0"], "--optim.lr: input should be greater than 0, got 0.0"),
    (["--optim.lr", "nan"], "--optim.lr: input should be a finite number, got nan"),
    (["--data.noise", "-1"], "noise: input should be greater than or equal to 0, got -1.0"),
    (["--data.object-size", "1.5"], "--data.object-size: input should be one share of the image's side, or the lowest "
                                    "and the highest, each above 0 and at most 1, got (1.5,)"),
    (["--object-size", "0.5", "0.1"], "--model.object-size: input should be one share of the image's side, or the "
                                      "lowest and the highest, each above 0 and at most 1, got (0.5, 0.1)"),
    (["--object-size", "big"],
     "Error parsing --object-size/--model.object-size: expected [FLOAT [FLOAT ...]] or auto, got ['big']"),
    (["--data.counts", "-1"], "counts.0: input should be greater than or equal to 0, got -1"),
    (["--data.image-size", "7"], "--data.image-size: input should be greater than or equal to 8, got 7"),
    (["--estimator.exploration", "2"], "exploration: input should be less than or equal to 1, got 2.0"),
    (["--estimator.revive", "1"], "revive: input should be less than 1, got 1.0"),
    (["--estimator.draws", "2.5"], "invalid literal for int() with base 10: '2.5'"),
    (["--estimator", "vimco", "--estimator.particles", "1"], "particles: input should be greater than or equal to 2"),
    (["--model.embed-net", "-1"], "--model.embed-net.0: input should be greater than 0, got -1"),
    (["--model.likelihood-sd", "NaN"], "--model.likelihood-sd: input should be a finite number, got nan"),
    (["--model.count-prior", "2"], "--model.count-prior: input should be less than or equal to 1, got 2.0"),
    (["--model.count-prior", "1e-320"],
     "--model.count-prior: input should be greater than or equal to 1e-300, got 1e-320"),
    (["--data.counts", "1001"], "--data.counts.0: input should be less than or equal to 1000, got 1001"),
    (["--seed", "9300000000000000"], "--run.seed: input should be less than 4294967296, got 9300000000000000"),
    (["--optim.shift", "50"],
     "--optim.shift 50 moves all of an image away: it must be less than 50, the image's side"),
    (["--data.object-size", "1e-9"],
     "--data.object-size 1e-09 of 50 pixels is less than one pixel: it must be at least 0.02"),
    (["--data.train-scenes", "9", "--batch-size", "10"], "--batch-size 10 exceeds the 9 training scenes"),
    (["--dataset", "scenes-table", "--data.counts", "0"],
     "no scene has an object: add a count above 0 to --data.counts"),
    (["--dataset", "scenes-table", "--model.identity", "enumerate", "--data.counts", "4"],
     "identity='enumerate' renders 3^4 combinations of shapes, at most 27 are allowed: use 'local'"),
    (["--optim.shift", "-1"], "shift: input should be greater than or equal to 0, got -1"),
    (["--estimator", "magic"], "invalid choice 'magic' for argument '--estimator'"),
    (["--dataset", "magic"], "invalid choice 'magic' for argument '--dataset'"),
    (["--precision", "magic"], "invalid choice 'magic'"),
    (["--guide", "magic"], "invalid choice 'magic'"),
    (["--no-such-flag"], "Unrecognized options: --no-such-flag"),
    (["--optim.lrr", "3"], "Unrecognized options: --optim.lrr, 3; did you mean --optim.lr?"),
])
def test_messages_about_wrong_arguments(capsys, arguments, message):
    assert message in said(capsys, arguments)


@pytest.mark.parametrize("arguments", [
    ["--steps", "9" * 5000], ["--optim.lr", "9" * 5000], ["--guide", "g" * 5000], ["--data.root", "g" * 5000],
    ["--" + "g" * 5000, "3"], ["--model.non-linearity", "g" * 5000], ["--dataset", "g" * 5000]])
def test_long_values_are_not_repeated_whole(capsys, arguments):
    assert len(said(capsys, arguments)) < 450


@pytest.mark.parametrize("changes, message", [
    ({"optim.lrr": 3}, "there is no setting 'optim.lrr'; did you mean 'optim.lr'"),
    ({"optim.lr": -3}, "lr: input should be greater than 0, got -3"),
    ({"data.counts": [1, -3]}, "counts.1: input should be greater than or equal to 0, got -3"),
    ({"model.guide": "magic"}, "guide: input should be 'recurrent', 'difference' or 'search', got 'magic'")])
def test_wrong_settings_are_one_sentence(changes, message):
    with pytest.raises(SettingsError) as error:
        with_settings(default_config(), changes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_settings_cannot_be_changed_and_have_no_other_names():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MultiMNIST().noise = 0.5
    with pytest.raises(SettingsError, match="nois: unexpected keyword argument"):
        MultiMNIST(nois=0.5)
    with pytest.raises(SettingsError, match="overlap"):
        config_from_dict({**to_dict(default_config()), "data": {"name": "multi-mnist", "overlap": "tight"}})


BUILT = [(AIRSettings, AIR), (SceneSettings, SceneAIR),
         *((ESTIMATOR_SETTINGS[name], ESTIMATORS[name]) for name in ESTIMATORS)]


@pytest.mark.parametrize("settings, built", BUILT)
def test_settings_have_the_names_of_the_keywords(settings, built):
    keywords = set(inspect.signature(built).parameters)
    names = {field.name for field in dataclasses.fields(settings)} - {"name", "exploration_steps"}
    if built is AIR:
        names.remove("object_size")  # the scale prior says it
    assert names <= keywords
    not_to_set = {"model", "view", "encoder", "decoder"}
    assert keywords - names <= not_to_set


RECIPE = {  # where the recipe departs from the constructors' defaults, which are the paper's or the reference's
    AIRSettings: {"encoder_net", "decoder_net", "count_prior", "guide", "scale_prior_mean", "scale_prior_sd",
                  "pos_prior_sd", "likelihood_sd", "touch_price", "compositing", "blurred_background"},
    SceneSettings: {"guide", "identity", "count_prior"}}


@pytest.mark.parametrize("settings, built", BUILT)
def test_defaults_are_the_constructor_s_unless_the_recipe_departs_from_them(settings, built):
    parameters = inspect.signature(built).parameters
    different = {field.name for field in dataclasses.fields(settings)
                 if field.name in parameters and parameters[field.name].default is not inspect.Parameter.empty
                 and getattr(settings(), field.name) != parameters[field.name].default}
    assert different - {"channels"} == RECIPE.get(settings, {"exploration", "revive"})
