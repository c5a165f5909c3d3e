"""What `benchmarks.gpu_check` measures: each part is a list of named measurements, each of which gives a row.

On the CPU everything is tiny, and a captured step's replay is the step itself, run again: that tests the parts, and its
figures mean nothing.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from air.checkpoints import load_checkpoint
from air.config import default_config, with_settings
from air.data import Dataset, MultiMNIST, Scenes, Sprites, load_dataset
from air.evaluation.evaluate import evaluate
from air.recipe import resolve
from air.training import step as step_module
from air.training.step import WARM_UP
from air.training.trainer import Trainer
from benchmarks.bench_step import Bench

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write to stderr

ROOT = Path(__file__).parent.parent
ENOUGH = 0.98  # of held-out scenes counted right
WRITTEN, TWICE, RESUMED = "graph = step by step", "graph twice", "resumed = uninterrupted"  # docs/performance.md


@dataclass
class Row:
    """A measurement: its figures by name, and what is wrong with them."""

    name: str
    figures: dict[str, float | str | bool] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)  # the most that some of the figures should be
    fault: str = ""


@dataclass(frozen=True)
class Place:
    """Where to measure."""

    device: str  # "cuda", or "cpu" for a dry run
    root: str  # folder that holds MNIST/raw

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    def wait(self) -> None:
        """Wait until the device has run what was launched."""
        if not self.dry:
            torch.cuda.synchronize()

    @contextmanager
    def played(self) -> Iterator[None]:
        """In a dry run the step plays the graph's part."""
        with ExitStack() as patches:
            if self.dry:
                patches.enter_context(patch("torch.cuda.Stream", lambda *device: None))
                patches.enter_context(patch.object(step_module, "on_stream", lambda stream, run: run()))
                patches.enter_context(patch.object(step_module, "capture", lambda stream, run: run))
            yield


Measurement = tuple[str, Callable[[Place], Row]]


@dataclass(frozen=True)
class Case:
    """A configuration whose determinism on CUDA docs/performance.md tells."""

    name: str
    estimator: str
    settings: dict[str, Any]
    same: tuple[str, ...] = ()  # what must be the same bit for bit
    three: bool = False  # 3D scenes


EVERYTHING = (WRITTEN, TWICE, RESUMED)
CASES = [
    *(Case(f"{name}, {precision}", name, {"run.precision": precision},
           (TWICE, RESUMED) if precision == "bf16" else EVERYTHING)
      for name in ("enumerate", "nvil", "vimco") for precision in ("fp32", "tf32", "bf16")),
    Case("enumerate, --optim.shift 2", "enumerate", {"optim.shift": 2}, EVERYTHING),
    Case("enumerate, --guide difference", "enumerate", {"model.guide": "difference"}),
    Case("nvil, --guide search", "nvil", {"model.guide": "search"}),
    Case("enumerate, --model.background", "enumerate", {"model.background": True}),
    Case("enumerate, --compositing over", "enumerate",
         {"model.compositing": "over", "model.background": True, "model.blurred_background": True}),
    Case("enumerate, --model.convolutional", "enumerate", {"model.convolutional": True}),
    Case("enumerate, 3D scenes", "enumerate", {}, three=True),
    Case("nvil, 3D scenes", "nvil", {}, three=True),
    Case("enumerate, --compile", "enumerate", {"run.compile": True}, EVERYTHING),
]
DRY_CASES = ("vimco, bf16", "enumerate, 3D scenes")


def make(place: Place, case: Case, out: Path = Path(), state: dict[str, Any] | None = None,
         settings: Mapping[str, Any] | None = None) -> Trainer:
    """A trainer of a case on noise, the same each time; further settings by their paths."""
    torch._dynamo.reset()
    batch, side = 2 if place.dry else 64, 48 if case.three else 20 if place.dry else 50
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32 * batch, 3 if case.three else 1, side, side), dtype=torch.uint8,
                           generator=generator)
    poses = torch.full((len(images), 2, 4), 0.35) if case.three else None
    scenes = Scenes(images, torch.arange(len(images)) % 3, torch.zeros(len(images), 2, 4),
                    torch.zeros(len(images), 2, dtype=torch.int64), poses)
    dataset = Dataset("synthetic", scenes, scenes[:4 if place.dry else 100])
    changes = {**case.settings, "run.device": place.device, "optim.batch_size": batch, "optim.steps": 40,
               **(settings or {})}
    if place.dry:
        precision = "bf16" if changes.get("run.precision") == "bf16" else "fp32"  # there is no tf32
        changes |= {"model.rnn_hidden_size": 8, "run.precision": precision}
    config = with_settings(default_config("scenes-table" if case.three else "multi-mnist", case.estimator), changes)
    trainer = Trainer(resolve(config, dataset), dataset, out, state)
    trainer.take_step.capture_steps(True)
    return trainer


