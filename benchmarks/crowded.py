#!/usr/bin/env python
"""Time the search guide: its training step, and inference of many objects on small images and on one large picture.

    python -m benchmarks.crowded --threads 2
    python -m benchmarks.crowded --threads 2 --run runs/NAME --json crowded.json

The step is that of N = 3 on 50 x 50 pixels, batches of 64, measured in turns with the recurrent guide's. Then `infer`
on images of 84 x 84 pixels with N = 20, at which all twenty steps are taken, and `air.infer_tiles` on a picture of
1,024 x 1,024. With --run, that is a mosaic of 500 digits of the sizes of the run's training, and the count and AP50
are those of its model. Without, the model never stops, and is limited to 30 steps in a tile, about what trained
models take for 500 digits.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from air.checkpoints import load_with_config
from air.config import default_config, with_settings
from air.data import Dataset, Scenes
from air.data.mosaic import mosaic
from air.evaluation.whole import ap50
from air.inference.tiles import infer_tiles
from air.models.air import AIR
from air.models.search import SearchGuide
from air.recipe import build_model, resolve
from air.training.machine import machine
from benchmarks.operations import make_trainer

SIDE, OBJECTS, OBJECT_PIXELS, BATCH = 84, 20, 14, 64
PICTURE, DIGITS, STEPS = 1024, 500, 30
TURNS, STEP_TURNS = 5, 30


def crowded_model() -> AIR:
    """An untrained model with the default networks that takes every step."""
    images = torch.zeros(BATCH, 1, SIDE, SIDE, dtype=torch.uint8)
    scenes = Scenes(images, torch.full((BATCH,), OBJECTS), torch.zeros(BATCH, OBJECTS, 4),
                    torch.full((BATCH, OBJECTS), -1))
    config = with_settings(default_config("multi-mnist", "enumerate"), {
        "model.guide": "search", "model.num_steps": OBJECTS, "optim.batch_size": BATCH, "data.image_size": SIDE,
        "data.object_size": (OBJECT_PIXELS / SIDE,)})
    model = build_model(resolve(config, Dataset("synthetic", scenes, scenes)).model)
    assert isinstance(model, AIR) and isinstance(model.guide_net, SearchGuide)
    with torch.no_grad():
        list(model.guide_net.mlp.parameters())[-1][0] = 50  # the logit's bias
    return model


def digits_of(config: Any, model: AIR, seed: int = 0) -> Scenes:
    """A mosaic of digits as large as a run's."""
    shares = config.data.object_size
    low, high = round(shares[0] * model.x_size), round(shares[-1] * model.x_size)
    return mosaic(DIGITS, PICTURE, (low, high), seed)


def seconds(run: Callable[[], Any], device: str, turns: int | None = None) -> float:
    """The median of some times; turns: how many, None: TURNS."""
    times = []
    for _ in range((TURNS if turns is None else turns) + 1):  # the first for the caches
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def step_times(device: str) -> dict[str, float]:
    """The median times of a training step with the search and the recurrent guide, and their ratio."""
    trainers = {"search": make_trainer("search", device), "recurrent": make_trainer("enumerate", device)}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(STEP_TURNS):
        for name, trainer in trainers.items():
            times[name].append(seconds(trainer.train_step, device, turns=1))
    search, recurrent = (1000 * statistics.median(each) for each in times.values())
    return {"search_step_ms": search, "recurrent_step_ms": recurrent, "step_ratio": search / recurrent}


def measure(device: str, run: str | None) -> dict[str, Any]:
    """Time all three; the picture on a model of a run or an untrained one."""
    report: dict[str, Any] = step_times(device)
    torch.manual_seed(0)
    model = crowded_model().to(device)
    images = torch.rand(BATCH, 1, SIDE, SIDE, device=device)
    report["images_per_s"] = BATCH / seconds(lambda: model.infer(images), device)
    if run is None:
        picture = torch.rand(1, PICTURE, PICTURE)
        return report | {"picture_s": seconds(lambda: infer_tiles(model, picture, most=STEPS), device)}
    trained, config = load_with_config(run)
    trained, scenes = trained.to(device), digits_of(config, trained)
    seen = infer_tiles(trained, scenes.images[0])
    return report | {"picture_s": seconds(lambda: infer_tiles(trained, scenes.images[0]), device),
                     "digits": DIGITS, "count": seen.count, "ap50": ap50(seen, scenes.boxes[0])}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowded", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--run", metavar="RUN", help="a run on multi-mnist with --guide search")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write the JSON file."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    report = {**machine(args.device), **measure(args.device, args.run)}
    print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in report.items()))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
