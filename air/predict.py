"""Count and locate the objects of images with a trained model.

    python -m air.predict runs/NAME images/ more.png                      # a line an image
    python -m air.predict runs/NAME images/ --json out.json --overlay out # records in a file, boxes drawn on the images

An image's record: its file, the most probable count, that count's probability, the boxes (x0, y0, x1, y1) in the
image's own pixels and, with --codes, each object's z_what. Exit code 2: the arguments are not right; 1: an image could
not be read, the others are done.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes
from tqdm import tqdm

from air.checkpoints import CheckpointError, load, load_checkpoint
from air.data.custom import SUFFIXES, fit, image_files, placement, read
from air.data.scenes import DataError
from air.evaluation.pictures import STEP_COLOURS
from air.files import atomic_write
from air.inference.refine import refine
from air.models.air import AIR

COLUMNS = ("file", "count", "probability", "boxes")


class Record(NamedTuple):
    """What is in one image."""

    file: str
    count: int  # type: ignore[assignment]  # the most probable one; hides tuple.count
    probability: float  # of that count
    boxes: list[list[float]]  # (x0, y0, x1, y1) of each object, in the image's own pixels
    z_what: list[list[float]]  # of each object


def predict(model: AIR, files: Sequence[Path], invert: bool = False, refined: bool = False, batch_size: int = 64
            ) -> Iterator[tuple[Image.Image, Record] | DataError]:
    """What a model sees in image files, one after the other; the error in place of one that cannot be read.

    Args:
        model: on its device.
        invert: see `fit`.
        refined: by `air.refine`, which takes nine times as long.
        batch_size: how many images are held and looked at at a time.
    """
    device = next(model.parameters()).device
    for start in range(0, len(files), batch_size):
        some: list[Image.Image | DataError] = []
        for file in files[start:start + batch_size]:
            try:
                some.append(read(file))
            except DataError as error:
                some.append(error)
        whole = [image for image in some if isinstance(image, Image.Image)]
        if whole:
            pixels = torch.stack([fit(image, model.x_size, model.channels == 1, invert) for image in whole]).to(device)
            seen = refine(model, pixels) if refined else model.infer(pixels)
            rows = zip(seen.count.tolist(), seen.count_probs.amax(-1).tolist(), seen.boxes.cpu(), seen.z_what.cpu())
        for file, image in zip(files[start:start + batch_size], some):
            if isinstance(image, DataError):
                yield image
                continue
            count, probability, boxes, z_what = next(rows)
            boxes = own_pixels(boxes[:count], image.size, model.x_size)
            yield image, Record(str(file), count, probability, boxes.tolist(), z_what[:count].tolist())


def own_pixels(boxes: Tensor, size: tuple[int, int], square: int) -> Tensor:
    """Boxes in the square that `fit` made of an image, (N, 4), in the pixels of the image, of width x height `size`."""
    left, top, width, height = placement(*size, square)
    corner, there = (torch.tensor(pair, dtype=boxes.dtype).repeat(2) for pair in ((left, top), (width, height)))
    own = torch.tensor(size, dtype=boxes.dtype).repeat(2)
    return ((boxes - corner) * own / there).clamp(min=0).minimum(own)


def overlay(image: Image.Image, record: Record) -> Image.Image:
    """The image with its boxes, coloured by step."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)
    if record.boxes:
        colours = [STEP_COLOURS[step % len(STEP_COLOURS)] for step in range(record.count)]
        edges = torch.tensor(record.boxes).round()
        edges[:, 2:] = edges[:, 2:].sub(1).maximum(edges[:, :2])  # the outline lies on the outermost pixels
        pixels = draw_bounding_boxes(pixels, edges, colors=colours, width=max(1, max(image.size) // 200))
    return to_pil_image(pixels)


class Output:
    """Where records go: lines, a JSON array, CSV rows, overlays. Files appear when all of them are written."""

    def __init__(self, args: argparse.Namespace, files: ExitStack) -> None:
        self.codes, self.folder, self.written = args.codes, args.overlay, 0
        self.json: IO[bytes] | None = files.enter_context(atomic_write(args.json)) if args.json else None
        self.csv: IO[bytes] | None = files.enter_context(atomic_write(args.csv)) if args.csv else None
        self.lines = not (args.json or args.csv or args.overlay)
        self.names: set[str] = set()
        if self.csv:
            self._row(COLUMNS)
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, image: Image.Image, record: Record) -> None:
        """One image's record."""
        content = record._asdict()
        if not self.codes:
            del content["z_what"]
        if self.json:
            self.json.write((",\n" if self.written else "[\n").encode() + json.dumps(content).encode())
        if self.csv:
            self._row([record.file, record.count, f"{record.probability:.4f}", json.dumps(record.boxes)])
        if self.folder:
            overlay(image, record).save(self.folder / self._name(record.file))
        if self.lines:
            boxes = " ".join("(" + ", ".join(f"{edge:.0f}" for edge in box) + ")" for box in record.boxes)
            tqdm.write(f"{record.file}: {record.count} ({100 * record.probability:.1f}%) {boxes}".rstrip())
        self.written += 1

    def end(self) -> None:
        """No more records."""
        if self.json:
            self.json.write(b"\n]\n" if self.written else b"[]\n")

    def _row(self, cells: Sequence[Any]) -> None:
        assert self.csv is not None
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self.csv.write(line.getvalue().encode())

    def _name(self, file: str) -> str:
        """Of an overlay; images of one name in several folders get numbers."""
        stem, number = Path(file).stem, 1
        name = f"{stem}.png"
        while name in self.names:
            number += 1
            name = f"{stem}-{number}.png"
        self.names.add(name)
        return name


def listed(images: Sequence[str]) -> list[Path]:
    """Files, and those of folders. Raises DataError: one is neither, or a folder holds no image."""
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="air.predict", description=__doc__,
                                     usage="python -m air.predict RUN IMAGE... [flags]; --help lists them",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="RUN", help="a run's folder, or its checkpoint")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, or folders of PNG and JPEG files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there, as an array")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the records there, as rows")
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="draw the boxes on copies of the images there")
    parser.add_argument("--codes", action="store_true", help="with each object's z_what, in --json")
    parser.add_argument("--refine", action="store_true", help="the best of nine looks: surer, and nine times the work")
    parser.add_argument("--invert", action=argparse.BooleanOptionalAction, default=None,
                        help="the images are dark on bright (default: as in training)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=64)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.codes and not args.json:
        parser.error("--codes go into --json: name a file for it")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no CUDA device")
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    broken = 0
    try:
        files = listed(args.images)
        model, config = load(args.model).to(device), load_checkpoint(args.model)["config"]
        invert = config["invert"] if args.invert is None else args.invert
        with ExitStack() as opened:
            output = Output(args, opened)
            found = predict(model, files, invert, args.refine, args.batch_size)
            for each in tqdm(found, total=len(files), unit="image", disable=not sys.stderr.isatty()):
                if isinstance(each, DataError):
                    broken += 1
                    print(f"air.predict: left out, cannot be read: {each}", file=sys.stderr)
                else:
                    output.add(*each)
            output.end()
    except (DataError, CheckpointError, OSError) as error:
        parser.error(str(error))
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
