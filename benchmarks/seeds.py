#!/usr/bin/env python
"""Train over several seeds and tabulate every run, the failed ones too.

    python benchmarks/seeds.py --name enumerate --seeds 0 1 2 -- --dataset multi-mnist --estimator enumerate
    python benchmarks/seeds.py --name enumerate --table

What follows `--` goes to train.py. Each run's result is a JSON file in benchmarks/results/NAME/ with its command, seed,
configuration, final metrics, machine and commit; the table is made from those files. A run that train.py had to stop is
a row without figures.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SUCCESS = 0.95  # held-out MAP count accuracy
COLUMNS = {"count_accuracy_map": ("MAP %", 100, 2), "count_accuracy_sampled": ("sampled %", 100, 2),
           "box_iou": ("box IoU", 1, 3), "box_ap50": ("AP50", 1, 3), "elbo": ("ELBO", 1, 1),
           "log_likelihood": ("log p(x given z)", 1, 1), "kl_pres": ("KL pres", 1, 1), "kl_where": ("KL where", 1, 1),
           "kl_what": ("KL what", 1, 1), "iw_bound": ("IW bound", 1, 1), "steps": ("steps", 1, 0),
           "seconds": ("s", 1, 0)}


def run(seed: int, arguments: Sequence[str]) -> dict[str, Any]:
    """One run of train.py in a process of its own; `metrics` is None where it had to stop."""
    command = ["train.py", *arguments, "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        done = subprocess.run([sys.executable, str(ROOT / "train.py"), *command[1:], "--out", str(out)])
        if done.returncode not in (0, 1):
            sys.exit(done.returncode)  # a wrong argument, or Ctrl-C: no run
        config = json.loads((out / "config.json").read_text())
        metrics = json.loads((out / "metrics.json").read_text()) if done.returncode == 0 else None
    for place in ("data_root", "dataset_reason"):  # of this machine, and no part of the result
        del config[place]
    return {"command": f"python {shlex.join(command)}", "seed": seed, **machine(config["device"]), "config": config,
            "metrics": metrics}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a run, then mean, sd and worst, and how many succeeded."""
    lines = ["| seed | " + " | ".join(name for name, _, _ in COLUMNS.values()) + " |",
             "| --- |" + " --- |" * len(COLUMNS)]

    def row(name: str, values: dict[str, float]) -> str:
        cells = [f"{scale * values[key]:.{digits}f}" if key in values else "-"
                 for key, (_, scale, digits) in COLUMNS.items()]
        return f"| {name} | " + " | ".join(cells) + " |"

    lines += [row(str(result["seed"]), result["metrics"] or {}) for result in results]
    finished = [result["metrics"] for result in results if result["metrics"]]
    if finished:
        by_column = {key: [metrics[key] for metrics in finished] for key in COLUMNS}
        lines.append(row("mean", {key: statistics.mean(values) for key, values in by_column.items()}))
        if len(finished) > 1:
            lines.append(row("sd", {key: statistics.stdev(values) for key, values in by_column.items()}))
        lines.append(row("worst", {key: min(values) for key, values in by_column.items()
                                   if key.startswith(("count", "box", "elbo", "iw"))}))
    lines += ["", *confusion_lines(finished)]
    succeeded = sum(metrics["count_accuracy_map"] >= SUCCESS for metrics in finished)
    lines += [f"* {succeeded} of {len(results)} runs count at least {100 * SUCCESS:.0f}% of held-out scenes right."]
    first, commits = results[0], ", ".join(sorted({result["commit"] for result in results}))
    lines.append(f"* {first['device']}, {first['threads']} threads, torch {first['torch']}, commit {commits}.")
    return "\n".join(lines)


def confusion_lines(finished: Sequence[dict[str, Any]]) -> list[str]:
    """All runs' confusion matrices, added up, a line for each true count that occurs."""
    lines = []
    for truth, rows in enumerate(zip(*(metrics["confusion"] for metrics in finished))):
        counted = [sum(column) for column in zip(*rows)]
        if any(counted):
            seen = ", ".join(f"{n}: {times}" for n, times in enumerate(counted))
            lines.append(f"* Scenes with {truth} objects, by MAP count, all runs: {seen}.")
    return lines


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the folder under benchmarks/results/")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="(0 to 9)")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of what is there")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENTS", help="train.py's")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the seeds asked for, and print the table of all results under this name."""
    parser = build_parser()
    args = parser.parse_args(argv)
    folder = RESULTS / args.name
    if not args.table:
        folder.mkdir(parents=True, exist_ok=True)
        for seed in args.seeds:
            result = run(seed, args.arguments)
            (folder / f"seed{seed}.json").write_text(json.dumps(result, indent=2) + "\n")
    results = sorted((json.loads(file.read_text()) for file in folder.glob("seed*.json")), key=lambda r: r["seed"])
    if not results:
        parser.error(f"there are no results in {folder}")
    print(table(results))


if __name__ == "__main__":
    main()
