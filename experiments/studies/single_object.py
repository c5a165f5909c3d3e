#!/usr/bin/env python
"""Shape and pose of a single object in 3D: amortised inference, supervision and per-image optimisation compared.

    python -m experiments.studies.single_object             # train what is missing, measure, draw
    python -m experiments.studies.single_object --table     # print the table of existing results

SceneAIR is trained without labels by train.py, unless its run exists. The supervised network has the architecture of
its guide and sees as many batches, with the true shapes, places and rotations as targets: cross-entropy and squared
errors. Optimisation uses no network: for every image and shape, Adam ascends log p(x, z) from several draws of the
prior while the renderer grows as sharp as in training, and the best result counts. One variant stops early, where its
errors are about SceneAIR's.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

import air
from air.data import Scenes, SingleObject, load_dataset
from air.evaluation.pictures import grid_picture, to_rgb
from air.models.base import Inference
from air.scenes3d.guides import LATENTS, TURN, WHERE, SceneSearchGuide
from air.scenes3d.model import CONTRAST, SceneAIR
from air.scenes3d.poses import pose_errors
from air.scenes3d.renderer import SHAPES, render
from air.training.machine import machine
from experiments.records import RESULTS, ROOT
from experiments.studies.trained import train_if_missing

BATCH = 64  # images a step
ASCENT, RATE = 200, 0.05  # steps of the optimisation; its learning rate
OPTIMISATIONS = ((1, ASCENT), (10, ASCENT), (10, 40))  # starts and steps
LEAST_SECONDS = 0.5  # of timing: faster methods are timed repeatedly
STRIP, FILM = (0, 5, 10, 20, 50, 100, ASCENT), (*range(0, 60, 3), *range(60, ASCENT + 1, 10))  # steps that are drawn
FRAME, SHOWN = 120, 4  # ms a frame; images
RESULTS_FILE = RESULTS / "single-object.json"
Found = tuple[Tensor, Tensor]  # shapes (B,), poses (B, 4)


@torch.no_grad()
def by_inference(model: SceneAIR, images: Tensor) -> Found:
    """SceneAIR's first object, whatever count it infers."""
    seen = [model.infer(batch) for batch in images.split(BATCH)]
    return torch.cat([each.z_what[:, 0].argmax(-1) for each in seen]), torch.cat([each.z_where[:, 0] for each in seen])


