#!/usr/bin/env python
"""Train AIR: one run from arguments.

    python train.py                                  # multi-MNIST, or sprites where MNIST is not available; nvil
    python train.py --estimator enumerate --seed 1   # the count summed out exactly: fewer steps
    python train.py --resume runs/NAME               # continue a run that stopped
    torchrun --nproc_per_node=2 train.py             # two processes share each batch; resume in the same way

The run's folder (--out) gets config.json, metrics.jsonl, metrics.json, checkpoint.pt, reconstructions.png and
TensorBoard events. Exit codes: 2, the arguments or the data are wrong; 1, training cannot go on; 130, stopped by a
signal (Ctrl-C, SIGTERM, SIGHUP).
"""

if __name__ == "__main__":
    from air.files.startup import begin
    begin("train.py")

import json
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

try:
    from air.checkpoints import FILE_NAME, checkpoint_path, load_checkpoint
    from air.config import Config, with_settings
    from air.data import DataError, Dataset, MultiMNIST, load_dataset, mnist_or_sprites
    from air.data.custom import changed_images
    from air.data.intensity import describe
    from air.distributed import cleanup, gather, rank, rank_zero_first, setup, world_size
    from air.files import CheckpointError, FolderLock
    from air.files.console import say
    from air.files.signals import is_first_process
    from air.files.startup import end_interrupted, running
    from air.models.settings import SettingsError, changes
    from air.recipe import resolve
    from air.training.advice import after_training, before_training
    from air.training.command_line import CommandLine, fail, parse, peek
    from air.training.step import CompileError, check_compiler
    from air.training.trainer import Interrupted, Trainer, TrainingError
except ImportError as error:
    print(f"train.py: {error}", file=sys.stderr)
    sys.exit(2)

