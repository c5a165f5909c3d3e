"""Signals at any moment of train.py and air.predict, and what is left afterwards."""

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np

from air.checkpoints import load_checkpoint
from air.files import CheckpointError
from tests.fuzzing.base import NETWORKS, SMALL, Base, Verdict, first_lines, resume_copy
from tests.fuzzing.sandbox import TEMPORARY, Outcome, Sandbox, faults

STEPS = 40
EARLIEST = 0.2, 0.7  # seconds after which a fork, and a new process, has begun to run the program
LAST = 2.5, 7.0  # seconds by which they have usually ended
INTERRUPTED = 130
COPIES = 40  # of an image for air.predict


def trial(rng: np.random.Generator, folder: Path, base: Base, sandbox: Sandbox) -> Verdict:
    """One or two signals at a random moment, then the run that goes on."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
    number = numbers[int(rng.choice(4, p=[0.35, 0.25, 0.2, 0.2]))]
    fresh = bool(rng.random() < 0.1)
    moment = float(rng.uniform(EARLIEST[fresh], LAST[fresh]))
    sent = [(moment, int(number))]
    if rng.random() < 0.4:
        sent.append((moment + float(rng.choice([0.0, 0.01, 0.1, 0.4])), int(numbers[int(rng.integers(3))])))
    kind = str(rng.choice(["train", "train", "resume", "predict"]))
    run = {"train": _train, "resume": _resume, "predict": _predict}[kind]
    found, outcome = run(folder, base, sandbox, sent, fresh)
    what = f"{kind}{' in a new process' if fresh else ''}: " + ", ".join(
        f"{signal.Signals(each).name} after {at:.2f} s" for at, each in sent)
    return Verdict(found, what, first_lines(outcome.err, outcome.out))


def _interrupted(outcome: Outcome, program: str, sent: list[tuple[float, int]]) -> list[str]:
    killed = any(number == signal.SIGKILL for _, number in sent)
    found = faults(outcome, program, codes=(0, INTERRUPTED, *((-signal.SIGKILL,) if killed else ())))
    if killed:  # the next run clears them
        found = [fault for fault in found if fault != "temporary files left behind"]
    if outcome.code == INTERRUPTED and len(outcome.complaints) > len(sent):
        found.append("more than a sentence about each signal")
    if outcome.code == INTERRUPTED and not (outcome.err + outcome.out).strip():
        found.append("interrupted without a word")
    return found


def _train(folder: Path, base: Base, sandbox: Sandbox, sent: list[tuple[float, int]], fresh: bool
           ) -> tuple[list[str], Outcome]:
    argv = ["--dataset", "folder", "--data.root", str(base.images), "--data.image-size", "24", "--steps", str(STEPS),
            "--run.eval-every", "8", "--run.checkpoint-every", "4", *SMALL, *NETWORKS, "--out", "run"]
    outcome = sandbox.run("train", argv, folder, signals=sent, fresh=fresh)
    found = _interrupted(outcome, "train", sent)
    saved = (folder / "run" / "checkpoint.pt").exists()
    if " saved" in outcome.out and not saved:
        found.append("said to be saved, but is not")
    found += _left(folder / "run")
    again = sandbox.run("train", ["--resume", "run"] if saved else argv, folder)
    return found + _finished(again, folder), outcome


def _resume(folder: Path, base: Base, sandbox: Sandbox, sent: list[tuple[float, int]], fresh: bool
            ) -> tuple[list[str], Outcome]:
    resume_copy(base, folder)
    steps = json.loads((base.run / "metrics.json").read_text())["steps"] + STEPS
    argv = ["--resume", "run", "--steps", str(steps)]
    outcome = sandbox.run("train", argv, folder, signals=sent, fresh=fresh)
    found = _interrupted(outcome, "train", sent) + _left(folder / "run")
    again = sandbox.run("train", argv, folder)
    return found + _finished(again, folder), outcome


def _left(run: Path) -> list[str]:
    """What a run that was stopped may not leave."""
    found = []
    if (run / "checkpoint.pt").exists():
        try:
            load_checkpoint(run)
        except CheckpointError as error:
            found.append(f"a checkpoint that cannot be loaded: {str(error)[-80:]}")
    for name in ("config.json", "metrics.json"):
        if (run / name).exists():
            try:
                json.loads((run / name).read_text())
            except ValueError:
                found.append(f"{name} is cut off")
    return found


def _finished(again: Outcome, folder: Path) -> list[str]:
    """The run that goes on ends well, and clears what the one before has left."""
    found = [f"the run that goes on: {fault}" for fault in faults(again, "train", codes=(0,))]
    if found:
        return [f"{found[0]}: {ascii(again.complaints[:1])[:120]}"]
    found += _left(folder / "run")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    try:
        steps = [json.loads(line)["step"] for line in lines]
    except ValueError:
        return [*found, "metrics.jsonl holds a line that is cut off"]
    if steps != sorted(set(steps)):
        found.append("metrics.jsonl holds a step twice, or in disorder")
    if any(TEMPORARY.match(path.name) for path in folder.rglob("*")):
        found.append("temporary files are left after the next run")
    return found


def _predict(folder: Path, base: Base, sandbox: Sandbox, sent: list[tuple[float, int]], fresh: bool
             ) -> tuple[list[str], Outcome]:
    (folder / "images").mkdir()
    for i in range(COPIES):
        shutil.copy(base.known[-1], folder / "images" / f"{i:03}.png")
    argv = [str(base.run), "images", "--json", "found.json", "--csv", "found.csv", "--overlay", "drawn", "--refine",
            "--batch-size", "2"]
    outcome = sandbox.run("predict", argv, folder, signals=sent, fresh=fresh)
    found = _interrupted(outcome, "predict", sent)
    if (folder / "found.json").exists():
        try:
            json.loads((folder / "found.json").read_text())
        except ValueError:
            found.append("found.json is cut off")
    if (folder / "found.csv").exists():
        text = (folder / "found.csv").read_text()
        if not text.endswith("\n") or len({len(row) for row in csv.reader(text.splitlines())}) != 1:
            found.append("found.csv is cut off")
    again = sandbox.run("predict", argv, folder)
    found += [f"the command given again: {fault}" for fault in faults(again, "predict", codes=(0,))]
    if not found and len(json.loads((folder / "found.json").read_text())) != COPIES:
        found.append("the command given again does not count all images")
    return found, outcome
