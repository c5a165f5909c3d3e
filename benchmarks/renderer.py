#!/usr/bin/env python
"""Time the renderer: forward, and forward plus backward to every pose, eager and compiled.

    python -m benchmarks.renderer
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from air.data.table import SIZE
from air.scenes3d.renderer import SHAPES, View, render
from air.scenes3d.view import REACH
from air.training.machine import machine

SECONDS = 5.0  # of repetitions of each


def scenes(number: int, objects: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random shapes (B, N), random poses (B, N, 4) that require gradients, and z_pres (B, N), all 1."""
    pose = torch.empty(number, objects, 4).uniform_(-REACH, REACH)
    pose[..., 3] = SIZE
    return torch.randint(len(SHAPES), (number, objects)), pose.requires_grad_(), torch.ones(number, objects)


def milliseconds(number: int, objects: int, view: View) -> dict[str, float]:
    """The median time of each way to run the renderer."""
    shape, pose, present = scenes(number, objects)

    def forward() -> Tensor:
        return render(shape, pose, present, view)

    compiled = torch.compile(forward)
    ways = {"forward": forward, "forward and backward": lambda: forward().sum().backward(),
            "forward, compiled": compiled, "forward and backward, compiled": lambda: compiled().sum().backward()}
    times = {}
    for name, way in ways.items():
        way()
        times[name] = 1e3 * Timer("way()", globals={"way": way}, num_threads=torch.get_num_threads()).blocked_autorange(
            min_run_time=SECONDS).median
    return times


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.renderer", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the JSON file."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if min(args.scenes, args.objects, args.image_size, args.threads) < 1:
        parser.error("--scenes, --objects, --image-size and --threads must be at least 1")
    torch.set_num_threads(args.threads)
    rows = milliseconds(args.scenes, args.objects, View(image_size=args.image_size))
    print(f"| {args.scenes} scenes of {args.objects} objects, {args.image_size} x {args.image_size} | ms |\n"
          "| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value:.1f} |")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**machine("cpu"), "scenes": args.scenes, "objects": args.objects,
                                         "image_size": args.image_size, "ms": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
