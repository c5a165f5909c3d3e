"""Count and locate the objects of images with a trained model.

    python -m air.predict runs/NAME images/ more.png                      # a line an image
    python -m air.predict runs/NAME images/ --json out.json --overlay out # records in a file, boxes drawn on the images

An image's record: its file, the most probable count, that count's probability, the boxes (x0, y0, x1, y1) in the
image's own pixels and, with --codes, each object's z_what. Exit codes: 2, the arguments are wrong; 1, an image could
not be read and the others are done; 130, stopped by a signal, and what was done until then is written.
"""

import sys
from pathlib import Path

if __name__ == "__main__" or Path(sys.argv[0]).stem == "air-predict":  # the console script imports this module
    from air.files.startup import begin
    begin("air.predict")

import argparse
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import IO, Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes
from tqdm import tqdm

from air.checkpoints import checkpoint_path, load_with_config
from air.data.custom import COUNTS_FILE, SUFFIXES, fit, image_files, placement, read
from air.data.scenes import DataError
from air.distributed import setup
from air.evaluation.pictures import STEP_COLOURS
from air.files import CheckpointError, atomic_write, check_outputs, clear_stale
from air.files.console import Console, printable, say
from air.files.signals import interrupt_flag
from air.files.startup import end_interrupted, running
from air.inference.refine import refine
from air.models.air import AIR

RUN_FILES = ("config.json", "metrics.json", "metrics.jsonl")
COLUMNS = ("file", "count", "probability", "boxes")


@dataclass(frozen=True)
class Record:
    """What the model found in one image."""

    file: str
    count: int  # the most probable one
    probability: float  # of that count
    boxes: list[list[float]]  # (x0, y0, x1, y1) of each object, in the image's own pixels
    z_what: list[list[float]]  # each object's code


def predict(model: AIR, files: Sequence[Path], invert: bool = False, refined: bool = False, batch_size: int = 64
            ) -> Iterator[tuple[Image.Image, Record] | DataError]:
    """Infer the objects of image files, one after the other; yields the error for a file that cannot be read.

    Args:
        model: on its device.
        invert: see `fit`.
        refined: use `air.refine`, which takes nine times as long.
        batch_size: how many images are held in memory and inferred at a time.
    """
    device = next(model.parameters()).device
    for start in range(0, len(files), batch_size):
        batch: list[Image.Image | DataError] = []
        for file in files[start:start + batch_size]:
            try:
                batch.append(read(file))
            except DataError as error:
                batch.append(error)
        images = [image for image in batch if isinstance(image, Image.Image)]
        if images:
            pixels = torch.stack([fit(image, model.x_size, model.channels == 1, invert) for image in images]).to(device)
            found = refine(model, pixels) if refined else model.infer(pixels)
            rows = zip(found.count.tolist(), found.count_probs.amax(-1).tolist(), found.boxes.cpu(),
                       found.z_what.cpu())
        for file, image in zip(files[start:start + batch_size], batch):
            if isinstance(image, DataError):
                yield image
                continue
            count, probability, boxes, z_what = next(rows)
            boxes = to_image_pixels(boxes[:count], image.size, model.x_size)
            yield image, Record(str(file), count, probability, boxes.tolist(), z_what[:count].tolist())


def to_image_pixels(boxes: Tensor, size: tuple[int, int], square: int) -> Tensor:
    """Map boxes from the square that `fit` made of an image to the image's own pixels.

    Args:
        boxes: (N, 4), (x0, y0, x1, y1) in the square's pixels.
        size: width and height of the image.
        square: side of the square in pixels.
    Returns:
        (N, 4), clipped to the image.
    """
    left, top, width, height = placement(*size, square)
    corner, fitted = (torch.tensor(pair, dtype=boxes.dtype).repeat(2) for pair in ((left, top), (width, height)))
    full = torch.tensor(size, dtype=boxes.dtype).repeat(2)
    return ((boxes - corner) * full / fitted).clamp(min=0).minimum(full)


def overlay(image: Image.Image, record: Record) -> Image.Image:
    """Draw the boxes on a copy of the image, coloured by step."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)
    if record.boxes:
        colours = [STEP_COLOURS[step % len(STEP_COLOURS)] for step in range(record.count)]
        edges = torch.tensor(record.boxes).round()
        edges[:, 2:] = edges[:, 2:].sub(1).maximum(edges[:, :2])  # the outline lies on the outermost pixels
        pixels = draw_bounding_boxes(pixels, edges, colors=colours, width=max(1, max(image.size) // 200))
    return to_pil_image(pixels)


class StandardOutputError(Exception):
    """Standard output takes no more lines; the cause says why."""


class Output:
    """Writes records as lines, a JSON array, CSV rows or overlays; the files appear once all records are written."""

    def __init__(self, args: argparse.Namespace, overlays: Mapping[str, Path], files: ExitStack) -> None:
        """Open the files.

        Args:
            args: json, csv, overlay and codes of the command line.
            overlays: from `overlay_paths`.
            files: closes them.
        """
        self.codes, self.overlays, self.written = args.codes, overlays, 0
        for path in (args.json, args.csv):
            if path:
                clear_stale(path.resolve().parent)
        self.json: IO[bytes] | None = files.enter_context(atomic_write(args.json)) if args.json else None
        self.csv: IO[bytes] | None = files.enter_context(atomic_write(args.csv)) if args.csv else None
        self.lines = not (args.json or args.csv or args.overlay)
        if self.csv:
            self._row(COLUMNS)
        if args.overlay:
            args.overlay.mkdir(parents=True, exist_ok=True)
            clear_stale(args.overlay)

    def add(self, image: Image.Image, record: Record) -> None:
        """Write one image's record. Raises StandardOutputError: its line cannot be printed."""
        content = asdict(record)
        if not self.codes:
            del content["z_what"]
        if self.json:
            self.json.write((",\n" if self.written else "[\n").encode() + json.dumps(content).encode())
        if self.csv:
            self._row([record.file, record.count, f"{record.probability:.4f}", json.dumps(record.boxes)])
        if self.overlays:
            with atomic_write(self.overlays[record.file]) as file:
                overlay(image, record).save(file, "png")
        if self.lines:
            boxes = " ".join("(" + ", ".join(f"{edge:.0f}" for edge in box) + ")" for box in record.boxes)
            tqdm.write(printable(f"{record.file}: {record.count} ({100 * record.probability:.1f}%) {boxes}".rstrip()))
            if isinstance(sys.stdout, Console) and sys.stdout.error:
                raise StandardOutputError from sys.stdout.error
        self.written += 1

    def end(self) -> None:
        """Complete the files: no more records follow."""
        if self.json:
            self.json.write(b"\n]\n" if self.written else b"[]\n")

    def _row(self, cells: Sequence[Any]) -> None:
        assert self.csv is not None
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self.csv.write(line.getvalue().encode(errors="surrogateescape"))  # a file name's own bytes


