#!/usr/bin/env python
"""How noisy each estimator's gradient is, and whether it is the right one in the mean, network by network.

    python benchmarks/gradient_variance.py           # writes benchmarks/results/gradient-variance.json and the plot
    python benchmarks/gradient_variance.py --table   # of what was measured before

One nvil run of the recipe is stopped at three moments. There, on the same batch and at the same parameters, without
exploration, each estimator's gradient is drawn many times. Of each network's part of it the table gives

    sd    sqrt(E |g - E g|²) / |E g of enumerate|, of the mean of as many draws as take the time of one of enumerate's
    bias  |E g - E g of enumerate with as many particles| / |E g of enumerate|

Of a squared bias the estimate has no bias of its own: it is the mean inner product of the differences of different
blocks of draws, and can come out negative; beside it stands the standard error, jackknifed over the blocks.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from air import NVIL, VIMCO, Enumerate
from air.data import DataError, load_dataset
from air.inference.estimators import Estimator
from air.models.base import CountingModel
from air.recipe import STEPS, configure
from air.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
NETWORKS = {"rnn": "recurrent net", "predict": "predict", "encode": "encoder", "decode": "decoder"}
BLOCKS = 10  # of draws, for the biases' errors
REFERENCE = "enumerate"


def estimators(model: CountingModel, nvil: NVIL, particles: int) -> dict[str, Estimator]:
    """What is compared: all around the same model, none exploring; nvil with the baseline of its run."""
    several = f"K = {particles}"
    compared: dict[str, Estimator] = {
        REFERENCE: Enumerate(model), "nvil": NVIL(model), "nvil, one draw": NVIL(model, draws=1),
        "nvil, one draw, no baseline": NVIL(model, draws=1),
        f"{REFERENCE}, {several}": Enumerate(model, particles=particles),
        f"vimco, {several}": VIMCO(model, particles=particles),
        f"vimco, one draw, {several}": VIMCO(model, particles=particles, draws=1)}
    for name, objective in compared.items():
        if isinstance(objective, NVIL):
            objective.load_state_dict(nvil.state_dict())
            objective.baseline = None if "no baseline" in name else objective.baseline
        objective.eval()  # nvil's moments stay
        objective.exploration.zero_()
    return compared


class Draws:
    """Gradients of one estimator at one moment: what is needed of them to tell variance and bias."""

    def __init__(self, objective: Estimator, images: Tensor, draws: int) -> None:
        parts = {name: list(getattr(objective.model, name).parameters()) for name in NETWORKS}
        per_block = max(1, draws // BLOCKS)
        self.count = per_block * BLOCKS
        self.blocks: dict[str, list[Tensor]] = {name: [] for name in NETWORKS}  # mean gradients, flat
        self.squares = dict.fromkeys(NETWORKS, 0.0)  # Σ |g|²
        seconds = []
        for _ in range(BLOCKS):
            sums = {name: torch.zeros(sum(p.numel() for p in part)) for name, part in parts.items()}
            for _ in range(per_block):
                start = time.perf_counter()
                objective.zero_grad()
                objective(images)[0].backward()
                seconds.append(time.perf_counter() - start)
                for name, part in parts.items():
                    gradient = torch.cat([p.grad.flatten() for p in part if p.grad is not None])
                    self.squares[name] += gradient.square().sum().item()
                    sums[name] += gradient
            for name, total in sums.items():
                self.blocks[name].append(total / per_block)
        self.seconds = sorted(seconds)[len(seconds) // 2]

    def mean(self, name: str) -> Tensor:
        """E g of a network, flat."""
        return torch.stack(self.blocks[name]).mean(0)

    def variance(self, name: str) -> float:
        """E |g - E g|²."""
        return (self.squares[name] - self.count * self.mean(name).square().sum().item()) / (self.count - 1)


def squared_bias(blocks: Sequence[Tensor], reference: Sequence[Tensor]) -> tuple[float, float]:
    """|E g - E g'|² and its standard error, from means over independent blocks of draws of either."""
    differences = torch.stack([ours - theirs for ours, theirs in zip(blocks, reference)]).double()
    products = differences @ differences.T

    def estimate(kept: Tensor) -> float:
        chosen = products[kept][:, kept]
        n = len(chosen)
        return ((chosen.sum() - chosen.diagonal().sum()) / (n * (n - 1))).item()

    every = torch.arange(len(products))
    left_out = torch.tensor([estimate(every[every != block]) for block in every])
    n = len(left_out)
    return estimate(every), math.sqrt((n - 1) / n * ((left_out - left_out.mean())**2).sum().item())


