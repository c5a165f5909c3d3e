#!/usr/bin/env python
"""Time a training step and compare it with a lower bound measured on the same machine.

    python benchmarks/bench_step.py --estimator enumerate nvil nvil-without-baseline --threads 2
    python benchmarks/bench_step.py --estimator enumerate --compile --precision bf16 --json step.json
    torchrun --nproc_per_node=2 benchmarks/bench_step.py --estimator enumerate

A step is the trainer's: batch, forward, backward, optimiser. The bound, called the floor, is the time of the step's
matrix products, each timed alone at its own shape, layout and precision, plus the bytes that Adam has to move divided
by the measured bandwidth. Inference is in float32; its floor is its matrix products. Everything in one command is
measured in turns, so that other load on the machine affects all of it alike: compare ratios, not milliseconds of
different runs. Processes that torchrun starts share the batch; inference and floor are then those of one share.

A GPU works through a queue. There, steps are timed twice: each with a wait for its end, and in a row with one wait, as
a run takes them; the second time is the one that is compared with the floor. A product is captured many times over as
one graph, since alone it takes less time than its launch and the wait.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from air.config import default_config, with_settings
from air.data import Dataset, Scenes
from air.distributed import cleanup, rank, setup, world_size
from air.recipe import resolve
from air.training.machine import machine
from air.training.step import capture, on_stream
from air.training.trainer import Trainer

ESTIMATORS = ("nvil", "nvil-without-baseline", "enumerate", "vimco")
ADAM_PASSES = 7  # Adam reads parameter, gradient and two moments, and writes all but the gradient
TURNS = 8
REPEATS = 50  # of a product in one graph
EPOCH = 32  # steps; at the beginning of an epoch its order is copied to the device


class Product(NamedTuple):
    """A matrix product (m, k) @ (k, n) of a step."""

    m: int
    k: int
    n: int
    transposed: tuple[bool, bool]  # whether each operand is stored column by column
    dtype: torch.dtype

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> "Product":
        transposed = a.stride(0) < a.stride(1), b.stride(0) < b.stride(1)
        return cls(a.shape[0], a.shape[1], b.shape[1], transposed, a.dtype)

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n

    def ready(self, device: str) -> Callable[[], Tensor]:
        """The product of random operands with this shape, layout and type, as a function to be timed."""
        operands = []
        for (rows, columns), transposed in zip(((self.m, self.k), (self.k, self.n)), self.transposed):
            shape = (columns, rows) if transposed else (rows, columns)
            operand = torch.randn(shape, device=device).to(self.dtype)
            operands.append(operand.t() if transposed else operand)
        return lambda: torch.mm(*operands)


class ProductLog(TorchDispatchMode):
    """Counts the matrix products that run inside it. Batched products are not counted: they are not layers."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.products[Product.of(*args[-2:])] += 1
        return func(*args, **(kwargs or {}))