def state_of(trainer: Trainer) -> list[Tensor]:
    """Copies of the weights and buffers."""
    return [value.clone() for value in trainer.objective.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) or bool((a.isnan() & b.isnan()).all()) for a, b in zip(one, other))


def judged(row: Row, expected: tuple[str, ...]) -> Row:
    """The row, with a fault if figures that should be true are not."""
    wrong = [name for name in expected if row.figures.get(name) is False]
    return replace(row, fault=f"documented as the same bit for bit: {', '.join(wrong)}" if wrong else "")


def agree(case: Case, place: Place) -> Row:
    """Steps as written compared with captured ones, with an evaluation between replays and a count prior that follows.

    Steps as written must not wait for the device, from the fourth on.
    """
    evaluated_at, steps = (WARM_UP + 1, WARM_UP + 3) if place.dry else (7, 12)
    runs = []
    for captures in (False, True, True):
        trainer, elbos = make(place, case, settings={"optim.learn_count_prior": True,
                                                     "optim.learn_count_prior_from": 0}), []
        trainer.take_step.capture_steps(captures)
        for step in range(steps):
            watched = not place.dry and not captures and step > 2
            if watched:
                torch.cuda.set_sync_debug_mode("error")
            try:
                metrics = trainer.train_step()
            finally:
                if watched:
                    torch.cuda.set_sync_debug_mode("default")
            elbos.append(metrics["elbo"].item())
            if step == evaluated_at:
                evaluate(trainer.model, trainer.dataset.held_out)
        runs.append((elbos, state_of(trainer)))
    (elbos, written), (again, graph), (_, twice) = runs
    apart = max(abs(a - b) / abs(a) for a, b in zip(elbos, again))
    if trainer.take_step.replay is None:
        raise RuntimeError("no step was captured")
    row = Row(case.name, {"elbo apart": apart, WRITTEN: same(written, graph), TWICE: same(graph, twice)})
    return judged(row, tuple(name for name in case.same if not (place.dry and name == WRITTEN)))


def resume(case: Case, place: Place) -> Row:
    """An uninterrupted run compared with one that is saved and read half-way."""
    half = WARM_UP + 1 if place.dry else 20
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        for interrupted in (False, True):
            trainer = make(place, case, Path(folder))
            for step in range(2 * half):
                if interrupted and step == half:
                    trainer._save()
                    torch.manual_seed(9)
                    trainer = make(place, case, Path(folder), load_checkpoint(folder)[1])
                trainer.train_step()
            ends.append(state_of(trainer))
    return judged(Row(case.name, {RESUMED: same(*ends)}), case.same)


def per(place: Place, run: Callable[[], Any], times: int) -> float:
    """Milliseconds of a run, of so many in a row with one wait."""
    place.wait()
    start = time.perf_counter()
    for _ in range(times):
        run()
    place.wait()
    return 1e3 * (time.perf_counter() - start) / times


