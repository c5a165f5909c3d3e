#!/usr/bin/env python
"""Attack the programs with nonsense and damage, and count what they get wrong.

    python tests/fuzz.py                                     # 1,000 trials, at most 15 minutes
    python tests/fuzz.py --only signals --numbers 17 --keep kept    # one of them again

Trials are drawn from the seed, their kind and their number. A trial fails if a program shows a traceback, hangs, ends
with a wrong exit code, says more or less than a sentence, takes too much memory, leaves temporary files behind, or
accepts nonsense: without a word it gives results that its input does not support. The exit code is 1 if a trial fails.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # this checkout's train.py, air and tests, whichever package is installed

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402

import air.predict  # noqa: E402,F401
import train  # noqa: E402,F401
from tests.fuzzing import arrays, checkpoints, flags, images, signals  # noqa: E402
from tests.fuzzing.base import STEPS, Base, Verdict, prepared  # noqa: E402
from tests.fuzzing.sandbox import Program, Sandbox  # noqa: E402

KINDS: dict[str, Callable[[np.random.Generator, Path, Base, Sandbox], Verdict]] = {
    "flags": flags.trial, "arrays": arrays.trial, "checkpoints": checkpoints.trial, "images": images.trial,
    "signals": signals.trial}


class Result(NamedTuple):
    """A trial and what it found."""

    kind: str
    number: int
    seconds: float
    faults: list[str]
    what: str
    said: str


def run_trial(kind: str, number: int, seed: int, base: Base, sandbox: Sandbox, keep: Path | None = None) -> Result:
    """Run one trial in a folder of its own, which is kept if it fails."""
    rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), number))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trial-", dir=base.folder, ignore_cleanup_errors=True) as name:
        verdict = KINDS[kind](rng, Path(name), base, sandbox)
        if verdict.faults and keep:
            keep.mkdir(parents=True, exist_ok=True)
            os.rename(name, keep / f"{kind}-{number}")
            Path(name).mkdir()
    return Result(kind, number, time.monotonic() - began, *verdict)


def attack(base: Base, plan: Sequence[tuple[str, int]], seed: int, jobs: int, minutes: float, keep: Path | None = None,
           programs: dict[str, Program] | None = None) -> list[Result]:
    """Run the trials of a plan, as far as the time goes, in several processes."""
    deadline = time.monotonic() + 60 * minutes
    workers = []
    for job in range(jobs):
        path = base.folder / f"results-{job}.jsonl"
        worker = os.fork()
        if worker == 0:
            code = 1
            try:
                sandbox = Sandbox(base.folder / f"cache-{job}", programs or {})
                sandbox.cache.mkdir()
                with path.open("w", buffering=1) as file:
                    for kind, number in plan[job::jobs]:
                        if time.monotonic() > deadline:
                            break
                        print(json.dumps(run_trial(kind, number, seed, base, sandbox, keep)), file=file)
                code = 0
            finally:
                sys.stderr.flush()
                if code:
                    sys.excepthook(*sys.exc_info())
                os._exit(code)
        workers.append((worker, path))
    results = []
    for worker, path in workers:
        _, status = os.waitpid(worker, 0)
        if status:
            raise RuntimeError("a worker of the fuzz script itself has failed")
        results += [Result(*json.loads(line)) for line in path.read_text().splitlines()]
    return results


def report(results: Sequence[Result], planned: int, seed: int) -> str:
    """The failures, and a table by kind."""
    lines = []
    for result in results:
        if result.faults:
            lines += [f"{result.kind} {result.number} (--seed {seed} --only {result.kind} --numbers {result.number}): "
                      f"{'; '.join(result.faults)}", f"    {result.what}",
                      *(f"    | {line}" for line in result.said.splitlines()), ""]
    causes: dict[str, int] = {}
    for result in results:
        for fault in result.faults:
            causes[f"{result.kind}: {fault}"] = causes.get(f"{result.kind}: {fault}", 0) + 1
    lines += [f"{count:5} {cause}" for cause, count in sorted(causes.items(), key=lambda item: -item[1])]
    lines += ["", f"{'kind':12} {'trials':>7} {'failures':>9} {'seconds':>8}"]
    for kind in KINDS:
        own = [result for result in results if result.kind == kind]
        if own:
            lines.append(f"{kind:12} {len(own):7} {sum(bool(each.faults) for each in own):9} "
                         f"{sum(each.seconds for each in own):8.0f}")
    lines.append(f"{'all':12} {len(results):7} {sum(bool(each.faults) for each in results):9}")
    if len(results) < planned:
        lines.append(f"out of time: {planned - len(results)} trials were not made")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=1000, help="of all kinds together")
    parser.add_argument("--minutes", type=float, default=15.0, help="after which no trial is begun")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--numbers", nargs="+", type=int, help="these trials of each kind only")
    parser.add_argument("--keep", type=Path, help="folder in which the files of failed trials are kept")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training the model that the trials use")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    torchvision.datasets.MNIST.mirrors = ["http://127.0.0.1:9/"]  # nothing is downloaded
    numbers = args.numbers or range(args.trials // len(args.only))
    plan = [(kind, number) for number in numbers for kind in args.only]
    with prepared(args.steps) as base:
        results = attack(base, plan, args.seed, args.jobs, args.minutes, args.keep and args.keep.resolve())
    print(report(results, len(plan), args.seed))
    return int(any(result.faults for result in results))


if __name__ == "__main__":
    sys.exit(main())