class Bench:
    """Measures the step, the inference and the floor of one estimator."""

    def __init__(self, estimator: str, settings: Mapping[str, Any]) -> None:
        """Set up a trainer on synthetic scenes.

        Args:
            estimator: one of ESTIMATORS.
            settings: changes to the recipe by their paths, such as {"optim.batch_size": 64}.
        Raises:
            ValueError: a setting has a wrong name or value.
        """
        name, _, variant = estimator.partition("-")
        config = with_settings(default_config("multi-mnist", name),
                               {"run.device": "cpu", "model.use_baselines": not variant, **settings})
        scenes = synthetic_scenes(EPOCH * config.optim.batch_size)
        dataset = Dataset("synthetic", scenes, scenes)
        config = resolve(config, dataset)
        self.trainer = Trainer(config, dataset, Path())  # writes nothing before run()
        self.device = config.run.device
        self.queues = self.device == "cuda"  # whether what is launched runs later
        self.batch = scenes.images[:config.optim.batch_size // world_size()].to(self.device)
        with ProductLog() as log, torch.autocast(self.device, torch.bfloat16, enabled=config.run.precision == "bf16"):
            self.trainer.objective(self.batch)[0].backward()
        with ProductLog() as inference_log:
            self.trainer.model.infer(self.batch)
        self.infer = torch.compile(self.trainer.model.infer) if config.run.compile else self.trainer.model.infer
        self.products, self.inference_products = log.products, inference_log.products
        self.parameters = sum(p.numel() for p in self.trainer.objective.parameters())
        self.times: dict[str, list[float]] = {"step": [], "in_a_row": [], "inference": [], "products": [],
                                              "inference_products": [], "optimiser": []}
        self.stream = torch.cuda.Stream() if self.queues else None
        self.graphs: dict[Hashable, tuple[Callable[[], None], Callable[[], Any]]] = {}  # of REPEATS runs; the run

    def warm_up(self, steps: int) -> None:
        """Run steps and inference until allocators, caches and the compiler have settled."""
        for _ in range(steps):
            self.trainer.train_step()
            self.infer(self.batch)

    def turn(self, steps: int) -> None:
        """Take one turn of measurements, in ms."""
        self.time_steps(steps)
        self.times["inference"] += [self._time(lambda: self.infer(self.batch)) for _ in range(steps)]
        self.times["products"].append(self.time_products(self.products))
        self.times["inference_products"].append(self.time_products(self.inference_products))
        p, g, out = torch.rand(3, self.parameters, device=self.device).unbind()
        add = self._time_alone("add", lambda: torch.add(p, g, out=out))
        self.times["optimiser"].append(add * ADAM_PASSES / 3)  # an addition makes 3 passes over as many bytes

    def time_steps(self, steps: int) -> None:
        """Time training steps alone."""
        self.times["step"] += [self._time(self.trainer.train_step) for _ in range(steps)]
        if self.queues:
            self.times["in_a_row"].append(self._time(lambda: [self.trainer.train_step() for _ in range(steps)]) / steps)

    def time_products(self, products: Counter[Product]) -> float:
        """The total time of the products, each timed alone."""
        return sum(count * self._time_alone(product, product.ready(self.device)) for product, count in products.items())

    def _time_alone(self, name: Hashable, run: Callable[[], Any]) -> float:
        """The median of five times in ms, without that of a launch where work is queued; `name` is that of the run."""
        if not self.queues:
            run()  # once for the caches
            return statistics.median(self._time(run) for _ in range(5))
        assert self.stream is not None

        def many() -> None:
            for _ in range(REPEATS):
                run()

        if name not in self.graphs:
            on_stream(self.stream, many)  # libraries get ready
            self.graphs[name] = capture(self.stream, many), run  # whose operands the graph reads
        replay, _ = self.graphs[name]
        return statistics.median(self._time(replay) for _ in range(5)) / REPEATS

    def _time(self, run: Callable[[], Any]) -> float:
        synchronize = torch.cuda.synchronize if self.queues else lambda: None
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        return 1e3 * (time.perf_counter() - start)

    def results(self) -> dict[str, float]:
        """Medians over all turns and figures derived from them."""
        medians = {name: statistics.median(times) for name, times in self.times.items() if times}
        step, inference, products = medians["step"], medians["inference"], medians["products"]
        inference_products, optimiser = medians["inference_products"], medians["optimiser"]
        in_a_row = medians.get("in_a_row", step)  # the same where nothing is queued
        deciles = statistics.quantiles(self.times["step"], n=10)
        batch, flops = len(self.batch), sum(count * product.flops for product, count in self.products.items())
        bandwidth = ADAM_PASSES * 4 * self.parameters / optimiser
        return {"step_ms": step, "step_ms_p10": deciles[0], "step_ms_p90": deciles[-1], "step_in_a_row_ms": in_a_row,
                "images_per_s": 1e3 * world_size() * batch / in_a_row, "inference_ms_per_image": inference / batch,
                "inference_ratio_to_floor": inference / inference_products,
                "floor_ms": products + optimiser, "floor_products_ms": products, "floor_optimiser_ms": optimiser,
                "ratio_to_floor": in_a_row / (products + optimiser), "gflop": flops / 1e9,
                "products_gflop_per_s": flops / products / 1e6, "bandwidth_gb_per_s": bandwidth / 1e6}


def synthetic_scenes(size: int) -> Scenes:
    """Noise with the shape and counts of multi-MNIST scenes; the time does not depend on what images show."""
    images = torch.randint(0, 256, (size, 1, 50, 50), dtype=torch.uint8)
    return Scenes(images, torch.arange(size) % 3, torch.zeros(size, 2, 4), torch.full((size, 2), -1))


def peak_memory(device: str) -> float:
    """Peak memory in MiB: of the CUDA allocator, or of the process (its resident set) on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--estimator", nargs="+", default=["nvil"], choices=ESTIMATORS,
                        help="one or more (default: nvil)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--particles", type=int, metavar="K", help="particles of the importance-weighted bound")
    parser.add_argument("--steps", type=int, default=80, help="timed steps of each estimator")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--at-most", type=float, metavar="RATIO",
                        help="exit with code 1 if a step takes longer than RATIO times its floor")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the JSON file."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if min(args.batch_size, args.threads, args.steps) < 1:
        parser.error("--batch-size, --threads and --steps must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no CUDA device")
    torch.set_num_threads(args.threads)
    try:
        setup(args.device)
        with redirect_stdout(None if rank() else sys.stdout):
            slow = measure(parser, args)
    finally:
        cleanup()
    if slow:
        sys.exit(f"bench_step.py: slower than {args.at_most} times the floor: {', '.join(slow)}")


def measure(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    """Measure, print and write what the arguments ask for.

    Returns:
        the names of estimators that exceed --at-most.
    """
    before = peak_memory(args.device)
    settings = {"optim.batch_size": args.batch_size, "run.device": args.device, "run.precision": args.precision,
                "run.compile": args.compile}
    if args.particles is not None:
        settings["estimator.particles"] = args.particles
    try:
        benches = {name: Bench(name, settings) for name in args.estimator}
    except ValueError as error:
        parser.error(str(error))
    for bench in benches.values():
        bench.warm_up(10)
    for _ in tqdm(range(TURNS), desc="turns", disable=rank() > 0 or not sys.stderr.isatty()):
        for bench in benches.values():
            bench.turn(max(1, args.steps // TURNS))

    report = {**machine(args.device), "processes": world_size(),
              **{path.partition(".")[2]: value for path, value in settings.items() if path != "run.device"},
              "peak_memory_mib": peak_memory(args.device),
              "peak_memory_above_start_mib": peak_memory(args.device) - before,
              "estimators": {name: bench.results() for name, bench in benches.items()}}
    print(", ".join(f"{name} {value}" for name, value in report.items() if name != "estimators"))
    print(f"{'':24}{'step ms (p10-p90)':>24}{'in a row':>10}{'images/s':>10}{'floor ms':>10}{'ratio':>7}"
          f"{'infer ms/image':>16}{'ratio':>7}")
    for name, r in report["estimators"].items():
        spread = f"{r['step_ms']:.2f} ({r['step_ms_p10']:.2f}-{r['step_ms_p90']:.2f})"
        print(f"{name:24}{spread:>24}{r['step_in_a_row_ms']:10.2f}{r['images_per_s']:10.0f}"
              f"{r['floor_ms']:10.2f}{r['ratio_to_floor']:7.2f}"
              f"{r['inference_ms_per_image']:16.3f}{r['inference_ratio_to_floor']:7.2f}")
    if args.json and rank() == 0:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return [name for name, r in report["estimators"].items() if args.at_most and r["ratio_to_floor"] > args.at_most]


if __name__ == "__main__":
    main()
