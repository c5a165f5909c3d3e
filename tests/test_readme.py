"""The README's code runs; its commands, and those of the other pages, are ones that the programs take."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import train
from air import predict

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def blocks(page, language):
    """What stands in a page's fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


PYTHON = blocks(README, "python")
COMMANDS = {page: [shlex.split(line, comments=True) for block in blocks(page, "bash") for line in block.splitlines()
                   if line] for page in PAGES}
ALL = list(dict.fromkeys(tuple(command) for commands in COMMANDS.values() for command in commands))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run's folder for the blocks that load one."""
    out = tmp_path_factory.mktemp("readme") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("air.data.SPRITES_TRAIN", 8)
        patch.setattr("air.data.HELD_OUT", 8)
        train.main(["--dataset", "sprites", "--batch-size", "8", "--steps", "1", "--out", str(out)])
    return out


def test_python_blocks_run_one_after_the_other(finished_run, monkeypatch):
    """As written, but for a run to load that exists, and for how long the loop trains."""
    stand_ins = {'"runs/NAME"': repr(str(finished_run)), "range(2000)": "range(2)"}
    code = "\n".join(PYTHON)
    for written, stand_in in stand_ins.items():
        assert written in code
        code = code.replace(written, stand_in)
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_blocks():
    assert len(PYTHON) >= 3 and all(len(COMMANDS[page]) >= 5 for page in PAGES[:2]) and len(ALL) >= 20


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
        train.build_parser().parse_args(command[2:])
    elif command[:3] == ["python", "-m", "air.predict"]:
        predict.build_parser().parse_args(command[3:])
    elif command[:3] == ["python", "-m", "pytest"]:
        assert (ROOT / command[3]).exists()
    elif command[0] == "python":
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        script = Path(command[1])
        assert script.parent.name == "benchmarks" and (ROOT / script).exists()
        __import__(script.stem).build_parser().parse_args(command[2:])
    else:
        assert command[0] in ("tensorboard", "pip")
