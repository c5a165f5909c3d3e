#!/usr/bin/env python
"""Accuracy from few labels on top of frozen codes: the sum and the order of two digits.

    python -m experiments.studies.representations             # train what is missing under --runs, measure, plot
    python -m experiments.studies.representations --seeds 0 1 # these seeds only; each has a result file of its own
    python -m experiments.studies.representations --table     # tabulate and plot existing results

AIR and DAIR are trained without labels on scenes with 0, 1 and 2 digits, and so is a plain VAE with as many
parameters. Scenes with two digits are then labelled with the digits' sum (19 classes) and with whether they ascend
from left to right (ties do). An MLP learns either label from the codes of a number of labelled scenes; a CNN learns it
from the pixels. Every fifth labelled scene is held back for early stopping. Accuracy is on scenes of MNIST's test
digits.

Each classifier predicts two distributions over ten digits, left and right, and the distribution of the answer follows
by arithmetic; no label names a digit. AIR's head reads one object at a time, with shared weights; the other methods
read both digits from one code or image. "CNN, classes" has to learn the arithmetic: it has one output a class.

Every method sees five looks at a scene: the scene itself and its shifts by one pixel towards each corner. Training
draws one of them a step; predictions average over all five.

Source: Eslami et al. (2016), section 3.1.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import air
from air.data import DataError, MultiMNIST, Scenes, data_root, load_dataset
from air.models.networks import Decoder, Encoder
from air.models.spatial import invert_z_where
from air.training.machine import machine
from air.training.step import random_shift
from experiments.records import RESULTS, ROOT
from experiments.studies.heads import (
    ANSWERS,
    BATCH,
    CHUNK,
    CLASSES,
    Make,
    answers,
    by_object,
    cnn,
    cnn_classes,
    learn,
    of_code,
)
from experiments.studies.trained import RUNS, trained

KINDS = ("AIR", "DAIR")
LABELLED, TEST = 62_500, 10_000  # scenes
FOLDER = RESULTS / "representations"
SIZES = (50, 200, 1000, 5000, 50_000)
LOOKS = ((0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))  # shifts in pixels: right, down
TITLES = {"sum": "sum of the two digits", "order": "ascending from left to right"}
VAE_HIDDEN, VAE_CODE = (600, 200), 108  # the code is as large as those of AIR's two objects
VAE_STEPS = 4000  # the same as AIR's


class VAE(nn.Module):
    """A VAE of whole images with AIR's likelihood."""

    def __init__(self, model: air.AIR) -> None:
        super().__init__()
        pixels = model.channels * model.x_size**2
        self.likelihood_sd = model.likelihood_sd
        self.encode = Encoder(pixels, VAE_HIDDEN, VAE_CODE, "ReLU")
        self.decode = Decoder(VAE_CODE, VAE_HIDDEN[::-1], model.channels, model.x_size, None, False, "ReLU")

    def loss(self, images: Tensor) -> Tensor:
        """-ELBO of images (B, C, H, W) in nats an image, up to a constant."""
        loc, scale = self.encode(images)
        error = (images - self.decode(loc + scale * torch.randn_like(loc))).square().sum((1, 2, 3))
        kl = ((scale.square() + loc.square() - 1) / 2 - scale.log()).sum(-1)
        return (error / (2 * self.likelihood_sd**2) + kl).mean()


def train_vae(model: air.AIR, images: Tensor, seed: int) -> VAE:
    """Train a VAE on `model`'s training images, with the same shifts, number of steps and optimiser."""
    torch.manual_seed(seed)
    vae = VAE(model)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, VAE_STEPS)
    for _ in tqdm(range(VAE_STEPS), desc=f"VAE, seed {seed}", disable=not sys.stderr.isatty()):
        optimizer.zero_grad()
        vae.loss(random_shift(images[torch.randint(len(images), (BATCH,))], 2) / 255).backward()
        optimizer.step()
        schedule.step()
    return vae