def timed(place: Place, trainer: Trainer, many: int = 99) -> dict[str, float | str | bool]:
    """Times of the trainer's steps, so many in a row, and of the graph alone; the kernels of a replay."""
    many = 2 if place.dry else many
    first = per(place, trainer.train_step, WARM_UP + 1) * (WARM_UP + 1) / 1e3
    per(place, trainer.train_step, many // 5 + 1)
    replay = trainer.take_step.replay
    assert replay is not None
    step, graph, alone = (statistics.median(per(place, run, times) for _ in range(turns)) for run, times, turns in (
        (trainer.train_step, many, 5), (replay, many, 5), (trainer.train_step, 1, many // 2)))
    activity, time_of = ((ProfilerActivity.CPU, "self_cpu_time_total") if place.dry else
                         (ProfilerActivity.CUDA, "self_device_time_total"))
    with profile(activities=[activity]) as profiled:
        per(place, replay, 3)
    kernels = [each for each in profiled.key_averages() if getattr(each, time_of)]
    return {"step ms": step, "graph ms": graph, "with a wait ms": alone,
            "kernels": sum(each.count for each in kernels) / 3,
            "busy ms": sum(getattr(each, time_of) for each in kernels) / 3e3, "first steps s": first}


AT_64 = {"enumerate": 0.6, "nvil": 0.8}  # ms of a step, the targets
CAPTURED_TARGETS = {"--guide search": 1.5, "3D scenes": 4.0}


def step_times(estimator: str, batch: int, precision: str, compiled: bool, place: Place) -> Row:
    """A step's times beside those of its matrix products alone."""
    torch._dynamo.reset()
    bench = Bench(estimator, {"optim.batch_size": batch, "run.device": place.device, "run.precision": precision,
                              "run.compile": compiled, "optim.steps": 10**6})
    bench.trainer.take_step.capture_steps(True)
    figures = timed(place, bench.trainer, 99 if batch < 1000 else 29)
    if not compiled:
        products = bench.time_products(bench.products)
        flops = sum(count * product.flops for product, count in bench.products.items())
        figures |= {"share of the products' rate": products / float(figures["step ms"]),
                    "products TFLOP/s": flops / products / 1e9}
    targets = {"step ms": AT_64[estimator]} if batch == 64 and not compiled else {}
    name = f"{estimator}, batch {batch}, {precision}{', compiled' if compiled else ''}"
    return Row(name, figures, targets)


def model_times(case: Case, place: Place) -> Row:
    """A step's times for another model than the default, at batch 64."""
    figures = timed(place, make(place, case, settings={"optim.steps": 10**6}))
    target = next((ms for part, ms in CAPTURED_TARGETS.items() if part in case.name), None)
    return Row(case.name, figures, {} if target is None else {"step ms": target})


def training(dataset: str, estimator: str, precision: str, place: Place) -> Row:
    """A whole run of train.py: when it first counts ENOUGH right, and how much at the end."""
    name = f"{dataset}, {estimator}, {precision}"
    raw = Path(place.root) / "MNIST" / "raw"
    if dataset == "multi-mnist" and not any(raw.glob("train-images-idx3-ubyte*")):
        return Row(name, {"skipped": f"no MNIST under {raw}: name the folder that holds MNIST/raw with --data-root"})
    few = ["--data.train-scenes", "64", "--data.held-out-scenes", "8", "--steps", "4", "--batch-size", "8",
           "--model.rnn-hidden-size", "8"] if place.dry else []
    if not few:  # the scenes are generated before the clock starts
        load_dataset(MultiMNIST(root=place.root) if dataset == "multi-mnist" else Sprites())
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "errors").open("w+") as errors:
        log, reached = Path(folder) / "run" / "metrics.jsonl", dict[str, float]()
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--dataset", dataset, "--estimator",
                                    estimator, "--precision", precision, "--device", place.device,
                                    "--run.eval-every", "2" if few else "100", "--out", str(log.parent), *few],
                                   stdout=subprocess.DEVNULL, stderr=errors, cwd=ROOT,
                                   env={**os.environ, "AIR_DATA_ROOT": place.root, "PYTHONPATH": str(ROOT)})
        ended = False
        while not ended:
            time.sleep(0.02)
            ended = process.poll() is not None
            if not reached and (line := first_enough(log)):
                reached = {"steps to 98%": line["step"], "s of steps to 98%": line["seconds"],
                           "s from the start to 98%": time.perf_counter() - start}
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"train.py: {errors.read().strip().splitlines()[-1:]}")
        final = json.loads((log.parent / "metrics.json").read_text())
    return Row(name, {**reached, "steps": final["steps"], "MAP %": 100 * final["count_accuracy_map"],
                      **({} if reached else {"98%": "not reached"})},
               {"s of steps to 98%": 3.0, "s from the start to 98%": 5.0})


def first_enough(log: Path) -> dict[str, Any] | None:
    """The first line of a run's log that counts ENOUGH right; a line that is being written does not count."""
    written = log.read_text().splitlines(keepends=True) if log.exists() else []
    lines = [json.loads(line) for line in written if line.endswith("\n")]
    found = [{"step": line["step"], "seconds": line["seconds"]} for line in lines
             if line["held_out"]["count_accuracy_map"] >= ENOUGH]
    return found[0] if found else None


def measurements(part: str, place: Place) -> list[Measurement]:
    """The measurements of a part, the important ones first."""
    cases = [case for case in CASES if case.name in DRY_CASES or not place.dry]
    if part in ("agree", "resume"):
        return [(case.name, partial(agree if part == "agree" else resume, case)) for case in cases]
    if part in ("times", "compiled"):
        compiled = part == "compiled"
        grid = [(estimator, batch, precision) for batch in (64, 4096) for precision in ("fp32", "tf32", "bf16")
                for estimator in ("enumerate", "nvil") if not compiled or batch == 64 or precision == "tf32"]
        if place.dry:
            grid = [] if compiled else [("enumerate", 2, "fp32")]
        return [(f"{estimator}, batch {batch}, {precision}", partial(step_times, estimator, batch, precision, compiled))
                for estimator, batch, precision in grid]
    if part == "models":
        others = [Case("enumerate, --guide search", "enumerate", {"model.guide": "search"}),
                  *(case for case in CASES if case.three or not case.same),
                  Case("vimco", "vimco", {})]
        return [(case.name, partial(model_times, case)) for case in others[:1 if place.dry else None]]
    runs = [("multi-mnist", "enumerate", "tf32"), ("multi-mnist", "nvil", "tf32"), ("sprites", "enumerate", "tf32"),
            ("multi-mnist", "enumerate", "fp32")]
    if place.dry:
        runs = [("sprites", "enumerate", "fp32")]
    return [(", ".join(run), partial(training, *run)) for run in runs]


def rows(part: str, place: Place) -> Iterator[Row]:
    """Measure a part; a measurement that fails is a row with a fault."""
    with place.played():
        for name, measure in measurements(part, place):
            try:
                yield measure(place)
            except Exception as error:
                yield Row(name, fault=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
