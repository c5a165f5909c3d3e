#!/usr/bin/env python
"""Train over several seeds and tabulate every run, the failed ones too.

    python benchmarks/seeds.py strict-enumerate              # the experiment's seeds, as in experiments.py
    python benchmarks/seeds.py strict-enumerate --seeds 3 4
    python benchmarks/seeds.py noise digits-9px --jobs 2     # two runs at a time, each with half of the threads
    python benchmarks/seeds.py --tables                      # RESULTS.md, the README's table, docs/runs.png

Each run's result is a JSON file in benchmarks/results/NAME/ with its command, seed, configuration, final metrics, the
steps and seconds at which it first counted 90, 95 and 98% right, machine and commit; the tables are made from those
files. A run that train.py had to stop is a row without figures.
"""

import argparse
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from experiments import EXPERIMENTS, GROUPS, MAIN, ROBUSTNESS
from machine import machine
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
RESULTS_FILE = Path(__file__).parent / "RESULTS.md"
README = ROOT / "README.md"
PLOT_FILE = ROOT / "docs" / "runs.png"
EVAL_EVERY = 100  # steps: how finely the milestones are told apart
MILESTONES = (90, 95, 98)  # percent of the held-out scenes that an evaluation on the way takes
TICKS, LEAST_WRONG = (100, 30, 10, 3, 1, 0.3, 0.1, 0.03), 0.03  # of the plot, in %
SUCCESS = 0.95  # held-out MAP count accuracy
UNSEEN = "count_accuracy_unseen"  # MAP, of the counts that training does not show, where there are such
COLUMNS = {"count_accuracy_map": ("MAP %", 100, 2), "count_accuracy_sampled": ("sampled %", 100, 2),
           "count_accuracy_refined": ("refined %", 100, 2), UNSEEN: ("unseen counts %", 100, 2),
           "box_iou": ("box IoU", 1, 3), "box_ap50": ("AP50", 1, 3),
           "elbo": ("ELBO", 1, 1), "log_likelihood": ("log p(x given z)", 1, 1), "kl_pres": ("KL pres", 1, 1),
           "kl_where": ("KL where", 1, 1), "kl_what": ("KL what", 1, 1), "iw_bound": ("IW-100", 1, 1),
           **{f"steps_to_{percent}": (f"steps to {percent}%", 1, 0) for percent in MILESTONES},
           **{f"seconds_to_{percent}": (f"s to {percent}%", 1, 0) for percent in MILESTONES},
           "steps": ("steps", 1, 0), "seconds": ("s", 1, 0)}
# Means over the runs.
OVERVIEW = {"sampled %": "count_accuracy_sampled", "refined %": "count_accuracy_refined", "box IoU": "box_iou",
            "AP50": "box_ap50", "ELBO": "elbo", "IW-100": "iw_bound", "steps": "steps", "s": "seconds"}