class Supervised(nn.Module):
    """A fresh SceneAIR guide as a regression network; the rotation is one number, in turns of the full circle."""

    def __init__(self, model: SceneAIR) -> None:
        super().__init__()
        self.fresh = SceneAIR(1, model.object_size, model.view,
                              guide="search" if isinstance(model.guide_net, SceneSearchGuide) else "recurrent")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, S), places (B, 2), rotations (B,)."""
        residual, guide = CONTRAST * (self.fresh.as_images(images) - self.fresh.empty), self.fresh.guide_net
        proposal, _ = guide.step(guide.start(residual, 1), None, [residual.new_zeros(1, LATENTS)])
        where, turn = proposal.loc.split((WHERE, TURN), -1)
        return proposal.what, self.fresh.poses(where, turn)[:, 0, :2], turn[:, 0]

    def fit(self, scenes: Scenes, steps: int) -> None:
        """Train with Adam; its learning rate falls from 1e-3 to 0 along a cosine."""
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
        """Predict shapes (B,) and poses (B, 4) of images (B, 3, H, W)."""
        logits, place, rotation = (torch.cat(each) for each in zip(*map(self, images.split(BATCH))))
        return logits.argmax(-1), torch.stack((*place.unbind(-1), 2 * math.pi * rotation,
                                               torch.full_like(rotation, self.fresh.object_size)), -1)


class Ascent:
    """Maximises log p(x, z) of each image by Adam, for every shape and from several draws of the prior."""

    def __init__(self, model: SceneAIR, images: Tensor, starts: int) -> None:
        """Args:
            model: gives the renderer, prior and likelihood.
            images: (B, 3, H, W).
            starts: draws of the prior for each image and shape.
        """
        self.model = SceneAIR(1, model.object_size, model.view, likelihood_sd=model.likelihood_sd)
        images, shapes = model.as_images(images), len(SHAPES)
        self.rows = images.repeat_interleave(shapes * starts, 0)  # row (b S + s) R + r
        self.what = torch.arange(shapes).repeat_interleave(starts).repeat(len(images))[:, None]
        self.z = torch.randn(len(self.rows), 1, WHERE + TURN).requires_grad_()
        self.optimizer = torch.optim.Adam([self.z], lr=RATE)
        self.images = len(images)

    def step(self, share: float) -> None:
        """Take one step, with the renderer as sharp as after this share of SceneAIR's training."""
        self.model.anneal(share)
        self.optimizer.zero_grad()
        (-self._log_joint().sum()).backward()
        self.optimizer.step()

    @torch.no_grad()
    def best(self) -> Found:
        """The shape and pose with the highest log p(x, z) of each image, under the sharp renderer."""
        self.model.anneal(1.0)
        of_image = self._log_joint().view(self.images, -1).argmax(-1)
        row = of_image + torch.arange(self.images) * (len(self.rows) // self.images)
        found = self.what[row, 0]
        return found, self._poses()[row, 0, found]

    def _poses(self) -> Tensor:
        return self.model.poses(*self.z.split((WHERE, TURN), -1))

    def _log_joint(self) -> Tensor:
        prior = Normal(0.0, 1.0).log_prob(self.z).sum((1, 2))
        return self.model.log_likelihood(self.rows, self.model.layers(self.what, self._poses()))[:, 1] + prior


def by_optimisation(model: SceneAIR, images: Tensor, starts: int, steps: int = ASCENT) -> Found:
    """The best of `starts` ascents for each shape of each image."""
    ascent = Ascent(model, images, starts)
    for step in range(steps):
        ascent.step(step / steps)
    return ascent.best()


def frames(model: SceneAIR, images: Tensor, shown: Sequence[int], steps: int = ASCENT) -> list[Tensor]:
    """Render the state of an optimisation from one start after each number of steps in `shown`: (B, 3, H, W) each."""
    ascent, pictures = Ascent(model, images, 1), []
    for step in range(max(shown) + 1):
        if step:
            ascent.step((step - 1) / steps)
        if step in shown:
            pictures.append(rendered(model, ascent.best()))
    return pictures


@torch.no_grad()
def rendered(model: SceneAIR, found: Found) -> Tensor:
    """Render one object an image: (B, 3, H, W)."""
    shape, pose = (each[:, None] for each in found)
    return render(shape, pose, torch.ones(shape.shape), model.view)


def draw(model: SceneAIR, images: Tensor, folder: Path) -> None:
    """Draw per-image optimisation beside one forward pass: a strip, optimisation.png, and a film, optimisation.gif."""
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
    """Errors on scenes with one object each, and the time in ms an image.

    Returns:
        identity: share of shapes right. place: median error as a share of the table's width. SHAPE_rotation: median
        error in degrees of shapes that have one. ms.
    """
    assert scenes.poses is not None
    seconds: list[float] = []
    while sum(seconds) < LEAST_SECONDS:
        start = time.perf_counter()
        shape, pose = find(scenes.images)
        seconds.append(time.perf_counter() - start)
    none, one = torch.zeros(len(scenes)), torch.ones(len(scenes), 1)
    seen = Inference(none, none, one, pose[:, None], F.one_hot(shape, len(SHAPES))[:, None], *[none] * 4)
    errors = pose_errors(seen, scenes.labels, scenes.poses, one.bool(), torch.zeros(len(scenes), 1, dtype=torch.int64))
    rotations = {f"{name}_rotation": errors.rotation[scenes.labels[:, 0] == s] for s, name in enumerate(SHAPES)}
    medians = {name: each.nanmedian().item() for name, each in rotations.items() if not each.isnan().all()}
    return {"identity": errors.correct.float().mean().item(), "place": errors.place.median().item(), **medians,
            "ms": 1e3 * statistics.median(seconds) / len(scenes)}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown table of the mean over the seeds and, in brackets, the worst."""
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
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.single_object", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--steps", type=int, default=8000,
                        help="of SceneAIR and of the supervised network (default: 8000)")
    parser.add_argument("--images", type=int, default=64, help="held-out images to optimise (default: 64)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "single-object")
    parser.add_argument("--json", type=Path, default=RESULTS_FILE, metavar="FILE")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs", metavar="DIR")
    parser.add_argument("--table", action="store_true", help="only print the table of existing results")
    return parser


def load_records() -> list[dict[str, Any]]:
    """The records of the latest results."""
    return json.loads(RESULTS_FILE.read_text())["records"]


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, draw, write the JSON file, print the table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if min(args.steps, args.images, args.threads) < 1:
        parser.error("--steps, --images and --threads must be at least 1")
    if args.table:
        print(table(json.loads(args.json.read_text())["records"]))
        return
    for folder in (args.json.parent, args.pictures):  # fail now rather than after hours of work
        folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    dataset = load_dataset(SingleObject())
    records = []
    for seed in args.seeds:
        out = args.runs / f"seed{seed}"
        train_if_missing(out, ["--dataset", "scenes-single", "--estimator", "enumerate", "--compile",
                               "--steps", str(args.steps), "--seed", str(seed)])
        model = air.load_scene_model(out)
        torch.manual_seed(seed)
        supervised = Supervised(model)
        supervised.fit(dataset.train, args.steps)
        few = dataset.held_out[:args.images]
        methods: list[tuple[str, Callable[[Tensor], Found], Scenes]] = [
            ("SceneAIR", lambda images: by_inference(model, images), dataset.held_out),
            ("supervised", supervised.find, dataset.held_out),
            *((f"optimisation, {starts} start{'s' if starts > 1 else ''}, {steps} steps",
               lambda images, starts=starts, steps=steps: by_optimisation(model, images, starts, steps), few)
              for starts, steps in OPTIMISATIONS),
            ("SceneAIR, the images optimised", lambda images: by_inference(model, images), few)]
        for method, find, scenes in methods:
            records.append({"method": method, "seed": seed, "images": len(scenes), **measure(find, scenes)})
            print(records[-1], flush=True)
        args.json.write_text(json.dumps({**machine("cpu"), "steps": args.steps, "records": records}, indent=2) + "\n")
        if seed == args.seeds[0]:
            draw(model, dataset.held_out.images[:SHOWN], args.pictures)
    print(table(records))


if __name__ == "__main__":
    main()
