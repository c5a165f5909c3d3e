#!/usr/bin/env python
"""How a step's time and memory grow with the batch and with the number of steps N.

    python benchmarks/growth.py --threads 2
    python benchmarks/growth.py --estimator nvil --json growth.json

Time is the median of the trainer's own steps, everything measured in turns. Memory is what a step keeps from the
forward pass for the backward pass, counted tensor by tensor, each storage once, parameters left out: it does not depend
on the device. A line is fitted to each, and its worst miss is given as a share of the value there.
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
from bench_step import ESTIMATORS, TURNS, Bench
from machine import machine
from torch import Tensor
from tqdm import tqdm

BATCHES = (16, 32, 64, 128, 256)
STEPS = tuple(range(1, 9))
BATCH, N = 64, 3  # while the other one varies


def kept_bytes(bench: Bench) -> int:
    """What the backward pass of a step needs of the forward pass, in bytes."""
    known = {p.untyped_storage().data_ptr() for p in bench.trainer.objective.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = bench.trainer.objective(bench.batch)
    del loss  # until here nothing was freed, so that no two storages had one address
    return sum(kept.values())


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The line through the points of least squared error relative to y, and the worst miss, relative as well."""
    slope, start = np.polyfit(x, y, 1, w=1 / np.asarray(y))
    missed = np.abs((start + slope * np.asarray(x)) / np.asarray(y) - 1)
    return {"slope": float(slope), "start": float(start), "worst_miss": float(missed.max())}


def growth(benches: dict[int, Bench], steps: int) -> dict[str, Any]:
    """Time and memory by what varies, and the lines through them."""
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
    """Markdown."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--estimator", default="enumerate", choices=ESTIMATORS, help="(enumerate)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each size (40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if min(args.threads, args.steps) < 1:
        parser.error("--threads and --steps must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no CUDA device")
    torch.set_num_threads(args.threads)

    def bench(batch_size: int, num_steps: int) -> Bench:
        return Bench(args.estimator, batch_size, args.device, compile=args.compile, **{"model.num_steps": num_steps})

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