def run_and_keep(name: str, seed: int, jobs: int) -> None:
    """One run of an experiment, into its file as soon as it is done."""
    folder = RESULTS / name
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
        done = subprocess.run([sys.executable, str(ROOT / "train.py"), *command[1:], "--out", str(out)],
                              env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
        if done.returncode not in (0, 1):
            sys.exit(done.returncode)  # a wrong argument, or Ctrl-C: no run
        config = json.loads((out / "config.json").read_text())
        metrics = None
        if done.returncode == 0:
            lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
            metrics = json.loads((out / "metrics.json").read_text()) | milestones(lines)
            if "unseen" in metrics:
                metrics[UNSEEN] = metrics["unseen"]["count_accuracy_map"]
    for place in ("data_root", "dataset_reason"):  # of this machine, and no part of the result
        del config[place]
    return {"command": f"python {shlex.join(command)}", "seed": seed, **machine(config["device"]), "config": config,
            "metrics": metrics}


def milestones(evaluations: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The steps and seconds of training at the first evaluation that counts so many percent right; none where none."""
    reached: dict[str, float] = {}
    for evaluation in evaluations:
        for percent in MILESTONES:
            if 100 * evaluation["held_out"]["count_accuracy_map"] >= percent:
                reached.setdefault(f"steps_to_{percent}", evaluation["step"])
                reached.setdefault(f"seconds_to_{percent}", evaluation["seconds"])
    return reached


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a run, then mean, sd and worst, and how many succeeded."""
    finished = [result["metrics"] for result in results if result["metrics"]]
    unseen = any(UNSEEN in metrics for metrics in finished)
    columns = {key: column for key, column in COLUMNS.items() if unseen or key != UNSEEN}
    lines = ["| seed | " + " | ".join(name for name, _, _ in columns.values()) + " |",
             "| --- |" + " --- |" * len(columns)]

    def row(name: str, values: dict[str, float]) -> str:
        cells = [f"{scale * values[key]:.{digits}f}" if key in values else "-"
                 for key, (_, scale, digits) in columns.items()]
        return f"| {name} | " + " | ".join(cells) + " |"

    lines += [row(str(result["seed"]), result["metrics"] or {}) for result in results]
    if finished:
        by_column = {key: [metrics[key] for metrics in finished] for key in COLUMNS
                     if all(key in metrics for metrics in finished)}
        lines.append(row("mean", {key: statistics.mean(values) for key, values in by_column.items()}))
        if len(finished) > 1:
            lines.append(row("sd", {key: statistics.stdev(values) for key, values in by_column.items()}))
        lines.append(row("worst", {key: (max if "_to_" in key else min)(values) for key, values in by_column.items()
                                   if key.startswith(("count", "box", "elbo", "iw")) or "_to_" in key}))
    lines += ["", *confusion_lines(finished)]
    lines += [f"* {succeeded(results)} of {len(results)} runs count at least {100 * SUCCESS:.0f}% of held-out scenes "
              "right."]
    by = " and ".join(sorted({f"{result['device']}, threads a run: {result['threads']}, runs at a time: "
                              f"{result['jobs']}, torch {result['torch']}" for result in results}))
    commits = ", ".join(sorted({result["commit"] for result in results}))
    lines.append(f"* {by}, commit {commits}.")
    return "\n".join(lines)


def succeeded(results: Sequence[dict[str, Any]]) -> int:
    """How many runs count at least SUCCESS of the held-out scenes right."""
    return sum((result["metrics"] or {}).get("count_accuracy_map", 0) >= SUCCESS for result in results)


def confusion_lines(finished: Sequence[dict[str, Any]]) -> list[str]:
    """All runs' confusion matrices, added up, a line for each true count that occurs."""
    lines = []
    for truth, rows in enumerate(zip(*(metrics["confusion"] for metrics in finished))):
        counted = [sum(column) for column in zip(*rows)]
        if any(counted):
            seen = ", ".join(f"{n}: {times}" for n, times in enumerate(counted))
            lines.append(f"* Scenes with {truth} objects, by MAP count, all runs: {seen}.")
    return lines


def overview(results_by_name: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Markdown: a row an experiment."""
    unseen = any(UNSEEN in (result["metrics"] or {}) for results in results_by_name.values() for result in results)
    between = " unseen counts %, mean | worst |" * unseen
    lines = [f"| experiment | success | MAP %, mean | worst |{between} steps to 98%, median | s to 98%, median | "
             f"{' | '.join(OVERVIEW)} |",
             "| --- |" + " --- |" * (5 + 2 * unseen + len(OVERVIEW))]
    for name, results in results_by_name.items():
        finished = [result["metrics"] for result in results if result["metrics"]]
        accuracies = [100 * metrics["count_accuracy_map"] for metrics in finished] or [0.0]
        cells = [f"{succeeded(results)}/{len(results)}", f"{statistics.mean(accuracies):.2f}", f"{min(accuracies):.2f}"]
        if unseen:
            there = [100 * metrics[UNSEEN] for metrics in finished if UNSEEN in metrics] or [math.nan]
            cells += [f"{statistics.mean(there):.2f}", f"{min(there):.2f}"]
        for key in ("steps_to_98", "seconds_to_98"):
            # A run that never got there counts as slower than any other.
            median = statistics.median([(result["metrics"] or {}).get(key, math.inf) for result in results])
            cells.append(f"{median:.0f}" if median < math.inf else "-")
        for key in OVERVIEW.values():
            _, scale, digits = COLUMNS[key]
            mean = statistics.mean([metrics[key] for metrics in finished] or [math.nan])
            cells.append(f"{scale * mean:.{digits}f}")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results_by_name: Mapping[str, Sequence[dict[str, Any]]], file: Path) -> None:
    """Every run's errors, a dot each, an experiment a row; a run that train.py had to stop is a cross at the left."""
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(results_by_name)), layout="constrained")
    axis = figure.subplots()
    for place, results in enumerate(results_by_name.values()):
        wrong = [100 - 100 * result["metrics"]["count_accuracy_map"] for result in results if result["metrics"]]
        axis.scatter([max(LEAST_WRONG, each) for each in wrong], [place] * len(wrong), s=24, alpha=0.6, linewidths=0)
        stopped = len(results) - len(wrong)
        axis.scatter([100] * stopped, [place] * stopped, marker="x", color="black")
    names = [f"{name} ({len(results)})" for name, results in results_by_name.items()]
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="held-out scenes counted wrong, MAP, %", xscale="log", xlim=(110, LEAST_WRONG))
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110)


