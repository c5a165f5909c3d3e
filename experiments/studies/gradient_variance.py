#!/usr/bin/env python
"""Variance and bias of each estimator's gradient, network by network.

    python -m experiments.studies.gradient_variance           # write the results and the plot
    python -m experiments.studies.gradient_variance --table   # print the table of existing results

One nvil run of the recipe is stopped at three moments. At each, each estimator's gradient is drawn many times on the
same batch, at the same parameters and without exploration. For each network's part g of the gradient the table gives

    sd    sqrt(E |g - E g|²) / |E g of enumerate|, where g averages the draws that fit into enumerate's time for one
    bias  |E g - E g of enumerate with as many particles| / |E g of enumerate|

The estimate of the squared bias is unbiased: the mean inner product of differences from distinct blocks of draws. It
can therefore be negative. Its standard error is a jackknife over the blocks.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from air import NVIL, VIMCO, Enumerate
from air.config import default_config, with_settings
from air.data import DataError, data_root, load_dataset
from air.inference.estimator import Estimator
from air.models.base import CountingModel
from air.recipe import STEPS, resolve
from air.training.machine import machine
from air.training.trainer import Trainer
from experiments.records import RESULTS, ROOT

RESULTS_FILE = RESULTS / "gradient-variance.json"
NETWORKS = {"rnn": "recurrent net", "predict": "predict", "encode": "encoder", "decode": "decoder"}
BLOCKS = 10  # of draws, for the standard errors of the biases
REFERENCE = "enumerate"


def estimators(model: CountingModel, nvil: NVIL, particles: int) -> dict[str, Estimator]:
    """The estimators to compare, around one model: exploration is off, NVIL's baseline is that of `nvil`."""
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
        objective.eval()  # keeps NVIL's running moments fixed
        objective.exploration.zero_()
    return compared


