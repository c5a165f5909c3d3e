"""Count and locate the objects of images with a trained model.

    python -m air.predict runs/NAME images/ more.png                      # a line an image
    python -m air.predict runs/NAME images/ --json out.json --overlay out # records in a file, boxes drawn on the images

An image's record: its file, the most probable count, whether that is the most the model can count, its probability, the
boxes (x0, y0, x1, y1) in the image's own pixels and, with --codes, each object's z_what. Each page of a TIFF and each
frame of an animation is an image. Exit codes: 2, the arguments are wrong; 1, an image could not be read and the others
are done; 130, stopped by a signal, and what was done until then is written.
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
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import IO, Any, NoReturn

from tqdm import tqdm

from air.checkpoints import checkpoint_path, load_with_config
from air.data.custom import COUNTS_FILE
from air.data.images import MAX_MEGAPIXELS, SUFFIXES, Picture, find_images
from air.data.scenes import DataError
from air.distributed import setup
from air.evaluation.records import Found, Intensities, infer_files, overlay
from air.files import CheckpointError, atomic_write, check_outputs, clear_stale
from air.files.console import Console, printable, say
from air.files.signals import interrupt_flag
from air.files.startup import end_interrupted, running

RUN_FILES = ("config.json", "metrics.json", "metrics.jsonl")
COLUMNS = ("file", "count", "at_limit", "probability", "boxes")


ENOUGH, MOST = 10, 0.5  # images, of which more than this share at the model's limit are no chance


class StandardOutputError(Exception):
    """Standard output takes no more lines; the cause says why."""


class Output:
    """Writes records as lines, a JSON array, CSV rows or overlays; the files appear once all records are written."""

    def __init__(self, args: argparse.Namespace, overlays: Mapping[Path, Path], files: ExitStack) -> None:
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

    def add(self, found: Found) -> None:
        """Write one image's record. Raises StandardOutputError: its line cannot be printed."""
        record = found.record
        content = asdict(record)
        if not self.codes:
            del content["z_what"]
        if self.json:
            self.json.write((",\n" if self.written else "[\n").encode() + json.dumps(content).encode())
        if self.csv:
            self._row([record.file, record.count, str(record.at_limit).lower(), f"{record.probability:.4f}",
                       json.dumps(record.boxes)])
        if self.overlays:
            with atomic_write(self._overlay_path(found.picture)) as file:
                overlay(*found).save(file, "png")
        if self.lines:
            boxes = " ".join("(" + ", ".join(f"{edge:.0f}" for edge in box) + ")" for box in record.boxes)
            count = f"at least {record.count}" if record.at_limit else str(record.count)
            tqdm.write(printable(f"{record.file}: {count} ({100 * record.probability:.1f}%) {boxes}".rstrip()))
            if isinstance(sys.stdout, Console) and sys.stdout.error:
                raise StandardOutputError from sys.stdout.error
        self.written += 1

    def end(self) -> None:
        """Complete the files: no more records follow."""
        if self.json:
            self.json.write(b"\n]\n" if self.written else b"[]\n")

    def _overlay_path(self, picture: Picture) -> Path:
        path = self.overlays[picture.file]
        if picture.name.endswith("]"):  # a page or frame
            path = path.with_stem(f"{path.stem}[{picture.frame + 1}]")
            while path in self.overlays.values():
                path = path.with_stem(f"{path.stem}-2")
        return path

    def _row(self, cells: Sequence[Any]) -> None:
        assert self.csv is not None
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self.csv.write(line.getvalue().encode(errors="surrogateescape"))  # a file name's own bytes


def overlay_paths(files: Sequence[Path], folder: Path | None) -> dict[Path, Path]:
    """Where each image's overlay is written; images of the same name in several folders get numbers.

    Raises:
        ValueError: the folder holds one of the images, which would be overwritten or read again next time.
    """
    if folder is None:
        return {}
    paths: dict[Path, Path] = {}
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
        paths[file] = folder / name
    return paths


def check_overlay_folder(args: argparse.Namespace) -> None:
    """Refuse a folder for overlays that would be read as images next time. Raises ValueError."""
    for image in args.images if args.overlay and args.recursive else []:
        if Path(image).is_dir() and args.overlay.resolve().is_relative_to(Path(image).resolve()):
            raise ValueError(f"--overlay {args.overlay} lies in {image}, which is read with its sub-folders: name "
                             "another folder")


def check_paths(args: argparse.Namespace, files: Sequence[Path], overlays: Mapping[Path, Path]) -> None:
    """Refuse outputs that would overwrite an image, its counts.csv, a file of the run, or one another.

    Raises:
        ValueError: as above.
    """
    run = checkpoint_path(args.model)
    folders = {file.parent for file in files} | {Path(image) for image in args.images if Path(image).is_dir()}
    truth = (folder / COUNTS_FILE for folder in folders)
    protected = [*files, *truth, run, *(run.parent / name for name in RUN_FILES)]
    outputs = {f"--{name} {getattr(args, name)}": getattr(args, name) for name in ("json", "csv")
               if getattr(args, name) is not None}
    check_outputs(outputs | {f"the overlay of {file}": path for file, path in overlays.items()}, protected)