def load_results(name: str) -> list[dict[str, Any]]:
    """The results of an experiment, by seed."""
    results = [json.loads(file.read_text()) for file in (RESULTS / name).glob("seed*.json")]
    return sorted(results, key=lambda result: result["seed"])


def brief(results: Sequence[dict[str, Any]]) -> str:
    """MAP accuracy in words, for a sentence; a run that train.py had to stop counts as 0."""
    accuracies = [100 * (result["metrics"] or {}).get("count_accuracy_map", 0) for result in results]
    return f"{statistics.mean(accuracies):.2f}% (worst {min(accuracies):.2f}%)"


def write_tables() -> str:
    """RESULTS.md: overviews and every run; the README's overview of the first two groups, and their plot."""
    results_by_name = {name: results for name in EXPERIMENTS if (results := load_results(name))}
    parts = ["# Results\n\nWritten by `python benchmarks/seeds.py --tables` from the files in `benchmarks/results/`. "
             "The columns are explained in the README."]
    for title, group in GROUPS.items():
        here = {name: results_by_name[name] for name in group if name in results_by_name}
        if here:
            parts.append(f"\n## {title}\n\n{overview(here)}")
    for name, results in results_by_name.items():
        parts.append(f"\n### {name}\n\n`python benchmarks/seeds.py {name}`: `python train.py "
                     f"{EXPERIMENTS[name].arguments}`\n\n{table(results)}")
    text = "\n".join(parts) + "\n"
    RESULTS_FILE.write_text(text)
    plotted = {name: results_by_name[name] for name in (*MAIN, *ROBUSTNESS) if name in results_by_name}
    if plotted:
        readme = README.read_text()
        README.write_text(re.sub(r"\| experiment \|.*?(?=\n\n)", overview(plotted), readme, count=1, flags=re.S))
        plot(plotted, PLOT_FILE)
    return text


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"experiments: {', '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", help="(the experiment's)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the threads (1)")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables and the plot")
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
        print(write_tables())
    torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))
    runs = [(name, seed, args.jobs) for name in args.names
            for seed in (args.seeds if args.seeds is not None else range(EXPERIMENTS[name].seeds))]
    with ThreadPoolExecutor(args.jobs) as pool:  # across experiments, so that no thread waits for an odd seed
        list(pool.map(lambda run: run_and_keep(*run), runs))
    for name in args.names:
        print(table(load_results(name)))


if __name__ == "__main__":
    main()
