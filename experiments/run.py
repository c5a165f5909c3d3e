#!/usr/bin/env python
"""Train the experiments of the catalogue over several seeds and record every run, including failures.

    python -m experiments.run strict-enumerate               # all seeds of the experiment
    python -m experiments.run strict-enumerate --seeds 3 4
    python -m experiments.run noise digits-9px --jobs 2      # two runs at a time, each with half of the threads

Each run becomes a file experiments/results/NAME/seedS.json: its command, seed, configuration, final metrics, the steps
and seconds at which an evaluation first counted 90, 95 and 98% right, machine and commit. `python -m
experiments.report` makes the tables of these files. A run that train.py aborted is recorded without metrics.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from air.training.machine import machine
from experiments import records
from experiments.catalogue import EXPERIMENTS
from experiments.tables import runs_table

EVAL_EVERY = 100  # steps: the resolution of the milestones, unless an experiment says another
PLACES = ("root", "file")  # settings of the data that describe this machine


def run_and_record(name: str, seed: int, jobs: int) -> None:
    """Run one seed of an experiment and write its result file."""
    folder = records.RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    result = run(seed, shlex.split(EXPERIMENTS[name].arguments)) | {"jobs": jobs}
    (folder / f"seed{seed}.json").write_text(json.dumps(result, indent=2) + "\n")


def run(seed: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Run train.py in a process of its own, with as many threads as torch has here.

    Args:
        arguments: of train.py, without the seed.
    Returns:
        the content of a result file; `metrics` is None if train.py aborted the run (exit code 1). Any other exit code,
        from a wrong argument or Ctrl-C, ends this program with the same code.
    """
    command = ["train.py", *arguments, "--seed", str(seed)]
    if "--run.eval-every" not in arguments:
        command += ["--run.eval-every", str(EVAL_EVERY)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        done = subprocess.run([sys.executable, str(records.ROOT / "train.py"), *command[1:], "--out", str(out)],
                              env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
        if done.returncode not in (0, 1):
            sys.exit(done.returncode)
        config = json.loads((out / "config.json").read_text())
        metrics = None
        if done.returncode == 0:
            evaluations = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
            metrics = json.loads((out / "metrics.json").read_text()) | milestones(evaluations)
    for place in PLACES:
        config["data"].pop(place, None)
    return {"command": f"python {shlex.join(command)}", "seed": seed, **machine(config["run"]["device"]),
            "config": config, "metrics": metrics}


def milestones(evaluations: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The first evaluation at which a run counts 90, 95 and 98% of the held-out scenes right.

    Args:
        evaluations: the lines of metrics.jsonl.
    Returns:
        steps_to_P and seconds_to_P (of training) for each percentage P that was reached.
    """
    reached: dict[str, float] = {}
    for evaluation in evaluations:
        for percent in records.MILESTONES:
            if 100 * evaluation["held_out"].get(records.MAP, 0) >= percent:
                reached.setdefault(f"steps_to_{percent}", evaluation["step"])
                reached.setdefault(f"seconds_to_{percent}", evaluation["seconds"])
    return reached


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"experiments: {', '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0, 1, ... as many as the experiment has")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the threads (default: 1)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the named experiments and print the table of each."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.names) - set(EXPERIMENTS)):
        parser.error(f"no experiment is named {', '.join(unknown)}; choose from {', '.join(EXPERIMENTS)}")
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))
    runs = [(name, seed, args.jobs) for name in args.names
            for seed in (args.seeds if args.seeds is not None else range(EXPERIMENTS[name].seeds))]
    with ThreadPoolExecutor(args.jobs) as pool:  # one pool for all, so that no thread idles between experiments
        list(pool.map(lambda run: run_and_record(*run), runs))
    for name in args.names:
        print(runs_table(records.load_results(name)))


if __name__ == "__main__":
    main()
