#!/usr/bin/env python
"""Check and time the training step on a GPU, within about eight minutes.

    python -m benchmarks.gpu_check --json benchmarks/results/gpu-check.json
    python -m benchmarks.gpu_check agree resume             # some parts
    python -m benchmarks.gpu_check --device cpu             # a dry run in a few seconds; its figures mean nothing

agree:    steps as written compared with steps captured as a graph, in weights and buffers
resume:   an uninterrupted run compared with one that is saved and read half-way
times:    a step at batch 64 and 4,096 in each precision: in a row, the graph alone, with a wait; kernels of a replay
models:   the same for other guides, networks and 3D scenes, at batch 64
train:    four runs of train.py, until 98% of held-out scenes are counted right and to their end
compiled: like times, with --compile

Each part runs in a process of its own and is stopped where it exceeds its time; what it has measured until then stays.
Exit code 1: a measurement failed, or results differ that docs/performance.md says are the same bit for bit. Targets
that are missed do not count.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from air.data import data_root
from air.training.machine import machine
from benchmarks.gpu_parts import ROOT, Place, Row, rows

PARTS = {"agree": 110, "resume": 60, "times": 80, "models": 40, "train": 90, "compiled": 100}  # the most seconds
MARK = "row: "  # begins the lines of a part's process that hold a row


def measure_part(part: str, device: str, root: str) -> None:
    """What the process of a part does: print its rows."""
    for row in rows(part, Place(device, root)):
        print(MARK + json.dumps(asdict(row)), flush=True)


def rows_of_process(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> Iterator[Row]:
    """The rows that a process prints until it ends, or is stopped after so many seconds, with its own processes."""
    stopped = threading.Event()
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env={**os.environ, **environment},
            start_new_session=True) as process:

        def stop() -> None:
            stopped.set()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    yield Row(**json.loads(line.removeprefix(MARK)))
        except BaseException:  # Ctrl-C reaches this process only
            stop()
            raise
        finally:
            timer.cancel()
        code = process.wait()
        errors.seek(0)
        said = errors.read().strip().splitlines()[-1:]
    if stopped.is_set():
        yield Row("the rest", fault=f"stopped after {seconds:g} s")
    elif code:
        yield Row("the rest", fault=f"the process ended with code {code}{': ' + said[0] if said else ''}")


def measured(part: str, place: Place, scratch: str) -> Iterator[Row]:
    """A part's rows: on a GPU from a process of its own, which one bad kernel may end."""
    if place.dry:
        yield from rows(part, place)
        return
    code = "import sys; from benchmarks.gpu_check import measure_part; measure_part(*sys.argv[1:])"
    environment = {"XDG_CACHE_HOME": f"{scratch}/scenes", "TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor"}
    yield from rows_of_process([sys.executable, "-c", code, part, place.device, place.root], PARTS[part], environment)


def as_line(row: Row) -> str:
    """A row as a person reads it."""
    told = []
    for name, value in row.figures.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else (
            value if isinstance(value, str) else f"{value:.4g}")
        target = row.targets.get(name)
        judged = "" if target is None else f" (target {target:g}: {'met' if float(value) <= target else 'missed'})"
        told.append(f"{name}: {shown}{judged}")
    if row.fault:
        told.append(f"FAILED: {row.fault}")
    return f"  {row.name:34} {', '.join(told)}"


def driver() -> str:
    """The version of the GPU's driver; "" where it is not known."""
    try:
        return subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], timeout=30,
                              capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return ""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a dry run (default: cuda)")
    parser.add_argument("--data-root", default=data_root(),
                        help="folder that holds MNIST/raw ($AIR_DATA_ROOT, or data); without MNIST only sprites train")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write what the arguments ask for."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if unknown := [name for name in args.parts if name not in PARTS]:
        parser.error(f"no part named {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu makes a dry run")
    if args.json:
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.open("a").close()
        except OSError as error:
            parser.error(f"--json {args.json} cannot be written ({error.strerror})")
    try:
        failed = check(args.parts or list(PARTS), Place(args.device, str(Path(args.data_root).resolve())), args.json)
    except KeyboardInterrupt:
        sys.exit(130)
    if failed:
        sys.exit(f"gpu_check: {failed} measurements failed")


def check(parts: Sequence[str], place: Place, file: Path | None) -> int:
    """Measure the parts, print a report, and write the file as parts are done.

    Returns:
        the number of failed measurements.
    """
    report: dict[str, Any] = {**machine(place.device), "driver": driver(), "dry_run": place.dry, "parts": {}}
    print(", ".join(f"{name} {value}" for name, value in report.items() if name != "parts"))
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            print(f"{part}, at most {PARTS[part]} s", flush=True)
            start, found = time.monotonic(), []
            for row in measured(part, place, scratch):
                print(as_line(row), flush=True)
                found.append(asdict(row))
                failed += bool(row.fault)
            report["parts"][part] = {"seconds": time.monotonic() - start, "rows": found}
            print(f"  {report['parts'][part]['seconds']:.0f} s")
            if file:
                file.write_text(json.dumps(report, indent=2) + "\n")
    return failed


if __name__ == "__main__":
    main()
