#!/usr/bin/env python
"""Train AIR: arguments in, one run out.

    python train.py                                  # multi-MNIST, or sprites where MNIST cannot be had; nvil
    python train.py --estimator enumerate --seed 1   # the count summed out exactly: fewer steps
    python train.py --resume runs/NAME               # go on where a run stopped
    torchrun --nproc_per_node=2 train.py             # two processes share each batch; resume in the same way

The run's folder (--out) gets config.json, metrics.jsonl, metrics.json, checkpoint.pt, reconstructions.png and
TensorBoard events. Exit code 2: the arguments or the data are not right; 1: the training cannot go on; 130: stopped by
Ctrl-C, and saved.
"""

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

try:
    import torch

    from air.checkpoints import FILE_NAME, CheckpointError, checkpoint_path, load_checkpoint
    from air.data import BACKDROPS, DATASETS, LAYOUT, OVERLAPS, DataError, load_dataset
    from air.distributed import first_alone, gather, join, leave, rank, size
    from air.inference.estimators import ESTIMATORS
    from air.recipe import PARTICLES, SETTINGS, STEPS, configure
    from air.training.trainer import Config, Interrupted, Trainer, TrainingError
except ImportError as error:
    print(f"train.py: {error}", file=sys.stderr)
    sys.exit(2)

# What only --set reaches, besides the keywords of the model and the estimator.
UNFLAGGED = ("shift", "exploration", "exploration_share", "rescue", "final_lr")
SCALE_OFFSET = 2.5  # in sds of the scale prior, beyond which it is said to be wrong; right ones are found within 1.5
DEFAULTS = {**SETTINGS, "dataset": "auto", "device": "auto", "data_root": os.environ.get("AIR_DATA_ROOT", "data")}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, and say where the results are."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))  # only what stands on the command line
    try:
        given["device"] = available_device(given.get("device", DEFAULTS["device"]))
        join(given["device"])
        trainer = resumed_run(given) if "resume" in given else fresh_run(given)
    except (DataError, CheckpointError, ValueError, OSError) as error:
        parser.error(str(error))
    try:
        with redirect_stdout(None if rank() else sys.stdout):  # process 0 speaks for all
            train(trainer)
    finally:
        leave()


def train(trainer: Trainer) -> None:
    """Train to the end, or until something stops it, and say so."""
    config, dataset, out = trainer.config, trainer.dataset, trainer.out
    if dataset.fell_back:
        print(f"train.py: WARNING: training on {dataset.name}: {dataset.reason}", file=sys.stderr)
    print(f"{dataset.name}: {len(dataset.train)} scenes" + ("" if dataset.fell_back else f" ({dataset.reason})"))
    print(f"{config.estimator}, steps {trainer.step} to {config.steps} of {config.batch_size} images "
          f"on {config.device}{f' in {size()} processes' if size() > 1 else ''}, into {out}")
    go_on = f"{'python' if size() == 1 else f'torchrun --nproc_per_node={size()}'} train.py --resume {out}"
    try:
        metrics = trainer.run()
    except Interrupted:
        print(f"\nstopped at step {trainer.step} and saved; go on with: {go_on}")
        sys.exit(130)
    except KeyboardInterrupt:  # a second Ctrl-C, or one during the final evaluation
        print(f"\ninterrupted; from the last checkpoint, go on with: {go_on}")
        sys.exit(130)
    except TrainingError as error:
        sys.exit(f"train.py: {error}")
    counts = f"mean count {metrics['mean_count']:.2f}"
    if "count_accuracy_map" in metrics:
        counts = f"counts right {100 * metrics['count_accuracy_map']:.2f}% (MAP)"
    if "count_accuracy_refined" in metrics:
        counts += f", {100 * metrics['count_accuracy_refined']:.2f}% (refined)"
    if "box_iou" in metrics:
        counts += f", box IoU {metrics['box_iou']:.3f}, AP50 {metrics['box_ap50']:.3f}"
    if "rotation_error" in metrics:
        counts += (f", shapes right {100 * metrics['identity_accuracy']:.2f}%, median errors "
                   f"{100 * metrics['place_error']:.2f}% of the table and {metrics['rotation_error']:.1f} degrees")
    print(f"held out, {metrics['held_out_scenes']} scenes: {counts}, elbo {metrics['elbo']:.1f} nats "
          f"(at most {metrics['log_likelihood_ceiling']:.1f}), in {metrics['seconds']:.0f} s")
    if "unseen" in metrics:
        print(f"scenes with {' or '.join(map(str, config.unseen_counts))} objects, which training did not show: "
              f"counts right {100 * metrics['unseen']['count_accuracy_map']:.2f}% (MAP)")
    if abs(metrics.get("scale_offset", 0)) > SCALE_OFFSET:
        more, size_asked = ("larger", "above") if metrics["scale_offset"] < 0 else ("smaller", "below")
        print(f"train.py: WARNING: objects are found {more} than the scale prior says, by "
              f"{abs(metrics['scale_offset']):.1f} of its sds on average: try an --object-size {size_asked} "
              f"{config.object_size:.3g}", file=sys.stderr)
    print(f"picture, metrics and checkpoint: {out / 'reconstructions.png'}, {out / 'metrics.json'}, {out / FILE_NAME}")


