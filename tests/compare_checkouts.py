#!/usr/bin/env python
"""Train the same runs in two checkouts and compare them bit for bit.

    git worktree add /tmp/before a34ee63
    python tests/compare_checkouts.py /tmp/before . --keep /tmp/runs   # --keep: a second call reuses finished runs
    python tests/compare_checkouts.py /tmp/before . --only dair search

Each run takes some dozens of steps with one thread. A refactoring must leave every metric of every evaluation and every
weight as it was: the exit code is 1 if one of them differs. Needs MNIST and Omniglot ($AIR_DATA_ROOT).
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

STEPS = "--steps 60 --seed 3"


class Run(NamedTuple):
    """A run by its flags, and by those of the command line before `air/config.py` existed (commit a34ee63)."""

    flags: str
    old_flags: str


MNIST, SPRITES, TABLE = "--dataset multi-mnist", "--dataset sprites", "--dataset scenes-table"
RUNS = {
    **{f"{name}-{estimator}": Run(f"{data} --estimator {estimator}", f"{data} --estimator {estimator}")
       for name, data in (("mnist", MNIST), ("sprites", SPRITES)) for estimator in ("enumerate", "nvil", "vimco")},
    "dair": Run(f"{MNIST} --estimator nvil --guide difference", f"{MNIST} --estimator nvil --difference"),
    "search": Run(f"{MNIST} --estimator enumerate --guide search --data.unseen-counts 3",
                  f"{MNIST} --estimator enumerate --difference --set model.search=true --unseen-counts 3"),
    "background": Run(f"{MNIST} --estimator nvil --data.backdrop grid --model.background",
                      f"{MNIST} --estimator nvil --backdrop grid --background"),
    "particles": Run(f"{MNIST} --estimator enumerate --estimator.particles 2",
                     f"{MNIST} --estimator enumerate --particles 2"),
    "nvil-particles": Run(f"{MNIST} --estimator nvil --estimator.particles 2 --estimator.centre "
                          "--estimator.normalise --estimator.signal-scale 3",
                          f"{MNIST} --estimator nvil --particles 2 --set estimator.centre=true "
                          "estimator.normalise=true estimator.signal_scale=3"),
    "learned-prior": Run(f"{MNIST} --estimator enumerate --optim.learn-count-prior",
                         f"{MNIST} --estimator enumerate --learn-count-prior"),
    "loose": Run(f"{MNIST} --estimator enumerate --data.overlap loose --data.noise 0.1 --data.counts 0 1 2 3 "
                 "--data.image-size 64 --data.object-size 0.25 --optim.shift 2 --model.embed-net 50 "
                 "--model.predict-net 20 --model.count-prior 1e-10",
                 f"{MNIST} --estimator enumerate --overlap loose --noise 0.1 --counts 0 1 2 3 --image-size 64 "
                 "--object-size 0.25 --count-prior 1e-10 --set shift=2 model.embed_net=[50] model.predict_net=[20]"),
    "convolutional": Run(f"{SPRITES} --estimator enumerate --model.convolutional",
                         f"{SPRITES} --estimator enumerate --set model.convolutional=true"),
    "bf16": Run(f"{MNIST} --estimator nvil --precision bf16", f"{MNIST} --estimator nvil --precision bf16"),
    "omniglot": Run("--dataset omniglot --estimator enumerate --data.object-size 0.25",
                    "--dataset omniglot --estimator enumerate --object-size 0.25"),
    "scenes-single": Run("--dataset scenes-single --estimator enumerate",
                         "--dataset scenes-single --estimator enumerate"),
    "scenes-single-nvil": Run("--dataset scenes-single --estimator nvil --model.identity nvil",
                              "--dataset scenes-single --estimator nvil --set model.identity=nvil"),
    "scenes-table": Run(f"{TABLE} --estimator enumerate", f"{TABLE} --estimator enumerate"),
    "scenes-table-nvil": Run(f"{TABLE} --estimator nvil --guide difference --model.identity nvil",
                             f"{TABLE} --estimator nvil --difference --set model.search=false model.identity=nvil"),
    "scenes-table-recurrent": Run(f"{TABLE} --estimator enumerate --guide recurrent --model.identity enumerate",
                                  f"{TABLE} --estimator enumerate --set model.search=false model.identity=enumerate"),
}
SIZES = "--data.train-scenes 1500 --data.held-out-scenes 300"
EVALUATE = "--run.eval-every 20"
OLD_EVALUATE = "--eval-every 20"
# The old command line could not shrink a data set.
SHRINK = ("import sys, runpy, air.data as d; d.MNIST_TRAIN = d.SPRITES_TRAIN = d.TABLE_TRAIN = 1500; d.HELD_OUT = 300; "
          "sys.path.insert(0, '.'); sys.argv = sys.argv[1:]; runpy.run_path('train.py', run_name='__main__')")
# Metrics whose names have changed since a34ee63.
RENAMED = {"passed_over": "skipped"}


def train(checkout: Path, run: Run, out: Path) -> None:
    """Train one run in a checkout, unless `out` holds it already."""
    if (out / "metrics.json").exists():
        return
    new = (checkout / "air" / "config.py").exists()
    flags = f"{run.flags} {EVALUATE}" if new else f"{run.old_flags} {OLD_EVALUATE}"
    if new and "omniglot" not in flags:
        flags += f" {SIZES}"
    script = ["train.py"] if new else ["-c", SHRINK, "train.py"]
    done = subprocess.run([sys.executable, *script, *shlex.split(f"{flags} {STEPS}"), "--out", str(out)], cwd=checkout,
                          env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{checkout}: train.py {flags} failed:\n{done.stdout}")


def content(out: Path) -> dict[str, Any]:
    """What a run left: every number of its evaluations by name, and the bytes of its parameters and buffers."""
    numbers = dict(_numbers("", [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]))
    numbers |= _numbers("final", json.loads((out / "metrics.json").read_text()))
    state = torch.load(out / "checkpoint.pt", weights_only=True)["objective"]
    # Sorted bytes, not names: modules may be renamed.
    weights = sorted((tuple(value.shape), value.numpy().tobytes()) for value in state.values())
    return {**numbers, "weights": weights}


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, each in value.items():
            if key != "seconds":
                yield from _numbers(f"{name}.{RENAMED.get(key, key)}", each)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _numbers(f"{name}[{place}]", each)
    else:
        yield name, value


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line for each thing that is not the same; norms of gradients may be grouped by other modules."""
    def judged(numbers: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in numbers.items() if "grad_norm" not in name}

    before, after = judged(before), judged(after)
    lines = [f"only {which}: {name}" for which, one, other in (("before", before, after), ("after", after, before))
             for name in one if name not in other]
    for name in before:
        if name in after and before[name] != after[name]:
            lines.append("weights differ" if name == "weights" else f"{name}: {before[name]} became {after[name]}")
    return lines


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--only", nargs="+", choices=tuple(RUNS), default=tuple(RUNS), metavar="RUN")
    parser.add_argument("--keep", type=Path, help="keep the runs of `before` there, and reuse those that are finished")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train the runs in both checkouts and print what differs."""
    args = build_parser().parse_args(argv)
    different = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.only:
            before, after = (args.keep or Path(temporary) / "before") / name, Path(temporary) / "after" / name
            train(args.before.resolve(), RUNS[name], before)
            train(args.after.resolve(), RUNS[name], after)
            found = differences(content(before), content(after))
            different += bool(found)
            print(f"{name}: {'the same, bit for bit' if not found else ''}", flush=True)
            for line in found[:10]:
                print(f"    {line}", flush=True)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
