#!/usr/bin/env python
"""Compare training with Pyro's AIR example: time of a step, and time to an accuracy.

    pip install pyro-ppl
    python -m benchmarks.peer_pyro --pyro-air PYRO/examples/air --compile --bf16
    python -m benchmarks.peer_pyro --pyro-air PYRO/examples/air --to-accuracy 0.9

PYRO is a checkout of Pyro's repository: the example is not part of its package. The example's own files run unchanged,
with the arguments of its tutorial and on our training scenes. Steps are measured in turns, so that other load on the
machine affects both alike. With --to-accuracy each is trained from scratch until it counts that share of held-out
scenes right; one that does not get there within --limit is reported as well.
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from tqdm import tqdm

from air.config import default_config, with_settings
from air.data import DataError, Dataset, MultiMNIST, Scenes, data_root, load_dataset
from air.evaluation.evaluate import evaluate
from air.recipe import resolve
from air.training.machine import machine
from air.training.trainer import Trainer

# The command line of Pyro's tutorial, by the names of the example's options.
TUTORIAL: dict[str, Any] = {"baseline_learning_rate": 0.1, "learning_rate": 1e-4, "z_pres_prior": 0.01}
TUTORIAL_MODEL: dict[str, Any] = {
    "num_steps": 3, "x_size": 50, "window_size": 28, "rnn_hidden_size": 256, "z_what_size": 50, "use_masking": True,
    "use_baselines": True, "scale_prior_sd": 0.2, "encoder_net": [200], "decoder_net": [200], "predict_net": [200],
    "bl_predict_net": [200], "decoder_output_use_sigmoid": True, "decoder_output_bias": -2.0, "use_cuda": False}
OURS = ("enumerate", "nvil")
BATCH = 64
TURNS = 8
EVAL_SCENES = 1000


class Contestant(Protocol):
    """A model in training."""

    def step(self) -> None:
        """Take one training step."""

    def accuracy(self, scenes: Scenes) -> float:
        """The share of scenes whose count, drawn from q(n), is right."""
        ...


class Ours:
    """Our trainer with the recipe's settings."""

    def __init__(self, estimator: str, dataset: Dataset, seed: int, compiled: bool, precision: str) -> None:
        config = with_settings(default_config("multi-mnist", estimator), {
            "optim.batch_size": BATCH, "run.seed": seed, "run.device": "cpu", "run.compile": compiled,
            "run.precision": precision})
        self.trainer = Trainer(resolve(config, dataset), dataset, Path())  # writes nothing before run()

    def step(self) -> None:
        self.trainer.train_step()

    def accuracy(self, scenes: Scenes) -> float:
        return float(evaluate(self.trainer.model, scenes)["count_accuracy_sampled"])


class Peer:
    """Pyro's example: its model and guide under SVI, assembled as in its own script."""

    def __init__(self, folder: Path, dataset: Dataset, seed: int) -> None:
        import pyro
        with peer_modules(folder):
            script, model = importlib.import_module("main"), importlib.import_module("air")
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        self.images = dataset.train.images.squeeze(1).float() / 255
        self.air, self.script = model.AIR(**TUTORIAL_MODEL), script
        self.prior = script.make_prior(TUTORIAL["z_pres_prior"])
        rates = {True: TUTORIAL["baseline_learning_rate"], False: TUTORIAL["learning_rate"]}
        self.svi = pyro.infer.SVI(self.air.models.air, self.air.guide,
                                  pyro.optim.Adam(lambda name: {"lr": rates["bl_" in name]}),
                                  loss=pyro.infer.TraceGraph_ELBO())

    def step(self) -> None:
        self.svi.step(self.images, batch_size=BATCH, z_pres_prior_p=self.prior)

    def accuracy(self, scenes: Scenes) -> float:
        images = scenes.images.squeeze(1).float() / 255
        with torch.no_grad():
            return float(self.script.count_accuracy(images, scenes.counts.float(), self.air, len(images))[0])


