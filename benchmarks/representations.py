#!/usr/bin/env python
"""What labels cost on top of frozen codes: the sum and the order of two digits, from few labelled scenes.

    python benchmarks/representations.py             # trains what is missing under --runs, measures, tabulates, plots
    python benchmarks/representations.py --seeds 0 1 # those seeds only; each has a file of its own
    python benchmarks/representations.py --table     # prints the table of all files, and plots them

AIR and DAIR are trained as by train.py, without labels, on scenes with 0, 1 and 2 digits; so is a plain VAE of as many
parameters. Then scenes with two digits are labelled with the digits' sum (19 classes) and with whether they ascend from
left to right (the same digit twice does). An MLP learns either from the codes of so many labelled scenes; a CNN learns
it from their pixels. Every fifth labelled scene is held back to choose when to stop. Accuracy is that on scenes of
MNIST's test digits.

What is learned is which digit stands to the left, and which to the right, as two distributions over ten values; the
answer's follows by arithmetic. No label names a digit. AIR's head reads one object at a time, the same for both; the
other methods have one code, or one image, for both. "CNN, classes" is told nothing of arithmetic: it has an output for
each class.

All of them, the CNN too, look at a scene five times: as it is, and moved by a pixel towards each corner. A classifier
learns from any look, and its answer is the mean over the five.

Source: the experiment of Eslami et al. (2016), section 3.1.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from heads import ANSWERS, BATCH, CHUNK, CLASSES, Make, answers, by_object, cnn, cnn_classes, learn, of_code
from machine import machine
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm
from trained import ROOT, RUNS, trained

import air
from air.data import DataError, Scenes, load_dataset, multi_mnist
from air.models.networks import Decoder, Encoder
from air.models.spatial import invert_z_where
from air.training.step import shifted

KINDS = ("AIR", "DAIR")
LABELLED, TEST = 62_500, 10_000  # scenes
SIZES = (50, 200, 1000, 5000, 50_000)
LOOKS = ((0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))  # pixels that a scene is moved by: to the right, down
TITLES = {"sum": "sum of the two digits", "order": "ascending from left to right"}
VAE_HIDDEN, VAE_CODE = (600, 200), 108  # as many numbers as AIR's two objects have
VAE_STEPS = 4000  # as AIR's


class VAE(nn.Module):
    """A plain VAE of whole images, with AIR's likelihood."""

    def __init__(self, model: air.AIR) -> None:
        super().__init__()
        pixels = model.channels * model.x_size**2
        self.likelihood_sd = model.likelihood_sd
        self.encode = Encoder(pixels, VAE_HIDDEN, VAE_CODE, "ReLU")
        self.decode = Decoder(VAE_CODE, VAE_HIDDEN[::-1], model.channels, model.x_size, None, False, "ReLU")

    def loss(self, images: Tensor) -> Tensor:
        """-ELBO in nats an image but for a constant, of images (B, C, H, W)."""
        loc, scale = self.encode(images)
        error = (images - self.decode(loc + scale * torch.randn_like(loc))).square().sum((1, 2, 3))
        kl = ((scale.square() + loc.square() - 1) / 2 - scale.log()).sum(-1)
        return (error / (2 * self.likelihood_sd**2) + kl).mean()


def train_vae(model: air.AIR, images: Tensor, seed: int) -> VAE:
    """As AIR is: on as many scenes, moved as far, with the recipe's optimiser."""
    torch.manual_seed(seed)
    vae = VAE(model)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, VAE_STEPS)
    for _ in tqdm(range(VAE_STEPS), desc=f"VAE, seed {seed}", disable=not sys.stderr.isatty()):
        optimizer.zero_grad()
        vae.loss(shifted(images[torch.randint(len(images), (BATCH,))], 2) / 255).backward()
        optimizer.step()
        schedule.step()
    return vae


def looks(images: Tensor) -> list[Tensor]:
    """The images (M, C, H, W) as they are moved by LOOKS, black where they were not."""
    height, width = images.shape[-2:]
    bordered = F.pad(images, [1] * 4)
    return [bordered[..., 1 - down:1 - down + height, 1 - right:1 - right + width] for right, down in LOOKS]


@torch.no_grad()
def air_codes(model: air.AIR, images: Tensor) -> Tensor:
    """The objects' z_pres, z_where and z_what, from left to right, what is absent 0: (M, N, 1 + 3 + D)."""
    codes = []
    for chunk in images.split(CHUNK):
        seen = model.infer(chunk)
        code = torch.cat((seen.z_pres[..., None], seen.z_where, seen.z_what), -1) * seen.z_pres[..., None]
        across = invert_z_where(seen.z_where)[..., 1].where(seen.z_pres > 0, torch.inf)  # absent ones come last
        codes.append(code.take_along_dim(across.argsort(-1)[..., None], 1))
    return torch.cat(codes)


@torch.no_grad()
def vae_codes(vae: VAE, images: Tensor) -> Tensor:
    """The means of q(z | x), (M, VAE_CODE)."""
    return torch.cat([vae.encode(chunk / 255)[0] for chunk in images.split(CHUNK)])


