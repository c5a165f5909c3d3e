import shlex

import pytest

from air.training.command_line import parse
from experiments.catalogue import EXPERIMENTS
from experiments.records import load_results

# The command line of results up to commit 5d52a32 -> today's.
FLAGS = {"--count-prior": "--model.count-prior", "--learn-count-prior": "--optim.learn-count-prior",
         "--background": "--model.background", "--lr": "--optim.lr", "--baseline-lr": "--optim.baseline-lr",
         "--particles": "--estimator.particles",
         **{f"--{name}": f"--data.{name}" for name in ("counts", "unseen-counts", "overlap", "image-size",
                                                       "object-size", "noise", "backdrop")}}
SETTINGS = {"shift": "optim.shift", "final_lr": "optim.final-lr", "exploration": "estimator.exploration",
            "rescue": "estimator.revive"}


def settings(arguments):
    """Flag -> values."""
    flags = {}
    for word in arguments:
        if word.startswith("--"):
            assert word not in flags
            values = flags[word] = []
        else:
            values.append(word)
    return flags


def translated(arguments):
    """The same of a command line up to commit 5d52a32."""
    flags = {FLAGS.get(flag, flag): values for flag, values in settings(arguments).items()}
    assigned = dict(each.split("=") for each in flags.pop("--set", []))
    difference, search = flags.pop("--difference", None) is not None, assigned.pop("model.search", None)
    if search == "true":
        flags["--guide"] = ["search"]
    elif difference or search == "false":
        flags["--guide"] = ["difference" if difference else "recurrent"]
    if share := assigned.pop("exploration_share", None):
        flags["--estimator.exploration-steps"] = [f"{float(share) * int(*flags['--steps']):.0f}"]
    for name, value in assigned.items():
        path = SETTINGS.get(name, name).replace("_", "-")
        if value in ("true", "false"):
            group, _, name = path.partition(".")
            flags[f"--{group}.{name if value == 'true' else f'no-{name}'}"] = []
        else:
            flags[f"--{path}"] = [value.strip("[]")]
    return flags


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_results_are_those_of_the_command(name):
    expected = shlex.split(EXPERIMENTS[name].arguments)
    for result in load_results(name):
        command, old = shlex.split(result["command"])[2:], False
        if "--run.eval-every" not in expected:
            *command, every_flag, every = command
            old = every_flag == "--eval-every"
            assert (old or every_flag == "--run.eval-every") and every == "100"
        *arguments, seed_flag, seed = command
        assert (seed_flag, int(seed)) == ("--seed", result["seed"])
        assert (translated if old else settings)(arguments) == settings(expected)


def test_train_py_takes_every_command():
    for experiment in EXPERIMENTS.values():
        parse(shlex.split(experiment.arguments))
