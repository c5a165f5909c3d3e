"""The command line of train.py: flags from the configuration, and one-sentence errors.

tyro makes the flags. Of the libraries that build a command line from dataclasses, simple-parsing and jsonargparse print
the whole usage with every error and suggest no flag; all three start in about 0.1 s.
"""

import argparse
import io
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias

import tyro

from air.config import (
    DEFAULT_ESTIMATOR,
    ESTIMATOR_SETTINGS,
    AIRSettings,
    Config,
    SceneSettings,
    default_config,
)
from air.data import DATASETS
from air.files.console import say
from air.models.settings import flag_names, shortened
from air.recipe import check

LONGEST_MESSAGE = 300  # characters of what tyro says, which repeats arguments whole
# Owners of each group's settings, for error messages.
FAMILIES: dict[str, Mapping[str, Any]] = {
    "data": DATASETS, "estimator": ESTIMATOR_SETTINGS,
    "model": {"2D scenes": AIRSettings, "3D scenes": SceneSettings}}

if TYPE_CHECKING:
    DatasetName: TypeAlias = str
    EstimatorName: TypeAlias = str
else:
    DatasetName = tyro.extras.literal_type_from_choices(["auto", *DATASETS])
    EstimatorName = tyro.extras.literal_type_from_choices(ESTIMATOR_SETTINGS)


@dataclass(frozen=True)
class CommandLine:
    """Train Attend, Infer, Repeat."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    dataset: DatasetName = "auto"
    """auto: multi-mnist where MNIST is there or can be downloaded, else sprites. Its settings: --data.*"""
    estimator: EstimatorName = DEFAULT_ESTIMATOR
    """How the count is learned. Its settings: --estimator.*"""
    out: str | None = None
    """The run's folder (None: a new one under runs/)."""
    resume: str | None = None
    """Continue the run in this folder, or from this checkpoint, with its own settings."""


def parse(argv: Sequence[str] | None, resumed: Config | None = None) -> CommandLine:
    """Parse the arguments of train.py; exits with code 2 and a message where they are wrong.

    Args:
        argv: None for the process's own.
        resumed: the settings of the run that --resume names: what the arguments leave out is as in that run.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = peek(argv)
    if resumed is not None:
        base = CommandLine(resumed, resumed.data.name, resumed.estimator.name)
    else:
        base = CommandLine(default_config(
            chosen.dataset if chosen.dataset in DATASETS else "multi-mnist",
            chosen.estimator if chosen.estimator in ESTIMATOR_SETTINGS else DEFAULT_ESTIMATOR,
            flat=chosen.compositing is not None))  # which the model of 3D scenes does not have
    _refuse_settings_of_others(argv, base.config)
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            parsed = tyro.cli(CommandLine, args=argv, default=base, prog="train.py",
                              config=(tyro.conf.AvoidSubcommands,))
        check(parsed.config)
        return parsed
    except SystemExit as ended:
        if ended.code == 0:  # --help
            raise
        fail(one_sentence(printed.getvalue()))
    except ValueError as error:
        fail(error)


def one_sentence(box: str) -> str:
    """Condense tyro's box about wrong arguments to its message and the flag that was probably meant."""
    lines = [line.strip(" │") for line in box.splitlines()[1:]]  # without the title
    is_rule = [bool(line) and not line.strip("─-╰╯") for line in lines]
    while is_rule and is_rule[0]:  # where the terminal cannot draw boxes, the title is underlined
        del lines[0], is_rule[0]
    end = is_rule.index(True) if True in is_rule else len(lines)
    message = " ".join(lines[:end]).partition(" Got errors:")[0].rstrip(". ")
    # From "Error parsing config.optim: batch_size: ..." to the flag.
    message = re.sub(r"^Error parsing config\.(\w+): (\w+)",
                     lambda found: f"--{found[1]}.{found[2].replace('_', '-')}", message)
    # tyro says of a union only that no member fits.
    message = re.sub(r"no type matching (\S.*) could be instantiated from ", lambda found: "expected " + " or ".join(
        kind.strip("{}") for kind in found[1].split("|") if kind != "{None}") + ", got ", message)
    meant = re.search(r"Perhaps you meant:\s*(--[\w.-]+)", " ".join(lines))
    message = shortened(message, LONGEST_MESSAGE)
    return message + (f"; did you mean {meant[1]}?" if meant else "")


def peek(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments that decide which other arguments there are: dataset, estimator, resume and compositing."""
    parser = argparse.ArgumentParser(prog="train.py", add_help=False, allow_abbrev=False)
    for flags, default in ((["--dataset"], "auto"), (["--estimator"], DEFAULT_ESTIMATOR), (["--resume"], None),
                           (["--compositing", "--model.compositing"], None)):
        parser.add_argument(*flags, default=default)
    return parser.parse_known_args(argv)[0]


def _refuse_settings_of_others(argv: Sequence[str], config: Config) -> None:
    """End the command if a flag is a setting of another data set, estimator or model, and say of which."""
    for flag in (argument.partition("=")[0] for argument in argv if argument.startswith("--")):
        group, _, name = flag.removeprefix("--").replace("-", "_").partition(".")
        name = name.removeprefix("no_")
        owners = [owner for owner, settings_class in FAMILIES.get(group, {}).items()
                  if name in flag_names(settings_class)]
        if owners and name not in flag_names(type(getattr(config, group))):
            short_flag = {"data": "--dataset ", "estimator": "--estimator "}.get(group, "")
            fail(f"{flag} is a setting of {short_flag}{', '.join(owners)}")


def fail(message: object) -> NoReturn:
    """End the command because of a user's mistake: one line on stderr, exit code 2."""
    say(f"train.py: error: {message}", error=True)
    sys.exit(2)
