#!/usr/bin/env python
"""Train AIR: arguments in, one run out.

    python train.py                                  # multi-MNIST, or sprites where MNIST cannot be had; nvil
    python train.py --estimator enumerate --seed 1   # the count summed out exactly: fewer steps
    python train.py --resume runs/NAME               # go on where a run stopped

The run's folder (--out) gets config.json, metrics.jsonl, metrics.json, checkpoint.pt, reconstructions.png and
TensorBoard events. Exit code 2: the arguments or the data are not right; 1: the training cannot go on; 130: stopped by
Ctrl-C, and saved.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

try:
    import torch

    from air.checkpoints import CheckpointError, checkpoint_path, load_checkpoint
    from air.data import DATASETS, OVERLAPS, DataError, Dataset, load_dataset
    from air.estimators import ESTIMATORS
    from air.training import Config, Interrupted, Trainer, TrainingError
except ImportError as error:
    print(f"train.py: {error}", file=sys.stderr)
    sys.exit(2)

# One recipe for both estimators; the README says what fails without each setting.
DEFAULTS: dict[str, Any] = {
    "dataset": "auto", "data_root": os.environ.get("AIR_DATA_ROOT", "data"), "counts": [0, 1, 2], "overlap": "none",
    "estimator": "nvil", "batch_size": 64, "lr": 1e-3, "baseline_lr": 1e-2, "count_prior": 1e-8, "seed": 0,
    "device": "auto", "precision": "fp32", "compile": False, "eval_every": 500, "checkpoint_every": 500}
STEPS = {"nvil": 4000, "enumerate": 2000}
ESTIMATOR_OPTIONS: dict[str, dict[str, Any]] = {"nvil": {"signal_scale": 10.0}, "enumerate": {}}
EXPLORATION = {"exploration": 0.2, "exploration_steps": 1000}
MODEL = {"window_size": 28, "z_what_size": 50, "rnn_hidden_size": 256, "encoder_net": [200], "decoder_net": [200],
         "scale_prior_sd": 0.2}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, and say where the results are."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))  # only what stands on the command line
    try:
        device = available_device(given.get("device", DEFAULTS["device"]))
        if "resume" in given:
            checkpoint = load_checkpoint(given["resume"])
            out = checkpoint_path(given["resume"]).parent
            config = resumed_config(checkpoint, given, device)
            dataset = load_dataset(config.dataset, config.data_root, config.counts, config.overlap)
            print(f"resuming {out} at step {checkpoint['step']} of {config.steps}")
        else:
            settings = {**DEFAULTS, **given, "device": device}
            checkpoint = None
            dataset = load_dataset(settings["dataset"], settings["data_root"], settings["counts"], settings["overlap"])
            config = fresh_config(settings, dataset)
            out = fresh_folder(given.get("out"), config)
        if config.batch_size > len(dataset.train):
            raise ValueError(f"--batch-size {config.batch_size} exceeds the {len(dataset.train)} training scenes")
        trainer = Trainer(config, dataset, out, checkpoint)
    except (DataError, CheckpointError, ValueError, OSError) as error:
        parser.error(str(error))

    print(f"{config.dataset}: {len(dataset.train)} scenes ({config.dataset_reason})")
    print(f"{config.estimator}, {config.steps} steps of {config.batch_size} on {config.device} -> {out}")
    try:
        metrics = trainer.run()
    except Interrupted:
        print(f"\nstopped at step {trainer.step} and saved; go on with: python train.py --resume {out}")
        sys.exit(130)
    except (TrainingError, OSError) as error:
        sys.exit(f"train.py: {error}")
    print(f"held out, {metrics['held_out_scenes']} scenes: counts right {100 * metrics['count_accuracy_map']:.2f}% (MAP), "
          f"box IoU {metrics['box_iou']:.3f}, AP50 {metrics['box_ap50']:.3f}, elbo {metrics['elbo']:.1f} nats "
          f"(at most {metrics['log_likelihood_ceiling']:.1f}), in {metrics['seconds']:.0f} s")
    for what, name in (("picture", "reconstructions.png"), ("metrics", "metrics.json"), ("checkpoint", "checkpoint.pt")):
        print(f"{what + ':':12}{out / name}")


def available_device(name: str) -> str:
    """"auto" resolved. Raises ValueError: there is no CUDA device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this torch sees no CUDA device; use --device cpu, or auto")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def fresh_config(settings: dict[str, Any], dataset: Dataset) -> Config:
    """The configuration of a new run: the recipe and what was asked for."""
    estimator = settings["estimator"]
    channels, x_size = dataset.train.images.shape[1:3]
    model = {**MODEL, "num_steps": max(settings["counts"]) + 1, "x_size": x_size, "channels": channels,
             "count_prior": settings["count_prior"]}
    kept = ("data_root", "overlap", "batch_size", "lr", "baseline_lr", "seed", "device", "precision", "compile",
            "eval_every", "checkpoint_every")
    return Config(dataset=dataset.name, dataset_reason=dataset.reason, counts=sorted(set(settings["counts"])),
                  estimator=estimator, estimator_options=ESTIMATOR_OPTIONS[estimator], model=model,
                  steps=settings.get("steps", STEPS[estimator]), **EXPLORATION,
                  **{name: settings[name] for name in kept})


