#!/usr/bin/env python
"""How the time and memory of a training step grow with the batch size and with the number of steps N.

    python -m benchmarks.growth --threads 2
    python -m benchmarks.growth --estimator nvil --json growth.json

Time is the median over training steps, with all sizes measured in turns. Memory is what the forward pass keeps for the
backward pass, summed over tensor storages, without parameters: it does not depend on the device. A line is fitted to
each; its largest residual is given as a share of the measurement.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from air.training.machine import machine
from benchmarks.bench_step import ESTIMATORS, TURNS, Bench

BATCHES = (16, 32, 64, 128, 256)
STEPS = tuple(range(1, 9))
BATCH, N = 64, 3  # the fixed size while the other varies


def kept_bytes(bench: Bench) -> int:
    """Bytes that the forward pass keeps for the backward pass of a step."""
    known = {p.untyped_storage().data_ptr() for p in bench.trainer.objective.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = bench.trainer.objective(bench.batch)
    del loss  # only now: while the graph lives, no address is reused by another storage
    return sum(kept.values())


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Fit a line by least squares of the relative errors: its slope, start (at 0) and largest relative residual."""
    slope, start = np.polyfit(x, y, 1, w=1 / np.asarray(y))
    residuals = np.abs((start + slope * np.asarray(x)) / np.asarray(y) - 1)
    return {"slope": float(slope), "start": float(start), "worst_miss": float(residuals.max())}


def growth(benches: dict[int, Bench], steps: int) -> dict[str, Any]:
    """Time and memory of benches by their size, and the line fitted to each."""
    for bench in benches.values():
        bench.warm_up(5)
    for _ in tqdm(range(TURNS), desc="turns", disable=not sys.stderr.isatty()):
        for bench in benches.values():
            bench.time_steps(max(1, steps // TURNS))
    sizes = list(benches)
    times = [statistics.median(bench.times["step"]) for bench in benches.values()]
    kept = [kept_bytes(bench) / 2**20 for bench in benches.values()]
    return {"sizes": sizes, "step_ms": times, "kept_mib": kept, "time": line(sizes, times),
            "memory": line(sizes, kept)}


def table(title: str, found: dict[str, Any], per_image: bool) -> str:
    """Markdown table of a result of `growth`, with the fitted lines below.

    Args:
        title: what varies.
        per_image: add a column of the time divided by the size.
    """
    lines = [f"| {title} | step, ms | {'ms an image | ' if per_image else ''}kept, MiB |",
             "| --- |" + " --- |" * (3 if per_image else 2)]
    for size, time, kept in zip(found["sizes"], found["step_ms"], found["kept_mib"]):
        lines.append(f"| {size} | {time:.1f} | {f'{time / size:.3f} | ' if per_image else ''}{kept:.1f} |")
    for name, unit, key in (("Time", "ms", "time"), ("Memory", "MiB", "memory")):
        fit = found[key]
        lines.append(f"\n{name}: {fit['start']:.3g} + {fit['slope']:.3g} {unit} each, within "
                     f"{100 * fit['worst_miss']:.0f}%.")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--estimator", default="enumerate", choices=ESTIMATORS, help="default: enumerate")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each size (default: 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the JSON file."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if min(args.threads, args.steps) < 1:
        parser.error("--threads and --steps must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no CUDA device")
    torch.set_num_threads(args.threads)

    def bench(batch_size: int, num_steps: int) -> Bench:
        return Bench(args.estimator, {"optim.batch_size": batch_size, "model.num_steps": num_steps,
                                      "run.device": args.device, "run.compile": args.compile})

    report = {**machine(args.device), "estimator": args.estimator, "compile": args.compile,
              "batch": growth({size: bench(size, N) for size in BATCHES}, args.steps),
              "num_steps": growth({size: bench(BATCH, size) for size in STEPS}, args.steps)}
    print(table("batch", report["batch"], True))
    print("\n" + table("N", report["num_steps"], False))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