# What may change when a run is resumed: where it runs and how long it goes on.
CHANGEABLE = {"run.device", "data.root", "data.file", "optim.steps"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, and say where the results are."""
    with FolderLock() as lock, running("train.py", lambda: how_to_continue(lock.folder)):
        try:
            trainer = fresh_run(parse(argv), lock) if peek(argv).resume is None else resumed_run(argv, lock)
        except (DataError, CheckpointError, ValueError, OSError) as error:
            fail(error)
        try:
            with redirect_stdout(None if rank() else sys.stdout):  # only rank 0 prints
                if trainer is not None:
                    train(trainer)
        finally:
            cleanup()


def train(trainer: Trainer) -> None:
    """Train to the end, or until something stops the run, and report it."""
    config, out = trainer.config, trainer.out
    crop = config.optim.crop
    say(f"{trainer.dataset.name}: {len(trainer.dataset.train)} training scenes"
        + (f", of which crops of {crop} x {crop} pixels are trained on" if crop else ""))
    if trainer.dataset.ranges:
        say(f"black to white in {describe(trainer.dataset.ranges)}")
    doubts = before_training(config, trainer.dataset)
    warn(doubts)
    say(f"{config.estimator.name}, steps {trainer.step} to {config.optim.steps} of {config.optim.batch_size} images "
        f"on {config.run.device}{f' in {world_size()} processes' if world_size() > 1 else ''}, into {out}")
    try:
        metrics = trainer.run()
    except Interrupted:
        end_interrupted(f"stopped at step {trainer.step} and saved{how_to_continue(out)}")
    except CompileError as error:
        fail(error)
    except TrainingError as error:
        say(f"train.py: {error}", error=True)
        sys.exit(1)
    report(config, metrics, out)
    warn(after_training(config, metrics, doubts))


def warn(sentences: Sequence[str]) -> None:
    """Print a warning for each sentence, once for all processes."""
    for sentence in sentences if not rank() else []:
        say(f"train.py: WARNING: {sentence}", error=True)


def how_to_continue(out: Path | None) -> str:
    """How to continue the run in a folder, for the end of a sentence; nothing where it has no checkpoint."""
    if out is None or not (out / FILE_NAME).exists():
        return ""
    program = "python" if world_size() == 1 else f"torchrun --nproc_per_node={world_size()}"
    return f"; continue from the last checkpoint with: {program} train.py --resume {shlex.quote(str(out))}"


def report(config: Config, metrics: dict[str, Any], out: Path) -> None:
    """Print the final metrics, and the files to look at."""
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
    scenes = "crops" if config.optim.crop else "scenes"
    say(f"held out, {metrics['held_out_scenes']} {scenes}: {counts}, elbo {metrics['elbo']:.1f} nats "
        f"(at most {metrics['log_likelihood_ceiling']:.1f}), in {metrics['seconds']:.0f} s")
    if "scale_prior" in metrics:
        sides = metrics["scale_prior"]
        say(f"learned scale prior: sides of {sides['mean']:.1f} pixels, sd {sides['sd']:.1f}")
    if "unseen" in metrics:
        say(f"scenes with {' or '.join(map(str, getattr(config.data, 'unseen_counts')))} objects, which do not occur "
            f"in training: counts right {100 * metrics['unseen']['count_accuracy_map']:.2f}% (MAP)")
    if "whole" in metrics:
        whole = metrics["whole"]
        truth = (f", off by {whole['count_error']:.1f} on average" if "count_error" in whole else "") + (
            f", AP50 {whole['box_ap50']:.3f}" if "box_ap50" in whole else "")
        say(f"whole pictures, {whole['pictures']}: mean count {whole['mean_count']:.1f}{truth}")
    say(f"picture, metrics and checkpoint: {out / 'reconstructions.png'}, {out / 'metrics.json'}, {out / FILE_NAME}")


def fresh_run(arguments: CommandLine, lock: FolderLock) -> Trainer:
    """A new run, in a folder that is locked.

    Raises:
        SettingsError: the settings do not go together, or the folder already holds a run.
        ValueError: another process is at work in the folder.
        DataError: the data set cannot be loaded.
    """
    if arguments.out == "":  # an unset variable of the shell
        raise SettingsError("--out is empty: name a folder, or leave it out")
    check_name(arguments.out)
    if arguments.out and Path(arguments.out).is_dir() and is_first_process():  # before the data take their time
        take_folder(Path(arguments.out), lock)
    asked = on_device(arguments.config)
    if arguments.dataset == "auto":
        assert isinstance(asked.data, MultiMNIST)
        data, reason = rank_zero_first(partial(mnist_or_sprites, asked.data))
        if reason:
            warn([f"training on {data.name}: {reason}"])
        asked = replace(asked, data=data)
    dataset = rank_zero_first(lambda: load_dataset(asked.data, asked.optim.crop))
    config = resolve(asked, dataset)
    if not rank():
        say("chosen for this data set: " + ", ".join(
            f"{path} {in_words(value)}" for path, value in changes(asked, config).items() if path != "data.ranges"))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"runs/{dataset.name}-{config.estimator.name}-seed{config.run.seed}-{stamp}"
    out = gather(None if rank() else take_folder(claim_folder(arguments.out, name), lock))[0]
    assert out is not None
    try:
        return Trainer(config, dataset, out)
    except ValueError:
        if not rank() and not any(out.iterdir()):
            out.rmdir()  # a refused run leaves no folder behind
        raise


def in_words(value: object) -> str:
    """A setting's value as on the command line, with few digits."""
    if isinstance(value, tuple):
        return " ".join(map(in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_name(folder: str | None) -> None:
    """Raises SettingsError: TensorBoard cannot write into a folder of this name, or no file can have it."""
    try:
        valid = folder is None or b"\0" not in folder.encode()
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise SettingsError(f"{folder} is not valid UTF-8 or has a null character: name the run's folder otherwise")


def claim_folder(asked: str | None, name: str) -> Path:
    """Create a run's folder: the one asked for, which may be there, or a new one that no other run has.

    Raises:
        SettingsError: it cannot be created.
    """
    folder, number = Path(name if asked is None else asked), 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=asked is not None)
            return folder
        except FileExistsError:
            if asked is not None:
                raise SettingsError(f"--out {asked} is a file, not a folder") from None
            number += 1  # a run that started in the same second
            folder = Path(f"{name}-{number}")
        except OSError as error:
            raise SettingsError(f"--out {folder} cannot be created ({error.strerror})") from None


def take_folder(out: Path, lock: FolderLock) -> Path:
    """Lock a new run's folder, and return it.

    Raises:
        SettingsError: it holds a run.
        ValueError: another process is at work in it.
    """
    lock.take(out)
    if (out / FILE_NAME).exists():  # without one there is nothing to continue
        raise SettingsError(f"--out {out} already holds a run: name another folder, or continue that run: "
                            f"--resume {out}")
    return out


def resumed_run(argv: Sequence[str] | None, lock: FolderLock) -> Trainer | None:
    """A run continued from its checkpoint, with its own settings but for where it runs and how many steps it takes.

    Returns:
        None if the run is finished, which is reported.
    Raises:
        SettingsError: another setting was changed, or the run is beyond the number of steps.
        ValueError: another process is at work in the run's folder.
        CheckpointError, DataError: the checkpoint or the data set cannot be loaded.
    """
    check_name(peek(argv).resume)
    path = checkpoint_path(peek(argv).resume)
    out = path.parent
    if path.is_file() and is_first_process():
        lock.take(out)
    own, state = load_checkpoint(path)
    own = with_settings(own, {"run.device": "auto"})  # whatever this machine has, unless --device says otherwise
    arguments = parse(argv, resumed=own)
    changed = sorted(changes(own, arguments.config).keys() - CHANGEABLE)
    changed += [name for name, same in (("out", not arguments.out), ("dataset", arguments.dataset == own.data.name),
                                        ("estimator", arguments.estimator == own.estimator.name)) if not same]
    if changed:
        flags = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise SettingsError(f"--resume continues a run with its own settings: leave out {flags}")
    config = on_device(arguments.config)
    if config.optim.steps is not None and config.optim.steps < state["step"]:
        raise SettingsError(f"--steps {config.optim.steps}: the run has already taken {state['step']}")
    if config.optim.steps == state["step"] and report_finished(config, out):
        return None
    dataset: Dataset = rank_zero_first(lambda: load_dataset(config.data, config.optim.crop))
    if changed_since := changed_images(state["images"], dataset.digests):
        raise DataError(f"the images are not those that the run began with ({changed_since}): restore them, or start a "
                        "new run")
    return Trainer(resolve(config, dataset), dataset, out, state)


def report_finished(config: Config, out: Path) -> bool:
    """Report a run from its metrics.json, if that is of its last step; nothing is written."""
    try:
        metrics = json.loads((out / "metrics.json").read_bytes())
        if metrics["steps"] != config.optim.steps:
            return False
        if not rank():
            report(config, metrics, out)
            say(f"the run was finished before: all its {config.optim.steps} steps have been taken")
        return True
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False  # there is none, or it is not what a run writes: evaluate again


def on_device(config: Config) -> Config:
    """Replace device "auto" by the one there is, and join the other processes if there are any.

    Raises:
        ValueError: the device is missing, or the compiler that --compile needs.
    """
    config = with_settings(config, {"run.device": setup(config.run.device).type})
    if config.run.compile and config.run.device == "cpu":
        check_compiler()
    return config


if __name__ == "__main__":
    main()