def files_of(images: Sequence[str], recursive: bool) -> tuple[list[Path], list[str]]:
    """The files that the arguments name, and the image files of folders among them.

    Returns:
        The files, and sentences about what is left out.
    Raises:
        DataError: a path does not exist, or a folder has no image.
    """
    files: list[Path] = []
    said: list[str] = []
    for path in map(Path, images):
        if path.is_dir():
            found, left_out = find_images(path, recursive, known=[COUNTS_FILE])
            if not found:
                raise DataError(f"{path} holds no file ending in {', '.join(SUFFIXES)}")
            files += found
            if left_out:
                said.append(f"left out of {path}: {left_out}" + ("" if recursive else "; --recursive reads folders"))
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"there is no file or folder {path}")
    return files, said


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
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records to this file, as an array")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the records to this file, as rows")
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="write images with the boxes drawn to this folder")
    parser.add_argument("--codes", action="store_true", help="add each object's z_what to --json")
    parser.add_argument("--refine", action="store_true",
                        help="infer from nine shifted copies: more accurate, nine times the work")
    parser.add_argument("--invert", action=argparse.BooleanOptionalAction, default=None,
                        help="the images are dark on bright (default: as in training)")
    parser.add_argument("--intensity-range", type=float, nargs=2, metavar=("LOW", "HIGH"),
                        help="the intensities that are black and white (default: as in training)")
    parser.add_argument("--recursive", action="store_true", help="read the sub-folders of folders as well")
    parser.add_argument("--max-megapixels", type=float, default=MAX_MEGAPIXELS, metavar="M",
                        help="leave out larger images (default: %(default)g)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=64)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    with running("air.predict"):
        run(build_parser().parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Count in the images that the arguments name, and write what was asked for."""
    check_arguments(args)
    try:
        device, (files, said) = setup(args.device), files_of(args.images, args.recursive)
        check_overlay_folder(args)
        overlays = overlay_paths(files, args.overlay)
        check_paths(args, files, overlays)
        model, config = load_with_config(args.model)
    except (DataError, CheckpointError, ValueError, OSError) as error:
        fail(error)
    invert = getattr(config.data, "invert", False) if args.invert is None else args.invert
    # The data sets that are not custom images have 8 bits.
    intensities = Intensities(getattr(config.data, "ranges", None) or {"8-bit": (0, 255)},
                              args.intensity_range or getattr(config.data, "intensity_range", None))
    broken = limited = 0
    with interrupt_flag() as interrupted:
        try:
            with ExitStack() as opened:
                output = Output(args, overlays, opened)
                records = infer_files(model.to(device), [(str(file), file) for file in files], intensities, invert,
                                      args.refine, args.batch_size, args.max_megapixels)
                for each in tqdm(records, total=len(files), unit="image", disable=None):
                    if isinstance(each, DataError):
                        broken += 1
                        say(f"air.predict: skipped, cannot be read: {each}", error=True)
                    else:
                        limited += each.record.at_limit
                        output.add(each)
                    if interrupted.is_set():
                        break
                output.end()
        except StandardOutputError as error:
            if not isinstance(error.__cause__, BrokenPipeError):  # whoever reads the lines, such as head, has enough
                fail(f"standard output cannot be written ({error.__cause__})")
        except OSError as error:
            fail(error if error.filename else f"an output cannot be written ({error.strerror or error})")
        remark(said, intensities, limited, output.written, model.num_steps)
        if interrupted.is_set():
            done = output.written + broken
            end_interrupted(f"air.predict: interrupted: {done} of {len(files)} images are done", error=True)
    if broken:
        sys.exit(1)


def check_arguments(args: argparse.Namespace) -> None:
    """End the command if a number is out of range, or an argument has no effect."""
    if args.batch_size < 1:
        fail(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.intensity_range and not -math.inf < args.intensity_range[0] < args.intensity_range[1] < math.inf:
        fail("--intensity-range must be two numbers, the lower one first, got {:g} {:g}".format(*args.intensity_range))
    if not args.max_megapixels > 0:
        fail(f"--max-megapixels must be greater than 0, got {args.max_megapixels:g}")
    if args.codes and not args.json:
        fail("--codes are written to --json: name a file for it")


def fail(message: object) -> NoReturn:
    """End the command because of a user's mistake: one line on stderr, exit code 2."""
    say(f"air.predict: error: {message}", error=True)
    sys.exit(2)


def remark(said: Sequence[str], intensities: Intensities, limited: int, done: int, num_steps: int) -> None:
    """Say what the user should know about the images: `said`, their intensities, and counts at the model's limit."""
    if done >= ENOUGH and limited > MOST * done:
        said = [*said, f"{limited} of {done} images have at least {num_steps} objects, the most that this model can "
                       "count: they may be unlike those of training (see --invert and --intensity-range), or the "
                       "model may have had too few steps"]
    elif limited:
        said = [*said, f"{limited} image{'s have' if limited > 1 else ' has'} at least {num_steps} objects, the most "
                       "that this model can count: train one with a larger --model.num-steps"]
    for sentence in (*said, *intensities.remarks()):
        say(f"air.predict: {sentence}", error=True)


if __name__ == "__main__":
    main()
