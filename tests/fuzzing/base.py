"""What the trials start from: images, a small model trained on them, and what it says of known images."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import write_fake_mnist
from tests.fuzzing.sandbox import Sandbox

SIDE, OBJECT = 48, 14  # pixels
SMALL = ["--batch-size", "16", "--model.rnn-hidden-size", "32", "--device", "cpu"]
NETWORKS = ["--model.embed-net", "64", "--model.window-size", "8", "--model.z-what-size", "4",
            "--model.encoder-net", "64", "--model.decoder-net", "64"]
FEW = ["--data.train-scenes", "32", "--data.held-out-scenes", "8"]
STEPS = 300  # of the model, which then counts right
MORE = 3  # steps that a resumed run takes
SCENES = 100


class Verdict(NamedTuple):
    """What a trial found."""

    faults: list[str]
    what: str  # the trial in words: arguments, what was done to a file
    said: str  # the first lines of the output


@dataclass(frozen=True)
class Base:
    """The trials' common ground; nothing in it is changed by them."""

    folder: Path
    images: Path  # SCENES grey PNG files and counts.csv
    run: Path  # of the model
    arrays: dict[str, NDArray[Any]]  # the same scenes, as --dataset npz takes them
    known: list[Path]  # images in which the model finds something
    records: list[dict[str, Any]]  # what it says of them
    resumed: dict[str, Any]  # the final metrics after MORE steps
    mnist: Path


def draw(rng: np.random.Generator, count: int, side: int = SIDE, size: int = OBJECT
         ) -> tuple[NDArray[np.uint8], list[Any]]:
    """A scene of white squares on black that do not touch, (side, side), and their boxes."""
    image, boxes = np.zeros((side, side), np.uint8), []
    while len(boxes) < count:
        x, y = (int(corner) for corner in rng.integers(1, side - size, 2))
        if not image[max(0, y - 2):y + size + 2, max(0, x - 2):x + size + 2].any():
            image[y:y + size, x:x + size] = 255
            boxes.append((x, y, x + size, y + size))
    return image, boxes


@contextmanager
def prepared(steps: int = STEPS) -> Iterator[Base]:
    """Draw the images, train the model, and look at what it says."""
    with tempfile.TemporaryDirectory(prefix="air-fuzz-") as name:
        folder = Path(name)
        sandbox = Sandbox(folder / "cache")
        images, rng = folder / "images", np.random.default_rng(0)
        images.mkdir()
        scenes = [draw(rng, i % 3) for i in range(SCENES)]
        for i, (image, _) in enumerate(scenes):
            Image.fromarray(image).save(images / f"{i:03}.png")
        (images / "counts.csv").write_text("file,count\n" + "".join(f"{i:03}.png,{i % 3}\n" for i in range(SCENES)))
        boxes = np.zeros((SCENES, 2, 4), np.float32)
        for each, (_, known) in zip(boxes, scenes):
            each[:len(known)] = np.reshape(known, (-1, 4))
        arrays = {"images": np.stack([image for image, _ in scenes]), "counts": np.arange(SCENES) % 3, "boxes": boxes}
        write_fake_mnist(folder / "mnist")
        _succeed(sandbox, "train", training(images, folder / "run", steps), folder)
        known, records = _known(sandbox, folder, images)
        shutil.copytree(folder / "run", folder / "resumed")
        _succeed(sandbox, "train", ["--resume", "resumed", "--steps", str(steps + MORE)], folder)
        resumed = json.loads((folder / "resumed" / "metrics.json").read_text())
        yield Base(folder, images, folder / "run", arrays, known, records, resumed, folder / "mnist")


def training(images: Path, out: Path, steps: int) -> list[str]:
    """Arguments of train.py for a run on the images."""
    return ["--dataset", "folder", "--data.root", str(images), "--data.image-size", "24", "--object-size", "0.3",
            "--estimator", "enumerate", "--guide", "search", "--steps", str(steps), "--optim.lr", "0.002",
            *SMALL, *NETWORKS, "--out", str(out)]


def _known(sandbox: Sandbox, folder: Path, images: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """An image of each count that the model gives, and its records."""
    files = sorted(images.glob("*.png"))
    _succeed(sandbox, "predict", ["run", *map(str, files), "--json", "all.json"], folder)
    by_count: dict[int, tuple[Path, dict[str, Any]]] = {}
    for file, record in zip(files, json.loads((folder / "all.json").read_text())):
        if record["probability"] > by_count.get(record["count"], (file, {"probability": 0.0}))[1]["probability"]:
            by_count[record["count"]] = file, record
    if max(by_count) == 0:
        raise RuntimeError("the model of the trials finds nothing")
    return [file for file, _ in by_count.values()], [record for _, record in by_count.values()]


def _succeed(sandbox: Sandbox, program: str, argv: list[str], folder: Path) -> None:
    outcome = sandbox.run(program, argv, folder, limit=300)
    if outcome.code:
        raise RuntimeError(f"{program} {' '.join(argv)} ended with code {outcome.code}: {outcome.err[-2000:]}")


def resume_copy(base: Base, folder: Path) -> Path:
    """A copy of the run, to be continued or damaged."""
    shutil.copytree(base.run, folder / "run", ignore=lambda _, names: [n for n in names if n.startswith("events")])
    return folder / "run"


def resume_arguments(base: Base) -> list[str]:
    """Arguments that continue the copy."""
    steps = json.loads((base.run / "metrics.json").read_text())["steps"]
    return ["--resume", "run", "--steps", str(steps + MORE)]


def first_lines(*texts: str) -> str:
    """The beginning of what was said, for a report."""
    return os.linesep.join(ascii(line)[1:-1][:200] for text in texts for line in text.splitlines()[:3])
