#!/usr/bin/env python
"""Train over several seeds and tabulate every run, the failed ones too.

    python benchmarks/seeds.py strict-enumerate              # the experiment's seeds, as in experiments.py
    python benchmarks/seeds.py strict-enumerate --seeds 3 4
    python benchmarks/seeds.py noise digits-9px --jobs 2     # two runs at a time, each with half of the threads
    python benchmarks/seeds.py --tables                      # RESULTS.md, the tables and plots of README and docs/

Each run's result is a JSON file in benchmarks/results/NAME/ with its command, seed, configuration, final metrics, the
steps and seconds at which it first counted 90, 95 and 98% right, machine and commit; the tables are made from those
files. A run that train.py had to stop is a row without figures.
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

import tables
import torch
from experiments import EXPERIMENTS
from machine import machine

EVAL_EVERY = 100  # steps: how finely the milestones are told apart


def run_and_keep(name: str, seed: int, jobs: int) -> None:
    """One run of an experiment, into its file as soon as it is done."""
    folder = tables.RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    result = run(seed, shlex.split(EXPERIMENTS[name].arguments)) | {"jobs": jobs}
    (folder / f"seed{seed}.json").write_text(json.dumps(result, indent=2) + "\n")


def run(seed: int, arguments: Sequence[str]) -> dict[str, Any]:
    """One run of train.py in a process of its own, with as many threads as torch has here; `metrics` is None where it
    had to stop.
    """
    command = ["train.py", *arguments, "--seed", str(seed), "--eval-every", str(EVAL_EVERY)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        done = subprocess.run([sys.executable, str(tables.ROOT / "train.py"), *command[1:], "--out", str(out)],
                              env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
        if done.returncode not in (0, 1):
            sys.exit(done.returncode)  # a wrong argument, or Ctrl-C: no run
        config = json.loads((out / "config.json").read_text())
        metrics = None
        if done.returncode == 0:
            lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
            metrics = json.loads((out / "metrics.json").read_text()) | milestones(lines)
    for place in ("data_root", "dataset_reason"):  # of this machine, and no part of the result
        del config[place]
    return {"command": f"python {shlex.join(command)}", "seed": seed, **machine(config["device"]), "config": config,
            "metrics": metrics}


def milestones(evaluations: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The steps and seconds of training at the first evaluation that counts so many percent right; none where none."""
    reached: dict[str, float] = {}
    for evaluation in evaluations:
        for percent in tables.MILESTONES:
            if 100 * evaluation["held_out"].get(tables.SEEN, 0) >= percent:
                reached.setdefault(f"steps_to_{percent}", evaluation["step"])
                reached.setdefault(f"seconds_to_{percent}", evaluation["seconds"])
    return reached


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"experiments: {', '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", help="(the experiment's)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the threads (1)")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables and the plots")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiments asked for, and print the table of each."""
    parser = build_parser()
    args = parser.parse_args(argv)
    unknown = sorted(set(args.names) - set(EXPERIMENTS))
    if unknown or bool(args.names) == args.tables:
        parser.error(f"there is no experiment named {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}" if unknown
                     else "name experiments to run, or ask for --tables")
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    if args.tables:
        print(tables.write_tables())
    torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))
    runs = [(name, seed, args.jobs) for name in args.names
            for seed in (args.seeds if args.seeds is not None else range(EXPERIMENTS[name].seeds))]
    with ThreadPoolExecutor(args.jobs) as pool:  # across experiments, so that no thread waits for an odd seed
        list(pool.map(lambda run: run_and_keep(*run), runs))
    for name in args.names:
        print(tables.table(tables.load_results(name)))


if __name__ == "__main__":
    main()