def figures(draws: dict[str, Draws], particles: int) -> dict[str, dict[str, Any]]:
    """Estimator -> its milliseconds, and sd and bias by network, as the module's docstring says."""
    result = {}
    for name, ours in draws.items():
        same_bound = draws[f"{REFERENCE}, K = {particles}" if "K = " in name else REFERENCE]
        networks = {}
        for network in NETWORKS:
            norm = draws[REFERENCE].mean(network).norm().item()
            per_time = ours.variance(network) * ours.seconds / draws[REFERENCE].seconds
            networks[network] = {"sd": math.sqrt(per_time) / norm,
                                 "sd_one_draw": math.sqrt(ours.variance(network)) / norm}
            if ours is not same_bound:
                bias, error = squared_bias(ours.blocks[network], same_bound.blocks[network])
                networks[network] |= {"squared_bias": bias / norm**2, "squared_bias_error": error / norm**2}
        result[name] = {"ms": 1e3 * ours.seconds, "networks": networks}
    return result


def measure(trainer: Trainer, moments: Sequence[int], draws: int, particles: int) -> dict[int, dict[str, Any]]:
    """Train to each moment, and measure there."""
    images = trainer.dataset.held_out.images[:trainer.config.batch_size]
    result = {}
    for moment in sorted(moments):
        while trainer.step < moment:
            trainer.train_step()
        assert isinstance(trainer.objective, NVIL)
        state = torch.get_rng_state()  # measuring does not change the run
        drawn = {}
        compared = estimators(trainer.model, trainer.objective, particles)
        for name, objective in tqdm(compared.items(), desc=f"step {moment}"):
            drawn[name] = Draws(objective, images, draws)
        trainer.objective.train()
        torch.set_rng_state(state)
        result[moment] = figures(drawn, particles)
    return result


def table(moments: Mapping[Any, dict[str, Any]]) -> str:
    """Markdown: sd and, in brackets, bias by network."""
    lines = ["| step | estimator | ms | " + " | ".join(NETWORKS.values()) + " |",
             "| --- " * (3 + len(NETWORKS)) + "|"]
    for moment, by_estimator in moments.items():
        for name, result in by_estimator.items():
            cells = " | ".join(cell(result["networks"][network]) for network in NETWORKS)
            lines.append(f"| {moment} | {name} | {result['ms']:.0f} | {cells} |")
    return "\n".join(lines)


def cell(part: dict[str, float]) -> str:
    """sd (bias), or (< three standard errors above it) where the bias is within three of 0."""
    if "squared_bias" not in part:
        return f"{part['sd']:.2g}"
    squared, margin = max(0.0, part["squared_bias"]), 3 * part["squared_bias_error"]
    bias = f"{math.sqrt(squared):.2g}" if squared > margin else f"< {math.sqrt(squared + margin):.2g}"
    return f"{part['sd']:.2g} ({bias})"


def plot(moments: dict[int, dict[str, Any]], file: Path) -> None:
    """sd at equal compute, a panel a moment."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, len(moments), sharey=True, squeeze=False)[0]
    for axis, (moment, by_estimator) in zip(axes, moments.items()):
        for offset, (name, result) in enumerate(by_estimator.items()):
            sds = [result["networks"][network]["sd"] for network in NETWORKS]
            places = [place + 0.11 * (offset - (len(by_estimator) - 1) / 2) for place in range(len(NETWORKS))]
            axis.bar(places, sds, 0.11, label=name)
        axis.set(title=f"step {moment}", yscale="log")
        axis.set_xticks(range(len(NETWORKS)), list(NETWORKS.values()))
    axes[0].set_ylabel("sd of the gradient / its norm,\nin the time of one of enumerate's")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=110)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="multi-mnist", choices=("multi-mnist", "sprites"))
    parser.add_argument("--data-root", default=os.environ.get("AIR_DATA_ROOT", "data"))
    parser.add_argument("--moments", type=int, nargs="+", default=[250, 1000, STEPS["nvil"]], help="steps of the run")
    parser.add_argument("--draws", type=int, default=200, help="of each gradient")
    parser.add_argument("--particles", type=int, default=3, metavar="K")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "gradient-variance.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "gradient_variance.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table of the JSON file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the JSON and the plot, print the table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.table:
        print(table(json.loads(args.json.read_text())["moments"]))
        return
    if min(args.moments) < 1 or args.draws < 2 * BLOCKS or args.particles < 2:
        parser.error(f"--moments must be at least 1, --particles 2, --draws {2 * BLOCKS}")
    try:
        dataset = load_dataset(args.dataset, args.data_root)
    except DataError as error:
        parser.error(str(error))
    steps = max(STEPS["nvil"], *args.moments)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(configure(dataset, seed=args.seed, estimator="nvil", steps=steps), dataset, Path(folder))
        moments = measure(trainer, args.moments, args.draws, args.particles)
    report = {**machine("cpu"), "dataset": args.dataset, "seed": args.seed, "draws": args.draws,
              "particles": args.particles, "moments": moments}
    args.json.write_text(json.dumps(report, indent=2) + "\n")
    plot(moments, args.plot)
    print(table(moments))


if __name__ == "__main__":
    main()
