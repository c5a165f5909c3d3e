#!/usr/bin/env python
"""Time a data set's being generated, and its being loaded from the cache.

    python benchmarks/bench_data.py multi-mnist sprites --data-root data

Each is generated into a cache of its own, which is thrown away; loading is the median of five.
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
from machine import machine

from air.data import DataError, multi_mnist, sprites

SCENES = 60_000
LOADS = 5


def seconds(name: str, data_root: str, scenes: int) -> dict[str, float]:
    """What it takes to generate that many training scenes, and to load them."""
    times = []
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        for _ in range(1 + LOADS):
            start = time.perf_counter()
            multi_mnist(data_root, True, scenes) if name == "multi-mnist" else sprites(True, scenes)
            times.append(time.perf_counter() - start)
    return {"generate_s": times[0], "load_s": statistics.median(times[1:])}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="multi-mnist, sprites (both)")
    parser.add_argument("--data-root", default=os.environ.get("AIR_DATA_ROOT", "data"), help="where MNIST lies")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scenes", type=int, default=SCENES, help=f"({SCENES})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the JSON."""
    parser = build_parser()
    args = parser.parse_args(argv)
    names = args.names or ["multi-mnist", "sprites"]
    if unknown := set(names) - {"multi-mnist", "sprites"}:
        parser.error(f"there is no data set named {', '.join(sorted(unknown))} here: multi-mnist, sprites")
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
