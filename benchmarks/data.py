#!/usr/bin/env python
"""Time the generation of data sets and their loading from the cache.

    python -m benchmarks.data multi-mnist sprites --data.root data

Each data set is generated into an empty temporary cache; the loading time is the median of five.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch

from air.data import DataError, MultiMNIST, Sprites, data_root
from air.training.machine import machine

SCENES = 60_000
LOADS = 5


def seconds(name: str, root: str, scenes: int) -> dict[str, float]:
    """Seconds to generate a number of training scenes and to load them from the cache."""
    settings = MultiMNIST(root=root) if name == "multi-mnist" else Sprites()
    times = []
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        for _ in range(1 + LOADS):
            start = time.perf_counter()
            settings.generate(True, scenes, settings.counts)
            times.append(time.perf_counter() - start)
    return {"generate_s": times[0], "load_s": statistics.median(times[1:])}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="multi-mnist, sprites (default: both)")
    parser.add_argument("--data.root", dest="data_root", default=data_root(),
                        help="folder that holds MNIST/raw ($AIR_DATA_ROOT, or data)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scenes", type=int, default=SCENES, help=f"default: {SCENES}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the JSON file."""
    parser = build_parser()
    args = parser.parse_args(argv)
    names = args.names or ["multi-mnist", "sprites"]
    if unknown := set(names) - {"multi-mnist", "sprites"}:
        parser.error(f"no data set named {', '.join(sorted(unknown))}; choose from multi-mnist, sprites")
    if min(args.scenes, args.threads) < 1:
        parser.error("--scenes and --threads must be at least 1")
    torch.set_num_threads(args.threads)
    try:
        rows = {name: seconds(name, args.data_root, args.scenes) for name in names}
    except DataError as error:
        parser.error(str(error))
    print(f"| {args.scenes} scenes | generate, s | load, s |\n| --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {row['generate_s']:.2f} | {row['load_s']:.3f} |")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**machine("cpu"), "scenes": args.scenes, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