def tasks(scenes: Scenes) -> dict[str, Tensor]:
    """Of scenes with two digits: task -> class, (M,)."""
    left, right = scenes.labels.take_along_dim(scenes.boxes[..., 0].argsort(-1), -1).unbind(-1)
    return {task: answer(left, right) for task, answer in ANSWERS.items()}


def measure(seed: int, args: argparse.Namespace, labelled: Scenes, test: Scenes, unlabelled: Scenes
            ) -> list[dict[str, Any]]:
    """One seed's models and classifiers: a record for each task, method and number of labels."""
    models = {kind: trained(kind, seed, args.runs, args.data_root) for kind in KINDS}
    vae = train_vae(models["AIR"], unlabelled.images, seed)
    images, test_images = looks(labelled.images), looks(test.images)
    inputs: dict[str, tuple[Make, list[Tensor], list[Tensor]]] = {
        kind: (by_object, [air_codes(model, look) for look in images], [air_codes(model, look) for look in test_images])
        for kind, model in models.items()}
    inputs["VAE"] = of_code, [vae_codes(vae, look) for look in images], [vae_codes(vae, look) for look in test_images]
    inputs |= {"CNN": (cnn, images, test_images), "CNN, classes": (cnn_classes, images, test_images)}
    parameters = {"VAE": count(vae), **{kind: count(model) for kind, model in models.items()}}
    labels, test_labels = tasks(labelled), tasks(test)
    order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(seed))
    records = []
    for size in tqdm(args.sizes, desc=f"labels, seed {seed}", disable=not sys.stderr.isatty()):
        for task in CLASSES:
            for method, (make, codes, test_codes) in inputs.items():
                chosen = order[:size]
                net = learn(make, [look[chosen] for look in codes], labels[task][chosen], task, seed)
                right = answers(net, test_codes) == test_labels[task]
                records.append({"task": task, "method": method, "labels": size, "seed": seed,
                                "accuracy": right.float().mean().item(), "parameters": parameters.get(method)})
    return records


def count(net: nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in net.parameters())


def by_size(records: Sequence[dict[str, Any]], task: str, method: str) -> dict[int, list[float]]:
    """Number of labels -> the seeds' accuracies, in %."""
    found: dict[int, list[float]] = {}
    for record in records:
        if (record["task"], record["method"]) == (task, method):
            found.setdefault(record["labels"], []).append(100 * record["accuracy"])
    return found


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and, in brackets, worst accuracy of the seeds, in %."""
    sizes = sorted({record["labels"] for record in records})
    methods = list(dict.fromkeys(record["method"] for record in records))
    lines = ["| task | features | " + " | ".join(f"{size:,}" for size in sizes) + " |",
             "| --- | --- |" + " --- |" * len(sizes)]
    for task in CLASSES:
        for method in methods:
            found = by_size(records, task, method)
            cells = " | ".join(f"{statistics.mean(found[size]):.1f} ({min(found[size]):.1f})" for size in sizes)
            lines.append(f"| {task} | {method} | {cells} |")
    return "\n".join(lines)


def usual_answer(task: str) -> float:
    """How often the most frequent answer is right, over all pairs of digits."""
    left, right = torch.meshgrid(torch.arange(10), torch.arange(10), indexing="ij")
    return ANSWERS[task](left, right).flatten().bincount().max().item() / left.numel()


def plot(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Accuracy against labels, a panel a task, a line a method, a dot a seed; dotted: the most frequent answer."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, len(CLASSES), squeeze=False)[0]
    for axis, task in zip(axes, CLASSES):
        for method in dict.fromkeys(record["method"] for record in records):
            found = by_size(records, task, method)
            line, = axis.plot(list(found), [statistics.mean(values) for values in found.values()], label=method)
            for size, values in found.items():
                axis.plot([size] * len(values), values, ".", color=line.get_color(), markersize=4)
        axis.axhline(100 * usual_answer(task), color="grey", linestyle=":", linewidth=1)
        axis.set(xscale="log", xlabel="labelled scenes", title=TITLES[task], ylim=(0, 101))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test scenes right, %")
    axes[-1].legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=110)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default=os.environ.get("AIR_DATA_ROOT", "data"))
    parser.add_argument("--runs", type=Path, default=RUNS, help="of AIR and DAIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of labelled scenes")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "representations")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "representations.png")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table and plot")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write a JSON file a seed and the plot, print the table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if min(args.sizes) < 10 or max(args.sizes) > LABELLED:
        parser.error(f"--sizes must lie in 10..{LABELLED}")
    if not args.table:
        try:
            unlabelled = load_dataset("multi-mnist", args.data_root).train
            labelled, test = (multi_mnist(args.data_root, train, size, (2,), seed=1)
                              for train, size in ((True, LABELLED), (False, TEST)))
        except DataError as error:
            parser.error(str(error))
        args.results.mkdir(parents=True, exist_ok=True)
        for seed in args.seeds:
            report = {**machine("cpu"), "records": measure(seed, args, labelled, test, unlabelled)}
            (args.results / f"seed{seed}.json").write_text(json.dumps(report, indent=1) + "\n")
    files = sorted(args.results.glob("seed*.json"))
    if not files:
        parser.error(f"there are no results in {args.results}")
    records = [record for file in files for record in json.loads(file.read_text())["records"]]
    plot(records, args.plot)
    print(table(records))


if __name__ == "__main__":
    main()