def fresh_run(given: dict[str, Any]) -> Trainer:
    """A new run: the recipe, and what was asked for.

    Raises:
        ValueError: the settings do not go together, or the folder asked for holds a run.
        DataError: the data set cannot be had.
    """
    settings = {**DEFAULTS, **dict(given.get("set", ())), **given}
    asked, _ = settings.pop("out", None), settings.pop("set", None)
    if asked and (Path(asked) / "config.json").exists():
        raise ValueError(f"--out {asked} already holds a run: name another folder, or go on with it: --resume {asked}")
    name, layout = settings.pop("dataset"), {key: settings[key] for key in LAYOUT}
    dataset = first_alone(lambda: load_dataset(name, settings["data_root"], **layout))
    config = configure(dataset, **settings)
    if config.batch_size > len(dataset.train):
        raise ValueError(f"--batch-size {config.batch_size} exceeds the {len(dataset.train)} training scenes")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = gather(Path(asked or f"runs/{dataset.name}-{config.estimator}-seed{config.seed}-{stamp}"))[0]
    out.mkdir(parents=True, exist_ok=True)
    return Trainer(config, dataset, out)


def resumed_run(given: dict[str, Any]) -> Trainer:
    """A run taken up at its checkpoint, with its own settings but for where it runs and how long it goes.

    Raises:
        ValueError: another setting was asked for, or the run is beyond the steps asked for.
        CheckpointError, DataError: the checkpoint or the data set cannot be had.
    """
    changeable = {"device", "data_root", "data_file", "steps"}
    fixed = sorted(set(given) - changeable - {"resume"})
    if fixed:
        flags = ", ".join("--" + name.replace("_", "-") for name in fixed)
        raise ValueError(f"--resume goes on with the run's own settings: leave out {flags}")
    checkpoint = load_checkpoint(given["resume"])
    config = replace(Config(**checkpoint["config"]), **{name: given[name] for name in changeable & set(given)})
    if config.steps < checkpoint["step"]:
        raise ValueError(f"--steps {config.steps}: the run has already taken {checkpoint['step']}")
    layout = {key: getattr(config, key) for key in LAYOUT}
    dataset = first_alone(lambda: load_dataset(config.dataset, config.data_root, **layout))
    return Trainer(config, dataset, checkpoint_path(given["resume"]).parent, checkpoint)


