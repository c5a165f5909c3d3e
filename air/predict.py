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
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple, NoReturn

from tqdm import tqdm

from air.checkpoints import checkpoint_path, load_with_config
from air.config import Config
from air.data.custom import COUNTS_FILE
from air.data.dataset import Generated
from air.data.images import MAX_MEGAPIXELS, SUFFIXES, find_images
from air.data.scenes import DataError
from air.distributed import setup
from air.evaluation.outputs import Output, StandardOutputError
from air.evaluation.records import NATIVE, Intensities, Pixels, infer_files
from air.files import CheckpointError, check_outputs
from air.files.console import say
from air.files.signals import interrupt_flag
from air.files.startup import end_interrupted, running
from air.models.base import CountingModel

RUN_FILES = ("config.json", "metrics.json", "metrics.jsonl")
ENOUGH, MOST = 10, 0.5  # images, of which more than this share at the model's limit are no chance


class Limit(NamedTuple):
    """The limit of a count, in words."""

    claim: str  # what images have whose count is at it
    remedy: str


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


def _pixels(text: str) -> Pixels:
    try:
        return NATIVE if text == NATIVE else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of pixels, or {NATIVE}, got {text!r}") from None


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
    parser.add_argument("--pixels-per-image", type=_pixels, metavar="P",
                        help=f"read images of any shape at the scale at which their longer side has P pixels, or, if P "
                        f"is {NATIVE}, at their own; in tiles where they are large (default: as in training: fitted "
                        f"into squares by a run on whole images of one's own, else {NATIVE} where the guide is search)")
    parser.add_argument("--most", type=int, metavar="M",
                        help="count up to M objects in an image, or in a tile of a large one")
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
    pixels = pixels_per_image(args, model, config)
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
                                      args.refine, args.batch_size, args.max_megapixels, pixels, args.most)
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
        remark(said, intensities, limited, output.written, limit_of(model, pixels, args))
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
    if args.most is not None and args.most < 1:
        fail(f"--most must be at least 1, got {args.most}")
    side, limit = args.pixels_per_image, math.isqrt(int(1e6 * min(1e6, args.max_megapixels)))
    if isinstance(side, int) and not 1 <= side <= limit:
        fail(f"--pixels-per-image must be {NATIVE}, or from 1 to {limit}, the side of a square of --max-megapixels; "
             f"got {side}")
    if args.codes and not args.json:
        fail("--codes are written to --json: name a file for it")


def pixels_per_image(args: argparse.Namespace, model: CountingModel, config: Config) -> Pixels:
    """The scale at which pictures are read: as asked for, else as in training.

    Ends the command if the model, or --refine, cannot do what is asked for.
    """
    asked = args.pixels_per_image is not None or args.most is not None
    if asked and not model.reads_any_size:
        fail("--pixels-per-image and --most are for models with --guide search and no background but a blurred one: "
             f"this one reads {model.x_size} x {model.x_size} pixels and counts to {model.num_steps}")
    pixels: Pixels = args.pixels_per_image
    if pixels is None and config.optim.crop:
        pixels = getattr(config.data, "pixels_per_image", None) or NATIVE
    elif pixels is None and model.reads_any_size and isinstance(config.data, Generated) and not args.refine:
        pixels = NATIVE  # generated scenes are not the user's, fitted into a square
    if args.refine and (pixels is not None or asked):
        fail("--refine reads images that are fitted into the size of training, and counts no further: leave it out")
    return pixels


def limit_of(model: CountingModel, pixels: Pixels, args: argparse.Namespace) -> Limit:
    """The limit of a count, in words."""
    if pixels is not None:
        return Limit("as many objects in a tile as are counted at most", "raise --most")
    if model.reads_any_size and not args.refine:
        return Limit(f"at least {_objects(args.most or model.num_steps)}, the most that were counted",
                     "raise --most, or, if they are smaller here than in training, set --pixels-per-image")
    return Limit(f"at least {_objects(model.num_steps)}, the most that this model can count",
                 "train one with a larger --model.num-steps")


def _objects(number: int) -> str:
    return f"{number} object{'s' if number > 1 else ''}"


def fail(message: object) -> NoReturn:
    """End the command because of a user's mistake: one line on stderr, exit code 2."""
    say(f"air.predict: error: {message}", error=True)
    sys.exit(2)


def remark(said: Sequence[str], intensities: Intensities, limited: int, done: int, limit: Limit) -> None:
    """Say what the user should know about the images: `said`, their intensities, and counts at the limit."""
    if done >= ENOUGH and limited > MOST * done:
        said = [*said, f"{limited} of {done} images have {limit.claim}: they may be unlike those of training (see "
                       "--invert and --intensity-range), or the model may have had too few steps"]
    elif limited:
        said = [*said, f"{limited} image{'s have' if limited > 1 else ' has'} {limit.claim}: {limit.remedy}"]
    for sentence in (*said, *intensities.remarks()):
        say(f"air.predict: {sentence}", error=True)


if __name__ == "__main__":
    main()
