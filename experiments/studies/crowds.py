#!/usr/bin/env python
"""Count up to twenty digits on large images after training on small ones: SPAIR's protocol.

    python -m experiments.studies.crowds                           # train what is missing under --runs, measure, plot
    python -m experiments.studies.crowds --kinds crops --seeds 0 1 # each kind and seed has a result file of its own
    python -m experiments.studies.crowds --table                   # tabulate and plot existing results

Digits are 14 x 14 pixels, MNIST's margin included, and any two share at most 98 square pixels, half of their area.
Models are trained on images of 48 x 48 pixels and tested on whole images of 84 x 84 with exactly 1, 2, ..., 20 of
MNIST's test digits. The kinds differ in their training images: scenes of 48 x 48 that hold 1 to 5 or 1 to 10 digits,
which the border cuts, or, as for SPAIR, random crops of scenes of 84 x 84 that hold 1 to 5 digits.

Source: Crawford and Pineau (2019), the experiments on scattered MNIST.
"""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

import air
from air.data import DataError, MultiMNIST, data_root
from air.evaluation.evaluate import evaluate
from air.models.base import CountingModel
from air.training.machine import machine
from experiments.records import RESULTS, ROOT
from experiments.studies.trained import RUNS, run_folder, train_if_missing

SIDE, CROP = 84, 48  # pixels, of test and of training images
OBJECT_SIZE = 0.129  # of SIDE: patches of 14 x 14 pixels
MAX_OVERLAP = 98  # square pixels
STEPS = 4000
# The run's own evaluation takes few scenes: it is not what the study reports. What the canvas shows beside digits of
# which few touch does not hold for many.
COMMON = (f"--dataset multi-mnist --guide search --model.no-canvas-glimpse --estimator enumerate --steps {STEPS} "
          f"--data.overlap limited --data.max-overlap {MAX_OVERLAP} --data.size-jitter 0 --data.held-out-scenes 1000")
CUT = f"{COMMON} --data.image-size {CROP} --data.object-size {OBJECT_SIZE * SIDE / CROP:g} --data.placement cut"
KINDS = {"1-5": f"{CUT} --data.counts 1 2 3 4 5",
         "1-10": f"{CUT} --data.counts 1 2 3 4 5 6 7 8 9 10",
         "crops": f"{COMMON} --data.image-size {SIDE} --data.object-size {OBJECT_SIZE} --data.counts 1 2 3 4 5 "
                  f"--crop {CROP}"}
TITLES = {"1-5": "1 to 5 digits, 48 x 48", "1-10": "1 to 10 digits, 48 x 48",
          "crops": "crops of 1 to 5 digits, 84 x 84"}
COUNTS = tuple(range(1, 21))
SCENES, SCENES_SEED = 1000, 1  # test scenes of each count; those of seed 0 are the runs' own held-out scenes
MOST = 40  # the largest count that a model may infer
TABULATED = (1, 5, 9, 15, 20)
FOLDER = RESULTS / "crowds"


def measure(model: CountingModel, digits: MultiMNIST, scenes: int) -> list[dict[str, Any]]:
    """Test a model on scenes of each count.

    Args:
        digits: the scenes' settings, but for their counts.
        scenes: the number of scenes of each count.
    Returns:
        One record for each count n: accuracy, the share of scenes whose MAP count is right; count_error, the mean
        absolute difference between MAP count and n; ap50; wrong, see `evaluate`.
    """
    records = []
    for n in tqdm(COUNTS, desc="digits", disable=not sys.stderr.isatty()):
        metrics = evaluate(model, digits.generate(False, scenes, (n,), SCENES_SEED), most=MOST)
        records.append({"n": n, "accuracy": metrics["count_accuracy_map"], "count_error": metrics["count_error"],
                        "ap50": metrics["box_ap50"], "wrong": metrics["wrong"]})
    return records


def scenes_of(root: str) -> MultiMNIST:
    """The test scenes' settings: digits lie in the image with MNIST's margin.

    Args:
        root: the folder that holds MNIST.
    """
    return MultiMNIST(root=root, image_size=SIDE, object_size=(OBJECT_SIZE,), size_jitter=0, overlap="limited",
                      max_overlap=MAX_OVERLAP)