def available_device(name: str) -> str:
    """"auto" resolved. Raises ValueError: there is no CUDA device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this torch sees no CUDA device; use --device cpu, or auto")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def build_parser() -> argparse.ArgumentParser:
    """The flags. Those left out are absent from the result, so that --resume can tell what was asked for."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train Attend, Infer, Repeat.",
                                     usage="train.py [flags]; train.py --help lists them",
                                     argument_default=argparse.SUPPRESS)

    def add(flag: str, text: str, **kwargs: Any) -> None:
        default = DEFAULTS.get(flag.lstrip("-").replace("-", "_"))
        parser.add_argument(flag, help=text if default is None else f"{text} (default: {default})", **kwargs)

    add("--device", "where to run", choices=("auto", "cpu", "cuda"))
    add("--dataset", "auto: multi-mnist where MNIST can be had, else sprites", choices=DATASETS)
    add("--data-root", "where MNIST or Omniglot lies or is downloaded to, or the folder of your own images; "
        "$AIR_DATA_ROOT sets the default")
    add("--data-file", "of npz: images, and counts and boxes if they are known", metavar="FILE")
    add("--invert", "your own images are dark on bright", action="store_true")
    add("--counts", "the numbers of objects that occur", nargs="+", type=whole(0), metavar="N")
    add("--unseen-counts", "numbers of objects that training does not show: held-out scenes with them are counted at "
        "the end", nargs="+", type=whole(0), metavar="N")
    add("--overlap", "none: digits keep apart; loose: they may touch", choices=OVERLAPS)
    add("--image-size", "in pixels a side; of multi-mnist, omniglot and folder", type=whole(8))
    add("--object-size", "an object's side as a share of the image's: in the scale prior, and of multi-mnist's digits",
        type=share)
    add("--noise", "sd of multi-mnist's pixel noise, in intensities", type=nonnegative)
    add("--backdrop", "what multi-mnist's digits stand before", choices=BACKDROPS)
    add("--background", "model what lies under the objects as well", action="store_true")
    add("--difference", "DAIR: each step reads what the objects before it leave to explain", action="store_true")
    add("--estimator", "how the count is learned", choices=tuple(ESTIMATORS))
    add("--steps", f"training steps (default: {', '.join(f'{n} for {name}' for name, n in STEPS.items())})",
        type=whole(1))
    add("--batch-size", "images a step", type=whole(1))
    add("--lr", "Adam's rate for the model at the start", type=positive)
    add("--baseline-lr", "Adam's rate for nvil's baseline at the start", type=positive)
    add("--count-prior", "k of p(n) ∝ k^n, in (0, 1]", type=positive)
    add("--learn-count-prior", "let p(n) follow the counts inferred, from half of the steps on", action="store_true")
    add("--particles", "K of the importance-weighted bound "
        f"(default: {', '.join(f'{n} for {name}' for name, n in PARTICLES.items())})", type=whole(1))
    add("--seed", "of weights, batches and latents; the scenes do not depend on it", type=whole(0))
    add("--out", "the run's folder (default: a fresh one under runs/)")
    add("--resume", "go on with the run in this folder, or with this checkpoint", metavar="RUN")
    add("--eval-every", "steps between evaluations", type=whole(1))
    add("--checkpoint-every", "steps between checkpoints", type=whole(1))
    add("--precision", "of the networks' layers; tf32 on CUDA alone", choices=("fp32", "tf32", "bf16"))
    add("--compile", "torch.compile the objective", action="store_true")
    add("--set", "any other setting of the recipe (air/recipe.py), as JSON; model.KEYWORD is AIR's, estimator.KEYWORD "
        "the estimator's: --set exploration=0 model.likelihood_sd=0.2", nargs="+", type=setting, metavar="NAME=VALUE")
    return parser


def whole(least: int) -> Any:
    """An argparse type: a whole number from `least` up."""
    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number
    parse.__name__ = "whole number"  # argparse names the type in its message
    return parse


def positive(text: str) -> float:
    """An argparse type: a finite number above 0."""
    number = float(text)
    if not (0 < number < math.inf):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number


def nonnegative(text: str) -> float:
    """An argparse type: a finite number from 0 up."""
    if not (0 <= float(text) < math.inf):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number, 0 or above")
    return float(text)


def share(text: str) -> float:
    """An argparse type: a number in (0, 1]."""
    if positive(text) > 1:
        raise argparse.ArgumentTypeError(f"{text} is more than 1")
    return float(text)


def setting(text: str) -> tuple[str, Any]:
    """An argparse type: NAME=VALUE, the value as JSON, or as a string where it is none."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    if name not in UNFLAGGED and "." not in name:
        raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(UNFLAGGED)}, model.KEYWORD, "
                                         "estimator.KEYWORD; others have a flag of their own")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"train.py: WARNING: {message}\n"  # not the line of code
    main()
