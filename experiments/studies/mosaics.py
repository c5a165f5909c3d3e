#!/usr/bin/env python
"""Count the digits of large pictures with a model that was trained on crops of others, without labels.

    python -m experiments.studies.mosaics             # train what is missing under --runs, measure
    python -m experiments.studies.mosaics --seeds 0   # this seed only; each has a result file of its own
    python -m experiments.studies.mosaics --table     # tabulate existing results

Four mosaics of 1,024 x 1,024 pixels, each of 500 of MNIST's training digits with 12 to 24 pixels, are written to an
.npz file without counts or boxes. A model is trained on random crops of 64 x 64 and told nothing but the digits' sizes.
`air.infer_tiles` then reads mosaics of 460 to 540 test digits. Their counts differ, so that no fixed answer is right.
"""

import argparse
import json
import shlex
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import air
from air.data import DataError, Scenes, data_root
from air.data.mosaic import mosaic
from air.evaluation.whole import ap50
from air.files import atomic_write
from air.training.machine import machine
from experiments.records import RESULTS
from experiments.studies.trained import RUNS, train_if_missing

SIDE, CROP = 1024, 64  # pixels, of a mosaic and of a crop
SIDES = 12, 24  # pixels, the longer side of a digit's ink
TRAINING = (500,) * 4  # digits of the training mosaics, whose seeds are 0, 1, ...; the same of
TEST = (460, 480, 500, 520, 540)  # the test mosaics
STEPS = 2000
ARGUMENTS = (f"--dataset npz --crop {CROP} --object-size {SIDES[0] / CROP:g} {SIDES[1] / CROP:g} --guide search "
             f"--estimator enumerate --steps {STEPS}")
PICTURES = "mosaics.npz"
FOLDER = RESULTS / "mosaics"


def write_pictures(file: Path, root: str) -> None:
    """Write the training mosaics, images only, unless the file exists.

    Args:
        root: the folder that holds MNIST.
    Raises:
        DataError: MNIST is missing.
    """
    if not file.exists():
        pictures = [mosaic(digits, SIDE, SIDES, seed, train=True, root=root) for seed, digits in enumerate(TRAINING)]
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as written:
            np.savez_compressed(written, images=torch.cat([each.images for each in pictures]).numpy())


def measure(model: air.AIR, picture: Scenes) -> dict[str, float]:
    """Read one picture.

    Args:
        picture: one scene with its count and boxes.
    Returns:
        true and found: numbers of digits; error: their difference in % of the true number; ap50; seconds of
        `infer_tiles`.
    """
    start = time.perf_counter()
    seen = air.infer_tiles(model, picture.images[0])
    seconds, true = time.perf_counter() - start, int(picture.counts[0])
    return {"true": true, "found": seen.count, "error": 100 * abs(seen.count - true) / true,
            "ap50": ap50(seen, picture.boxes[0]), "seconds": seconds}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown table: a row a seed and one of their mean; the worst picture of the row in brackets."""
    true = ", ".join(f"{record['true']}" for record in results[0]["records"])
    lines = [f"| seed | found of {true} | error, % | AP50 | s a picture | threads |",
             "| --- | --- | --- | --- | --- | --- |"]
    for result in results:
        found = ", ".join(f"{record['found']}" for record in result["records"])
        lines.append(f"| {result['seed']} | {found} | {_cells(result['records'])} | {result['threads']} |")
    threads = ", ".join(map(str, sorted({result["threads"] for result in results})))
    together = [record for result in results for record in result["records"]]
    return "\n".join([*lines, f"| mean | | {_cells(together)} | {threads} |"])


def _cells(records: Sequence[dict[str, Any]]) -> str:
    """Cells of the error, the AP50 and the time of pictures."""
    cells = []
    for key, digits, worst in (("error", 2, max), ("ap50", 3, min), ("seconds", 2, max)):
        values = [record[key] for record in records]
        cells.append(f"{statistics.mean(values):.{digits}f} ({worst(values):.{digits}f})")
    return " | ".join(cells)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.mosaics", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(3)))
    parser.add_argument("--data.root", dest="data_root", default=data_root(),
                        help="folder that holds MNIST/raw ($AIR_DATA_ROOT, or data)")
    parser.add_argument("--runs", type=Path, default=RUNS.parent / "mosaics",
                        help="folder of the training pictures and of the trained models")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument("--table", action="store_true", help="only tabulate existing results")
    return parser


def load_records(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The result files of all seeds; empty if there are none."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("seed*.json"))]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write one JSON file a seed, print the table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.table:
        file = args.runs / PICTURES
        try:
            write_pictures(file, args.data_root)
            pictures = [mosaic(digits, SIDE, SIDES, seed, root=args.data_root) for seed, digits in enumerate(TEST)]
        except DataError as error:
            parser.error(str(error))
        args.results.mkdir(parents=True, exist_ok=True)
        for seed in args.seeds:
            out, arguments = args.runs / f"seed{seed}", [*shlex.split(ARGUMENTS), "--seed", str(seed)]
            train_if_missing(out, arguments, ["--data.file", str(file)])
            model = air.load(out)
            measure(model, pictures[0])  # the first reading takes longer
            result = {"seed": seed, "command": f"python train.py {shlex.join(arguments)} --data.file {PICTURES}",
                      **machine("cpu"), "records": [measure(model, picture) for picture in pictures]}
            (args.results / f"seed{seed}.json").write_text(json.dumps(result, indent=1) + "\n")
    results = load_records(args.results)
    if not results:
        parser.error(f"there are no results in {args.results}")
    print(table(results))


if __name__ == "__main__":
    main()