def by_count(results: Sequence[dict[str, Any]], kind: str, key: str) -> dict[int, list[float]]:
    """Number of digits -> values of the seeds."""
    found: dict[int, list[float]] = {}
    for result in results:
        for record in result["records"] if result["kind"] == kind else ():
            found.setdefault(record["n"], []).append(record[key])
    return found


def kinds_in(results: Sequence[dict[str, Any]]) -> list[str]:
    """The kinds that have results, in the order of KINDS."""
    return [kind for kind in KINDS if any(result["kind"] == kind for result in results)]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown table of the seeds' mean and, in brackets, worst."""
    columns = [*(f"n = {n}, MAP %" for n in TABULATED), f"n = {TABULATED[-1]}, count error"]
    lines = [f"| trained on | runs | {' | '.join(columns)} |", "| --- | --- |" + " --- |" * len(columns)]
    for kind in kinds_in(results):
        accuracy, error = by_count(results, kind, "accuracy"), by_count(results, kind, "count_error")
        right = [[100 * share for share in accuracy.get(n, ())] for n in TABULATED]
        cells = [f"{statistics.mean(values):.1f} ({min(values):.1f})" if values else "-" for values in right]
        last = error.get(TABULATED[-1])
        cells.append(f"{statistics.mean(last):.2f} ({max(last):.2f})" if last else "-")
        runs = sum(result["kind"] == kind for result in results)
        lines.append(f"| {TITLES[kind]} | {runs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot accuracy over the number of digits: a line a kind, a dot a seed."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    for kind in kinds_in(results):
        found = {n: [100 * share for share in values] for n, values in by_count(results, kind, "accuracy").items()}
        line, = axis.plot(list(found), [statistics.mean(values) for values in found.values()], label=TITLES[kind],
                          color=f"C{list(KINDS).index(kind)}")
        for n, values in found.items():
            axis.plot([n] * len(values), values, ".", color=line.get_color(), markersize=4)
    axis.set(xlabel="digits in an image of 84 x 84 pixels", ylabel="test scenes counted right, MAP, %", ylim=(0, 101),
             xticks=COUNTS)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower left", title="trained on")
    figure.savefig(file, dpi=110)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.crowds", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="training images")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(3)))
    parser.add_argument("--scenes", type=int, default=SCENES, help=f"test scenes of each count (default: {SCENES})")
    parser.add_argument("--data.root", dest="data_root", default=data_root(),
                        help="folder that holds MNIST/raw ($AIR_DATA_ROOT, or data)")
    parser.add_argument("--runs", type=Path, default=RUNS.parent / "crowds", help="folder of the trained models")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "crowds.png")
    parser.add_argument("--table", action="store_true", help="only tabulate and plot existing results")
    return parser


def load_records(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The result files of all kinds and seeds; empty if there are none."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*-seed*.json"))]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write one JSON file a kind and seed and the plot, print the table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.scenes < 1:
        parser.error(f"--scenes must be at least 1, got {args.scenes}")
    digits = scenes_of(args.data_root)
    for seed in () if args.table else args.seeds:  # all kinds of a seed before the next seed
        for kind in args.kinds:
            out, arguments = run_folder(kind, seed, args.runs), [*shlex.split(KINDS[kind]), "--seed", str(seed)]
            train_if_missing(out, arguments, ["--data.root", args.data_root])
            try:
                records = measure(air.load(out), digits, args.scenes)
            except DataError as error:
                parser.error(str(error))
            result = {"kind": kind, "seed": seed, "command": f"python train.py {shlex.join(arguments)}",
                      **machine("cpu"), "scenes": args.scenes, "records": records}
            args.results.mkdir(parents=True, exist_ok=True)
            (args.results / f"{kind}-seed{seed}.json").write_text(json.dumps(result, indent=1) + "\n")
            plot(load_records(args.results), args.plot)
    results = load_records(args.results)
    if not results:
        parser.error(f"there are no results in {args.results}")
    plot(results, args.plot)
    print(table(results))


if __name__ == "__main__":
    main()