def overlay_paths(files: Sequence[Path], folder: Path | None) -> dict[str, Path]:
    """Where each image's overlay is written; images of the same name in several folders get numbers.

    Raises:
        ValueError: the folder holds one of the images, which would be overwritten or read again next time.
    """
    if folder is None:
        return {}
    paths: dict[str, Path] = {}
    names: set[str] = set()
    for file in files:
        if folder.exists() and folder.samefile(file.parent):
            raise ValueError(f"--overlay {folder} holds the image {file.name}: name another folder")
        stem, number = file.stem, 1
        name = f"{stem}.png"
        while name.casefold() in names:
            number += 1
            name = f"{stem}-{number}.png"
        names.add(name.casefold())
        paths[str(file)] = folder / name
    return paths


def check_paths(args: argparse.Namespace, files: Sequence[Path], overlays: Mapping[str, Path]) -> None:
    """Refuse outputs that would overwrite an image, its counts.csv, a file of the run, or one another.

    Raises:
        ValueError: as above.
    """
    run = checkpoint_path(args.model)
    truth = (file.parent / COUNTS_FILE for file in files)
    protected = [*files, *truth, run, *(run.parent / name for name in RUN_FILES)]
    outputs = {f"--{name} {getattr(args, name)}": getattr(args, name) for name in ("json", "csv")
               if getattr(args, name) is not None}
    check_outputs(outputs | {f"the overlay of {file}": path for file, path in overlays.items()}, protected)


def find_images(images: Sequence[str]) -> list[Path]:
    """List files, and the image files of folders. Raises DataError: a path does not exist, or a folder has no image."""
    files: list[Path] = []
    for path in map(Path, images):
        if path.is_dir():
            found = image_files(path)
            if not found:
                raise DataError(f"{path} holds no file ending in {', '.join(SUFFIXES)}")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"there is no file or folder {path}")
    return files


class Parser(argparse.ArgumentParser):
    """Escapes what it quotes of the arguments."""

    def error(self, message: str) -> NoReturn:
        """End the command with the usage and what is wrong."""
        self.print_usage(sys.stderr)
        fail(message)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="air.predict", description=__doc__,
                    usage="python -m air.predict RUN IMAGE... [flags]; --help lists them",
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="RUN", help="a run's folder, or its checkpoint")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, or folders of PNG and JPEG files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records to this file, as an array")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the records to this file, as rows")
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="write images with the boxes drawn to this folder")
    parser.add_argument("--codes", action="store_true", help="add each object's z_what to --json")
    parser.add_argument("--refine", action="store_true",
                        help="infer from nine shifted copies: more accurate, nine times the work")
    parser.add_argument("--invert", action=argparse.BooleanOptionalAction, default=None,
                        help="the images are dark on bright (default: as in training)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=64)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    with running("air.predict"):
        run(build_parser().parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Count in the images that the arguments name, and write what was asked for."""
    if args.batch_size < 1:
        fail(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.codes and not args.json:
        fail("--codes are written to --json: name a file for it")
    try:
        device, files = setup(args.device), find_images(args.images)
        overlays = overlay_paths(files, args.overlay)
        check_paths(args, files, overlays)
        model, config = load_with_config(args.model)
    except (DataError, CheckpointError, ValueError, OSError) as error:
        fail(error)
    invert = getattr(config.data, "invert", False) if args.invert is None else args.invert
    broken = 0
    with interrupt_flag() as interrupted:
        try:
            with ExitStack() as opened:
                output = Output(args, overlays, opened)
                records = predict(model.to(device), files, invert, args.refine, args.batch_size)
                for each in tqdm(records, total=len(files), unit="image", disable=not sys.stderr.isatty()):
                    if isinstance(each, DataError):
                        broken += 1
                        say(f"air.predict: skipped, cannot be read: {each}", error=True)
                    else:
                        output.add(*each)
                    if interrupted.is_set():
                        break
                output.end()
        except StandardOutputError as error:
            if not isinstance(error.__cause__, BrokenPipeError):  # whoever reads the lines, such as head, has enough
                fail(f"standard output cannot be written ({error.__cause__})")
        except OSError as error:
            fail(error)
        if interrupted.is_set():
            done = output.written + broken
            end_interrupted(f"air.predict: interrupted: {done} of {len(files)} images are done", error=True)
    if broken:
        sys.exit(1)


def fail(message: object) -> NoReturn:
    """End the command because of a user's mistake: one line on stderr, exit code 2."""
    say(f"air.predict: error: {message}", error=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
