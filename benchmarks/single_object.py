#!/usr/bin/env python
"""Shape and pose of a single object in 3D, found in three ways from the same images.

    python benchmarks/single_object.py             # trains what is missing, measures, draws
    python benchmarks/single_object.py --table     # prints the table of the results

SceneAIR is trained by train.py, without labels, unless its run is there. The supervised network is the same as its
guide, is trained on as many batches, and told the true shapes, places and rotations: cross-entropy and squared errors.
Optimisation has no network: for every image, Adam ascends log p(x, z) for each shape from several draws of the prior,
the renderer growing sharp as in training, and the best result counts. It is also stopped early, where SceneAIR is as
good.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm
from trained import ROOT, train_unless_there

import air
from air.data import Scenes, load_dataset
from air.evaluation.pictures import grid_picture, to_rgb
from air.models.base import Inference
from air.models.distributions import normal_log_prob
from air.scenes3d.guides import SceneSearch
from air.scenes3d.model import CONTRAST, SceneAIR
from air.scenes3d.poses import pose_errors
from air.scenes3d.renderer import SHAPES, render

BATCH, ASCENT, STEP = 64, 200, 0.05  # images a step; steps of the optimisation, and Adam's rate there
WAYS = ((1, ASCENT), (10, ASCENT), (10, 40))  # starts and steps
LONG_ENOUGH = 0.5  # s; what takes less is timed again, until that is over
STRIP, FILM = (0, 5, 10, 20, 50, 100, ASCENT), (*range(0, 60, 3), *range(60, ASCENT + 1, 10))  # steps that are shown
FRAME, SHOWN = 120, 4  # ms; images
Found = tuple[Tensor, Tensor]  # shapes (B,), poses (B, 4)


@torch.no_grad()
def by_inference(model: SceneAIR, images: Tensor) -> Found:
    """What SceneAIR infers, whatever it counts."""
    seen = [model.infer(batch) for batch in images.split(BATCH)]
    return torch.cat([each.z_what[:, 0].argmax(-1) for each in seen]), torch.cat([each.z_where[:, 0] for each in seen])


class Supervised(nn.Module):
    """A SceneAIR's guide, its numbers taken for what they say; rotation is a number, in turns of the whole circle."""

    def __init__(self, model: SceneAIR) -> None:
        super().__init__()
        self.fresh = SceneAIR(1, model.object_size, model.view, search=isinstance(model.guide, SceneSearch))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, S), places (B, 2), rotations (B,)."""
        left = CONTRAST * (self.fresh.as_images(images) - self.fresh.empty)
        out = self.fresh.guide.start(left, 1)(None, left.new_zeros(len(left), sum(self.fresh.sizes)))
        _, logits, where, turn, _ = out.split((*self.fresh.sizes, sum(self.fresh.sizes[2:])), -1)
        return logits, self.fresh.poses(where, turn)[:, 0, :2], turn[:, 0]

    def fit(self, scenes: Scenes, steps: int) -> None:
        """Adam at 1e-3, falling to 0 along a cosine."""
        assert scenes.poses is not None
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in tqdm(range(steps), desc="supervised", disable=not sys.stderr.isatty()):
            chosen = torch.randint(len(scenes), (BATCH,))
            logits, place, rotation = self(scenes.images[chosen])
            pose = scenes.poses[chosen, 0]
            loss = F.cross_entropy(logits, scenes.labels[chosen, 0]) + F.mse_loss(place, pose[:, :2]) + F.mse_loss(
                rotation, pose[:, 2] / (2 * math.pi))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def find(self, images: Tensor) -> Found:
        logits, place, rotation = (torch.cat(each) for each in zip(*map(self, images.split(BATCH))))
        return logits.argmax(-1), torch.stack((*place.unbind(-1), 2 * math.pi * rotation,
                                               torch.full_like(rotation, self.fresh.object_size)), -1)


class Ascent:
    """Adam on log p(x, z) of each image, for every shape from several draws of the prior; no network."""

    def __init__(self, model: SceneAIR, images: Tensor, starts: int) -> None:
        """Args: model: its renderer, prior and likelihood. images: (B, 3, H, W)."""
        self.model = SceneAIR(1, model.object_size, model.view, likelihood_sd=model.likelihood_sd)
        images, shapes = model.as_images(images), len(SHAPES)
        self.rows = images.repeat_interleave(shapes * starts, 0)  # row (b S + s) R + r
        self.what = torch.arange(shapes).repeat_interleave(starts).repeat(len(images))[:, None]
        self.z = torch.randn(len(self.rows), 1, sum(self.model.sizes[2:])).requires_grad_()
        self.optimizer = torch.optim.Adam([self.z], lr=STEP)
        self.images = len(images)

    def step(self, share: float) -> None:
        """One step, the renderer as sharp as in training when this share of it is done."""
        self.model.anneal(share)
        self.optimizer.zero_grad()
        (-self._log_joint().sum()).backward()
        self.optimizer.step()

    @torch.no_grad()
    def best(self) -> Found:
        """What explains each image best so far, rendered sharp."""
        self.model.anneal(1.0)
        of_image = self._log_joint().view(self.images, -1).argmax(-1)
        row = of_image + torch.arange(self.images) * (len(self.rows) // self.images)
        found = self.what[row, 0]
        return found, self._poses()[row, 0, found]

    def _poses(self) -> Tensor:
        return self.model.poses(*self.z.split(self.model.sizes[2:], -1))

    def _log_joint(self) -> Tensor:
        prior = normal_log_prob(self.z, self.z.new_zeros(()), self.z.new_ones(())).sum((1, 2))
        return self.model.log_likelihood(self.rows, self.model.layers(self.what, self._poses()))[:, 1] + prior


def by_optimisation(model: SceneAIR, images: Tensor, starts: int, steps: int = ASCENT) -> Found:
    """The best of `starts` ascents for each shape."""
    ascent = Ascent(model, images, starts)
    for step in range(steps):
        ascent.step(step / steps)
    return ascent.best()


def frames(model: SceneAIR, images: Tensor, shown: Sequence[int], steps: int = ASCENT) -> list[Tensor]:
    """What an optimisation from one start has found after so many steps, rendered: (B, 3, H, W) each."""
    ascent, pictures = Ascent(model, images, 1), []
    for step in range(max(shown) + 1):
        if step:
            ascent.step((step - 1) / steps)
        if step in shown:
            pictures.append(rendered(model, ascent.best()))
    return pictures


@torch.no_grad()
def rendered(model: SceneAIR, found: Found) -> Tensor:
    """(B, 3, H, W)."""
    shape, pose = (each[:, None] for each in found)
    return render(shape, pose, torch.ones(shape.shape), model.view)


def draw(model: SceneAIR, images: Tensor, folder: Path) -> None:
    """optimisation.png, a strip of steps, and optimisation.gif: per-image optimisation beside one forward pass."""
    at_once = to_rgb(rendered(model, by_inference(model, images)))
    strip = frames(model, images, STRIP)
    picture = grid_picture(["input", *(f"{step} steps" for step in STRIP), "one forward pass"],
                           [to_rgb(images), *map(to_rgb, strip), at_once])
    to_pil_image(picture).save(folder / "optimisation.png")
    film = [to_pil_image(grid_picture(["input", f"{step} steps", "one forward pass"],
                                      [to_rgb(images), to_rgb(frame), at_once]))
            for step, frame in zip(FILM, frames(model, images, FILM))]
    film[0].save(folder / "optimisation.gif", save_all=True, append_images=film[1:], duration=FRAME, loop=0)


def measure(find: Callable[[Tensor], Found], scenes: Scenes) -> dict[str, float]:
    """Errors on scenes with one object each, and how long it takes, in ms an image."""
    assert scenes.poses is not None
    seconds: list[float] = []
    while sum(seconds) < LONG_ENOUGH:
        start = time.perf_counter()
        shape, pose = find(scenes.images)
        seconds.append(time.perf_counter() - start)
    none, one = torch.zeros(len(scenes)), torch.ones(len(scenes), 1)
    seen = Inference(none, none, one, pose[:, None], F.one_hot(shape, len(SHAPES))[:, None], none, none, none)
    errors = pose_errors(seen, scenes.labels, scenes.poses, one.bool(), torch.zeros(len(scenes), 1, dtype=torch.int64))
    rotations = {f"{name}_rotation": errors.rotation[scenes.labels[:, 0] == s] for s, name in enumerate(SHAPES)}
    medians = {name: each.nanmedian().item() for name, each in rotations.items() if not each.isnan().all()}
    return {"identity": errors.right.float().mean().item(), "place": errors.place.median().item(), **medians,
            "ms": 1e3 * statistics.median(seconds) / len(scenes)}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: the mean over the seeds, and the worst in brackets."""
    lines = ["| method | shapes right, % | place, % of the table | box's rotation, ° | cylinder's | ms an image |",
             "| --- | --- | --- | --- | --- | --- |"]
    for method in dict.fromkeys(record["method"] for record in records):
        cells = []
        for key, scale, digits, worst in (("identity", 100, 2, min), ("place", 100, 2, max),
                                          ("box_rotation", 1, 2, max), ("cylinder_rotation", 1, 2, max),
                                          ("ms", 1, 3, max)):
            values = [scale * record[key] for record in records if record["method"] == method and key in record]
            cells.append(f"{statistics.mean(values):.{digits}f} ({worst(values):.{digits}f})" if values else "-")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--steps", type=int, default=8000, help="of SceneAIR and of the supervised network (8000)")
    parser.add_argument("--images", type=int, default=64, help="held-out ones that are optimised (64)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "single-object")
    parser.add_argument("--data-root", default=os.environ.get("AIR_DATA_ROOT", "data"))
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "single-object.json")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs", metavar="DIR")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table of the JSON file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, draw, print the table, write the JSON."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if min(args.steps, args.images, args.threads) < 1:
        parser.error("--steps, --images and --threads must be at least 1")
    if args.table:
        print(table(json.loads(args.json.read_text())["records"]))
        return
    for folder in (args.json.parent, args.pictures):  # before hours of work that is to be written there
        folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    dataset = load_dataset("scenes-single", args.data_root)
    records = []
    for seed in args.seeds:
        out = args.runs / f"seed{seed}"
        train_unless_there(out, ["--dataset", "scenes-single", "--estimator", "enumerate", "--compile",
                                 "--steps", str(args.steps), "--seed", str(seed)], args.data_root)
        model = air.load_scene_model(out)
        torch.manual_seed(seed)
        supervised = Supervised(model)
        supervised.fit(dataset.train, args.steps)
        few = dataset.held_out[:args.images]
        ways: list[tuple[str, Callable[[Tensor], Found], Scenes]] = [
            ("SceneAIR", lambda images: by_inference(model, images), dataset.held_out),
            ("supervised", supervised.find, dataset.held_out),
            *((f"optimisation, {starts} start{'s' if starts > 1 else ''}, {steps} steps",
               lambda images, starts=starts, steps=steps: by_optimisation(model, images, starts, steps), few)
              for starts, steps in WAYS),
            ("SceneAIR, the images optimised", lambda images: by_inference(model, images), few)]
        for method, find, scenes in ways:
            records.append({"method": method, "seed": seed, "images": len(scenes), **measure(find, scenes)})
            print(records[-1], flush=True)
        args.json.write_text(json.dumps({**machine("cpu"), "steps": args.steps, "records": records}, indent=2) + "\n")
        if seed == args.seeds[0]:
            draw(model, dataset.held_out.images[:SHOWN], args.pictures)
    print(table(records))


if __name__ == "__main__":
    main()
