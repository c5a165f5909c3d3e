"""The README's code runs; its commands, and those of the other pages, are ones that the programs take."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

import train
from air import predict
from air.training.command_line import parse

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def blocks(page, language):
    """What stands in a page's fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


COMMANDS = {page: [shlex.split(line, comments=True) for block in blocks(page, "bash") for line in block.splitlines()
                   if line] for page in PAGES}
ALL = list(dict.fromkeys(tuple(command) for commands in COMMANDS.values() for command in commands))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run's folder for the blocks that load one."""
    out = tmp_path_factory.mktemp("readme") / "run"
    train.main(["--dataset", "sprites", "--data.train-scenes", "8", "--data.held-out-scenes", "8", "--batch-size", "8",
                "--steps", "1", "--out", str(out)])
    return out


@pytest.mark.parametrize("page, blocks_there", [("README.md", 1), ("docs/api.md", 4), ("docs/evaluation.md", 1)])
def test_python_blocks_run_one_after_the_other(finished_run, tmp_path, monkeypatch, page, blocks_there):
    """As written, but for a run to load that exists, for how long a loop trains, and for smaller data sets."""
    monkeypatch.chdir(tmp_path)
    written = blocks(ROOT / page, "python")
    assert len(written) >= blocks_there
    code = "\n".join(written)
    for slow, quick in (('"runs/NAME"', repr(str(finished_run))), ('"runs/mine"', repr(str(finished_run))),
                        ("range(2000)", "range(2)"), ("Sprites()", "Sprites(train_scenes=64, held_out_scenes=8)")):
        code = code.replace(slow, quick)
    torch.manual_seed(0)
    exec(compile(code, page, "exec"), {})


def test_the_readme_is_a_screen_and_a_half_with_python_on_the_first():
    lines = README.read_text().splitlines()
    assert len(lines) <= 160 and "```python" in lines[:60]
    assert len(COMMANDS[README]) >= 5 and len(ALL) >= 20


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_commands_are_taken(command, monkeypatch):
    command = list(command)
    while "=" in command[0]:  # VARIABLE=value
        command = command[1:]
    if command[0] == "torchrun":  # torchrun FLAG SCRIPT ...
        command = ["python", *command[2:]]
    if command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif command[:2] == ["python", "train.py"]:
        parse(command[2:])
    elif command[:3] == ["python", "-m", "air.predict"]:
        predict.build_parser().parse_args(command[3:])
    elif command[:3] == ["python", "-m", "pytest"]:
        assert command[3:] == ["-m", "slow"] or (ROOT / command[3]).exists()
    elif command[0] == "python" and command[1].startswith("tests/"):
        importlib.import_module(command[1].removesuffix(".py").replace("/", ".")).build_parser().parse_args(command[2:])
    elif command[:2] in (["python", "-m"], ["python", "benchmarks/bench_step.py"]):
        name, arguments = (command[2], command[3:]) if command[1] == "-m" else ("benchmarks.bench_step", command[2:])
        importlib.import_module(name).build_parser().parse_args(arguments)
    else:
        assert command[0] in ("tensorboard", "pip", "git", ".")