def looks(images: Tensor) -> list[Tensor]:
    """The images (M, C, H, W) shifted by each of LOOKS; black moves in at the edges."""
    height, width = images.shape[-2:]
    bordered = F.pad(images, [1] * 4)
    return [bordered[..., 1 - down:1 - down + height, 1 - right:1 - right + width] for right, down in LOOKS]


@torch.no_grad()
def air_codes(model: air.AIR, images: Tensor) -> Tensor:
    """z_pres, z_where and z_what of the objects from left to right, 0 where absent: (M, N, 1 + 3 + D)."""
    codes = []
    for chunk in images.split(CHUNK):
        seen = model.infer(chunk)
        code = torch.cat((seen.z_pres[..., None], seen.z_where, seen.z_what), -1) * seen.z_pres[..., None]
        across = invert_z_where(seen.z_where)[..., 1].where(seen.z_pres > 0, torch.inf)  # absent objects sort last
        codes.append(code.take_along_dim(across.argsort(-1)[..., None], 1))
    return torch.cat(codes)


@torch.no_grad()
def vae_codes(vae: VAE, images: Tensor) -> Tensor:
    """Means of q(z | x), (M, VAE_CODE)."""
    return torch.cat([vae.encode(chunk / 255)[0] for chunk in images.split(CHUNK)])


def tasks(scenes: Scenes) -> dict[str, Tensor]:
    """The labels of scenes with two digits: task -> classes, (M,)."""
    left, right = scenes.labels.take_along_dim(scenes.boxes[..., 0].argsort(-1), -1).unbind(-1)
    return {task: answer(left, right) for task, answer in ANSWERS.items()}


def measure(seed: int, args: argparse.Namespace, labelled: Scenes, test: Scenes, unlabelled: Scenes
            ) -> list[dict[str, Any]]:
    """Train and test one seed's models and classifiers: one record for each task, method and number of labels."""
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
    """The number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def by_size(records: Sequence[dict[str, Any]], task: str, method: str) -> dict[int, list[float]]:
    """Number of labels -> accuracies of the seeds in %."""
    found: dict[int, list[float]] = {}
    for record in records:
        if (record["task"], record["method"]) == (task, method):
            found.setdefault(record["labels"], []).append(100 * record["accuracy"])
    return found


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown table of the seeds' mean and, in brackets, worst accuracy in %."""
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
    """Accuracy of always giving the most frequent answer, over all pairs of digits."""
    left, right = torch.meshgrid(torch.arange(10), torch.arange(10), indexing="ij")
    return ANSWERS[task](left, right).flatten().bincount().max().item() / left.numel()


def plot(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot accuracy over labels: a panel a task, a line a method, a dot a seed; dotted: the most frequent answer."""
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
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.representations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.root", dest="data_root", default=data_root(),
                        help="folder that holds MNIST/raw ($AIR_DATA_ROOT, or data)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs of AIR and DAIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of labelled scenes")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "representations.png")
    parser.add_argument("--table", action="store_true", help="only tabulate and plot existing results")
    return parser


def load_records(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The records of all seeds that have a result file."""
    return [record for file in sorted(folder.glob("seed*.json")) for record in json.loads(file.read_text())["records"]]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write one JSON file a seed and the plot, print the table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if min(args.sizes) < 10 or max(args.sizes) > LABELLED:
        parser.error(f"--sizes must lie in 10..{LABELLED}")
    if not args.table:
        digits = MultiMNIST(root=args.data_root)
        try:
            unlabelled = load_dataset(digits).train
            labelled, test = (digits.generate(train, size, (2,), seed=1) for train, size in ((True, LABELLED),
                                                                                             (False, TEST)))
        except DataError as error:
            parser.error(str(error))
        args.results.mkdir(parents=True, exist_ok=True)
        for seed in args.seeds:
            report = {**machine("cpu"), "records": measure(seed, args, labelled, test, unlabelled)}
            (args.results / f"seed{seed}.json").write_text(json.dumps(report, indent=1) + "\n")
    records = load_records(args.results)
    if not records:
        parser.error(f"there are no results in {args.results}")
    plot(records, args.plot)
    print(table(records))


if __name__ == "__main__":
    main()