class Draws:
    """Statistics of the gradients that one estimator draws at one moment, enough for their variance and bias."""

    def __init__(self, objective: Estimator, images: Tensor, draws: int) -> None:
        """Draw gradients on a batch of images, in BLOCKS equal blocks and at least one in each."""
        parts = {name: list(getattr(objective.model, name).parameters()) for name in NETWORKS}
        per_block = max(1, draws // BLOCKS)
        self.count = per_block * BLOCKS
        self.blocks: dict[str, list[Tensor]] = {name: [] for name in NETWORKS}  # mean gradients, flattened
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
        """E g of a network, flattened."""
        return torch.stack(self.blocks[name]).mean(0)

    def variance(self, name: str) -> float:
        """The unbiased estimate of E |g - E g|² for a network."""
        return (self.squares[name] - self.count * self.mean(name).square().sum().item()) / (self.count - 1)


def squared_bias(blocks: Sequence[Tensor], reference: Sequence[Tensor]) -> tuple[float, float]:
    """An unbiased estimate of |E g - E g'|² and its standard error.

    Args:
        blocks: the mean of g over each of several independent blocks of draws.
        reference: the same of g'.
    """
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
    """Milliseconds, and sd and bias by network as the module's docstring defines them, for each estimator."""
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
    """Train to each moment and measure there: moment -> the result of `figures`."""
    images = trainer.dataset.held_out.images[:trainer.config.optim.batch_size]
    result = {}
    for moment in sorted(moments):
        while trainer.step < moment:
            trainer.train_step()
        assert isinstance(trainer.objective, NVIL)
        state = torch.get_rng_state()  # so that measuring does not change the run
        drawn = {}
        compared = estimators(trainer.model, trainer.objective, particles)
        for name, objective in tqdm(compared.items(), desc=f"step {moment}"):
            drawn[name] = Draws(objective, images, draws)
        trainer.objective.train()
        torch.set_rng_state(state)
        result[moment] = figures(drawn, particles)
    return result


def table(moments: Mapping[Any, dict[str, Any]]) -> str:
    """Markdown table of sd and, in brackets, bias by network."""
    lines = ["| step | estimator | ms | " + " | ".join(NETWORKS.values()) + " |",
             "| --- " * (3 + len(NETWORKS)) + "|"]
    for moment, by_estimator in moments.items():
        for name, result in by_estimator.items():
            cells = " | ".join(cell(result["networks"][network]) for network in NETWORKS)
            lines.append(f"| {moment} | {name} | {result['ms']:.0f} | {cells} |")
    return "\n".join(lines)


def cell(part: dict[str, float]) -> str:
    """A table cell, "sd (bias)"; "sd (< bound)" where the bias is within three standard errors of 0."""
    if "squared_bias" not in part:
        return f"{part['sd']:.2g}"
    squared, margin = max(0.0, part["squared_bias"]), 3 * part["squared_bias_error"]
    bias = f"{math.sqrt(squared):.2g}" if squared > margin else f"< {math.sqrt(squared + margin):.2g}"
    return f"{part['sd']:.2g} ({bias})"


def plot(moments: dict[int, dict[str, Any]], file: Path) -> None:
    """Plot the sd at equal compute, one panel a moment."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, len(moments), sharey=True, squeeze=False)[0]
    for axis, (moment, by_estimator) in zip(axes, moments.items()):
        for offset, (name, result) in enumerate(by_estimator.items()):
            sds = [result["networks"][network]["sd"] for network in NETWORKS]
            places = [place + 0.11 * (offset - (len(by_estimator) - 1) / 2) for place in range(len(NETWORKS))]
            axis.bar(places, sds, 0.11, label=name)
        axis.set(title=f"step {moment}", yscale="log")
        axis.set_xticks(range(len(NETWORKS)), list(NETWORKS.values()))
    axes[0].set_ylabel("sd of the gradient / its norm,\nat equal compute")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=110)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.gradient_variance", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="multi-mnist", choices=("multi-mnist", "sprites"))
    parser.add_argument("--data.root", dest="data_root", default=data_root(),
                        help="folder that holds MNIST/raw ($AIR_DATA_ROOT, or data)")
    parser.add_argument("--moments", type=int, nargs="+", default=[250, 1000, STEPS["nvil"]],
                        help="steps of the run at which to measure")
    parser.add_argument("--draws", type=int, default=200, help="gradients drawn of each estimator at each moment")
    parser.add_argument("--particles", type=int, default=3, metavar="K")
    parser.add_argument("--json", type=Path, default=RESULTS_FILE, metavar="FILE")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "gradient_variance.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="only print the table of existing results")
    return parser


def load_moments() -> dict[str, dict[str, Any]]:
    """The latest results: moment -> the result of `figures`."""
    return json.loads(RESULTS_FILE.read_text())["moments"]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the JSON file and the plot, print the table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.table:
        print(table(json.loads(args.json.read_text())["moments"]))
        return
    if min(args.moments) < 1 or args.draws < 2 * BLOCKS or args.particles < 2:
        parser.error(f"--moments must be at least 1, --particles 2, --draws {2 * BLOCKS}")
    changes = {"optim.steps": max(STEPS["nvil"], *args.moments), "run.seed": args.seed, "run.device": "cpu"}
    if args.dataset == "multi-mnist":
        changes["data.root"] = args.data_root
    config = with_settings(default_config(args.dataset, "nvil"), changes)
    try:
        dataset = load_dataset(config.data)
    except DataError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(resolve(config, dataset), dataset, Path(folder))
        moments = measure(trainer, args.moments, args.draws, args.particles)
    report = {**machine("cpu"), "dataset": args.dataset, "seed": args.seed, "draws": args.draws,
              "particles": args.particles, "moments": moments}
    args.json.write_text(json.dumps(report, indent=2) + "\n")
    plot(moments, args.plot)
    print(table(moments))


if __name__ == "__main__":
    main()