def resumed_config(checkpoint: dict[str, Any], given: dict[str, Any], device: str) -> Config:
    """The run's own configuration, with what may change: where it runs, where the data lie, how long it goes.

    Raises:
        ValueError: something else was asked for, or the run is beyond the steps asked for.
    """
    fixed = sorted(set(given) - {"resume", "device", "data_root", "steps"})
    if fixed:
        flags = ", ".join("--" + name.replace("_", "-") for name in fixed)
        raise ValueError(f"--resume goes on with the run's own settings: leave out {flags}")
    changed = {name: given[name] for name in ("data_root", "steps") if name in given}
    config = replace(Config(**checkpoint["config"]), device=device, **changed)
    if config.steps < checkpoint["step"]:
        raise ValueError(f"--steps {config.steps}: the run has already taken {checkpoint['step']}")
    return config


def fresh_folder(asked: str | None, config: Config) -> Path:
    """A folder that holds no run yet.

    Raises:
        ValueError: the one asked for does.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = Path(asked or f"runs/{config.dataset}-{config.estimator}-seed{config.seed}-{stamp}")
    if (out / "config.json").exists():
        raise ValueError(f"--out {out} already holds a run: name another folder, or go on with it: --resume {out}")
    out.mkdir(parents=True, exist_ok=True)
    return out


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
    add("--data-root", "where MNIST lies or is downloaded to; $AIR_DATA_ROOT sets the default")
    add("--counts", "the numbers of objects that occur", nargs="+", type=whole(0), metavar="N")
    add("--overlap", "none: digits keep apart; loose: they may touch", choices=OVERLAPS)
    add("--estimator", "how the count is learned", choices=tuple(ESTIMATORS))
    add("--steps", f"training steps (default: {', '.join(f'{n} for {name}' for name, n in STEPS.items())})",
        type=whole(1))
    add("--batch-size", "images a step", type=whole(1))
    add("--lr", "Adam's rate for the model at the start", type=positive)
    add("--baseline-lr", "Adam's rate for nvil's baseline at the start", type=positive)
    add("--count-prior", "k of p(n) ∝ k^n, in (0, 1]", type=positive)
    add("--seed", "of weights, batches and latents; the scenes do not depend on it", type=whole(0))
    add("--out", "the run's folder (default: a fresh one under runs/)")
    add("--resume", "go on with the run in this folder, or with this checkpoint", metavar="RUN")
    add("--eval-every", "steps between evaluations", type=whole(1))
    add("--checkpoint-every", "steps between checkpoints", type=whole(1))
    add("--precision", "of the networks' layers", choices=("fp32", "bf16"))
    add("--compile", "torch.compile the objective", action="store_true")
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


if __name__ == "__main__":
    main()