@contextmanager
def peer_modules(folder: Path) -> Iterator[None]:
    """Make `air` and `main` importable as the example's modules; an empty module stands in for visdom (its plots)."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "air"}
    sys.path.insert(0, str(folder))
    sys.modules.setdefault("visdom", ModuleType("visdom"))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in ("air", "main"):
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def step_times(contestants: dict[str, Contestant], steps: int) -> dict[str, dict[str, float]]:
    """Time steps in turns: the median in ms, and the speed-up over the first contestant."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        for _ in range(10):  # until allocators and compilers have settled
            contestant.step()
    for _ in tqdm(range(TURNS), desc="turns", disable=not sys.stderr.isatty()):
        for name, contestant in contestants.items():
            for _ in range(max(1, steps // TURNS)):
                start = time.perf_counter()
                contestant.step()
                times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(each) for name, each in times.items()}
    first = next(iter(medians.values()))
    return {name: {"step_ms": median, "times_as_fast": first / median} for name, median in medians.items()}


def time_to_accuracy(contestant: Contestant, scenes: Scenes, accuracy: float, limit: float, every: int
                     ) -> dict[str, float]:
    """Train until an evaluation reaches an accuracy; evaluations are not timed.

    Args:
        scenes: to evaluate on.
        limit: seconds of training after which to give up.
        every: steps between evaluations.
    Returns:
        steps, seconds, accuracy (the best one) and reached (0 or 1).
    """
    seconds, step, best = 0.0, 0, 0.0
    while seconds < limit:
        start = time.perf_counter()
        for _ in range(every):
            contestant.step()
        seconds += time.perf_counter() - start
        step += every
        reached = contestant.accuracy(scenes)
        best = max(best, reached)
        print(f"  step {step}, {seconds:.0f} s: {100 * reached:.1f}%", flush=True)
        if reached >= accuracy:
            break
    return {"steps": step, "seconds": seconds, "accuracy": best, "reached": float(best >= accuracy)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_pyro", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pyro-air", type=Path, required=True, metavar="DIR", help="examples/air of a Pyro checkout")
    parser.add_argument("--estimator", nargs="+", default=list(OURS), choices=OURS,
                        help="our estimators (default: both)")
    parser.add_argument("--compile", action="store_true", help="time ours compiled as well")
    parser.add_argument("--bf16", action="store_true", help="time ours in bf16 as well")
    parser.add_argument("--steps", type=int, default=80, help="timed steps of each (default: 80)")
    parser.add_argument("--to-accuracy", type=float, metavar="SHARE",
                        help="train from scratch until this share is counted right")
    parser.add_argument("--limit", type=float, default=3600,
                        help="seconds of training after which to give up (default: 3600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data.root", dest="data_root", default=data_root(),
                        help="folder that holds MNIST/raw ($AIR_DATA_ROOT, or data)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return parser


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with the parser's error if the arguments are wrong or something is not installed."""
    missing = [name for name in ("air.py", "main.py", "modules.py") if not (args.pyro_air / name).exists()]
    if missing:
        parser.error(f"--pyro-air {args.pyro_air}: no {', '.join(missing)} there; it must be examples/air of a "
                     "checkout of Pyro's repository")
    if importlib.util.find_spec("pyro") is None:
        parser.error("Pyro is not installed: pip install pyro-ppl")
    if min(args.steps, args.threads) < 1 or (args.to_accuracy is not None and not 0 < args.to_accuracy <= 1):
        parser.error("--steps and --threads must be at least 1, --to-accuracy in (0, 1]")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the JSON file."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check(parser, args)
    torch.set_num_threads(args.threads)
    try:
        dataset = load_dataset(MultiMNIST(root=args.data_root))
    except DataError as error:
        parser.error(str(error))
    makers: dict[str, Callable[..., Contestant]] = {"Pyro nvil": partial(Peer, args.pyro_air)}
    for precision in (("fp32", "bf16") if args.bf16 else ("fp32",)):
        for compiled in ((False, True) if args.compile else (False,)):
            makers |= {f"air {name}, {precision}{', compiled' if compiled else ''}":
                       partial(Ours, name, compiled=compiled, precision=precision) for name in args.estimator}

    if args.to_accuracy is None:
        rows = step_times({name: make(dataset=dataset, seed=args.seed) for name, make in makers.items()}, args.steps)
    else:
        rows, scenes = {}, dataset.held_out[:EVAL_SCENES]
        for name, make in makers.items():
            print(name, flush=True)
            torch.manual_seed(args.seed)
            rows[name] = time_to_accuracy(make(dataset=dataset, seed=args.seed), scenes, args.to_accuracy, args.limit,
                                          every=500 if name.startswith("Pyro") else 50)
    columns = list(next(iter(rows.values())))
    print("| | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.4g}" for column in columns) + " |")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        arguments = {name: getattr(args, name) for name in ("seed", "to_accuracy", "limit", "steps")}
        args.json.write_text(json.dumps({**machine("cpu"), **arguments, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
