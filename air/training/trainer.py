"""The training loop: device, schedules, logging, checkpoint, resume."""

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from air.checkpoints import FILE_NAME, save_checkpoint
from air.data import Dataset, Scenes
from air.distributed import any_of, gather, is_lost, join, mean, rank, size
from air.evaluation.evaluate import evaluate
from air.evaluation.pictures import reconstruction_picture, sample_picture, second_view_picture
from air.files import atomic_write
from air.inference.estimators import ESTIMATORS
from air.kinds import build
from air.scenes3d.model import SceneAIR
from air.training.logs import NoLog, RunLog
from air.training.step import Stepper

IW_PARTICLES = 100  # of the final bound
QUICK_SCENES = 1000  # held-out scenes of the evaluations on the way; the last one takes all
PICTURE_SCENES = 6  # one of them empty, where the data set has empty ones
CHECK_EVERY = 50  # steps, between looks at a GPU's loss: each waits for the device
ASK_EVERY = 10  # steps, between several processes' asking one another whether to stop


class TrainingError(Exception):
    """A run that cannot go on; the message says what is left and what to try."""


class Interrupted(Exception):
    """Ctrl-C: the run has been saved."""


@dataclass(frozen=True)
class Config:
    """All that determines a run, as written to config.json. JSON values only."""

    dataset: str  # by name: what "auto" chose
    dataset_reason: str
    data_root: str
    counts: list[int]
    overlap: str
    image_size: int
    object_size: float
    noise: float
    backdrop: str
    invert: bool
    data_file: str | None
    unseen_counts: list[int]  # of scenes that the final evaluation counts besides
    estimator: str
    estimator_options: dict[str, Any]  # keywords of the estimator
    kind: str  # of the model, see air/kinds.py
    model: dict[str, Any]  # its keywords
    shift: int  # pixels, by which training images are moved at random
    steps: int
    batch_size: int  # of all processes together
    lr: float  # of the model, at the first step; falls to final_lr times that along a cosine
    final_lr: float
    baseline_lr: float  # of the baseline, likewise
    exploration: float  # for half of exploration_steps; then falls to 0 along a line
    exploration_steps: int
    learn_count_prior_from: int | None  # the step from which on p(n) follows q(n); None: it stays as it is
    seed: int
    device: str
    precision: str  # fp32, tf32 (the matrix products, on CUDA) or bf16 (the layers)
    compile: bool
    eval_every: int
    checkpoint_every: int


class Trainer:
    """One run: a model, its objective and optimiser, and the folder that it writes to.

    Where torchrun started several processes, each takes its share of every batch and of every evaluation, the gradients
    are averaged, and process 0 does the writing.
    """

    def __init__(self, config: Config, dataset: Dataset, out: Path, checkpoint: dict[str, Any] | None = None) -> None:
        """Args: checkpoint: go on from it, as if the run had never stopped.

        Raises:
            ValueError: the batch cannot be shared out equally among the processes.
        """
        self.device = join(config.device)
        if config.batch_size % size():
            raise ValueError(f"a batch of {config.batch_size} images cannot be shared out equally among {size()} "
                             "processes")
        torch.manual_seed(config.seed)
        self.config, self.dataset, self.out = config, dataset, out
        self.model = build(config.kind, config.model)
        self.objective = ESTIMATORS[config.estimator](self.model, **config.estimator_options).to(self.device)
        groups = self.objective.parameter_groups(config.lr, config.baseline_lr)
        self.stepper = Stepper(self.objective, [{**group, "initial_lr": group["lr"]} for group in groups],
                               dataset.train.images.to(self.device), config.shift, config.precision, config.compile)
        self.step = 0  # steps taken
        self.check_every = 1 if self.device.type == "cpu" else CHECK_EVERY
        self.epoch, self.order = -1, torch.empty(0)  # the epoch whose permutation of the scenes is at hand
        self.seconds = 0.0  # of the steps alone
        self.names: list[str] = []  # of the training metrics
        self.sums, self.summed = torch.empty(0), 0  # of them, since the last evaluation, on the device
        if rank():
            torch.manual_seed(config.seed + 10_007 * rank())  # latents of its own
        if checkpoint is not None:
            self._restore(checkpoint)

    def run(self) -> dict[str, Any]:
        """Train to the last step, evaluate on all held-out scenes, and write what config.json's folder is to hold.

        Returns:
            the final metrics, as in metrics.json.
        Raises:
            Interrupted: Ctrl-C; the checkpoint is the state at that moment.
            TrainingError: the loss is not finite, the disk is full, or another process is gone; the checkpoint is the
                last one written before.
        """
        try:
            return self._run()
        except OSError as error:
            raise TrainingError(f"the run's folder cannot be written at step {self.step} ({error}); {self._saved()}. "
                                "Make room, and go on from there with --resume") from error
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise TrainingError(f"another process of this run is gone, at step {self.step}; {self._saved()}. "
                                "Go on from there with --resume") from error

    def _run(self) -> dict[str, Any]:
        config = self.config
        self._write_json("config.json", asdict(config))
        log = NoLog() if rank() else RunLog(self.out, self.step, config.steps)
        try:
            with interrupt_flag() as interrupted:
                while self.step < config.steps:
                    began = time.monotonic()
                    log.step(self.train_step()["elbo"])
                    last = self.step == config.steps
                    looks = last or self.step % config.eval_every == 0
                    if looks and self.device.type == "cuda":
                        torch.cuda.synchronize(self.device)  # the steps' seconds are those of their kernels
                    self.seconds += time.monotonic() - began
                    if looks and not last:
                        self._evaluate(log, self.dataset.held_out[:QUICK_SCENES])
                    stop = (size() == 1 or self.step % ASK_EVERY == 0) and any_of(interrupted.is_set())
                    if self.step % config.checkpoint_every == 0 or last or stop:
                        self._save()
                    if stop:
                        raise Interrupted
            metrics = self._evaluate(log, self.dataset.held_out, iw_particles=IW_PARTICLES, refined=True)
            if self.dataset.unseen is not None:
                metrics["unseen"] = evaluate(self.model, self.dataset.unseen, refined=True)
        finally:
            log.close()
        metrics |= {"held_out_scenes": len(self.dataset.held_out), "steps": self.step, "seconds": self.seconds,
                    "log_likelihood_ceiling": self.model.log_likelihood_ceiling}
        self._write_json("metrics.json", metrics)
        return metrics

    # ---- one step --------------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, Tensor]:
        """Take one step: forward, backward, optimiser.

        Returns:
            the objective's metrics, on the device.
        Raises:
            TrainingError: the loss is not finite.
        """
        self._set_schedules()
        loss, metrics = self.stepper(self._batch_indices())
        if self.config.learn_count_prior_from is not None and self.step >= self.config.learn_count_prior_from:
            shares = [metrics[f"share_{n}"] for n in range(self.model.num_steps + 1)]
            self.model.count_prior.follow(mean(torch.stack(shares)))
        self.step += 1
        if self.step % self.check_every == 0 and not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} at step {self.step}; {self._saved()}. "
                                "Try a lower --lr, or --precision fp32")
        values = torch.stack(list(metrics.values()))
        self.names, self.sums = list(metrics), self.sums + values if self.summed else values
        self.summed += 1
        return metrics

    def _set_schedules(self) -> None:
        config = self.config
        cosine = (1 + math.cos(math.pi * self.step / config.steps)) / 2
        self.stepper.set_rates(config.final_lr + (1 - config.final_lr) * cosine)
        remaining = 1 - self.step / config.exploration_steps if config.exploration_steps else 0.0
        self.model.anneal(self.step / config.steps)
        self.objective.exploration.fill_(config.exploration * min(1.0, max(0.0, 2 * remaining)))

    def _batch_indices(self) -> Tensor:
        """Each epoch is a permutation that follows from the seed and the epoch, so a resumed run needs no state; this
        process's share of the batch.
        """
        scenes = len(self.dataset.train)
        per_epoch = scenes // self.config.batch_size
        epoch, place = divmod(self.step, per_epoch)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            self.epoch, self.order = epoch, torch.randperm(scenes, generator=generator).to(self.device)
        start = place * self.config.batch_size
        return self.order[start:start + self.config.batch_size][rank()::size()]

    # ---- what is written -------------------------------------------------------------------------------------------

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        if rank() == 0:
            with atomic_write(self.out / name) as file:
                file.write(json.dumps(content, indent=2).encode())

    def _evaluate(self, log: RunLog | NoLog, scenes: Scenes, **thorough: Any) -> dict[str, Any]:
        held_out = evaluate(self.model, scenes, **thorough)
        train = {name: value / self.summed for name, value in zip(self.names, mean(self.sums).tolist())}
        train |= self._gradient_norms()
        self.summed = 0
        if rank():
            return held_out
        empty, filled = (which.nonzero().flatten() for which in (scenes.counts == 0, scenes.counts != 0))
        shown = torch.cat((filled[:PICTURE_SCENES - 1], empty[:1]))
        pictures = {"reconstructions": reconstruction_picture(self.model, scenes[shown])}
        if isinstance(self.model, SceneAIR):
            pictures["second_view"] = second_view_picture(self.model, scenes[shown])
        if self.dataset.unseen is not None:
            pictures["unseen"] = reconstruction_picture(self.model, self.dataset.unseen[:PICTURE_SCENES])
        if self.config.learn_count_prior_from is not None:
            pictures["samples"] = sample_picture(self.model)
        log.evaluation(self.step, self.seconds, train, held_out, pictures)
        for name, picture in pictures.items():
            with atomic_write(self.out / f"{name}.png") as file:
                to_pil_image(picture).save(file, "png")
        return held_out

    def _gradient_norms(self) -> dict[str, float]:
        """Of the last step's gradients, by network."""
        networks = dict(self.model.named_children()) | {
            name: child for name, child in self.objective.named_children() if child is not self.model}
        norms = {}
        for name, network in networks.items():
            gradients = [p.grad.norm() for p in network.parameters() if p.grad is not None]
            if gradients:
                norms[f"grad_norm_{name}"] = torch.stack(gradients).norm().item()
        return norms

    def _save(self) -> None:
        if not all(parameter.isfinite().all() for parameter in self.objective.parameters()):
            return  # the next loss will not be finite: keep the last good checkpoint
        processes = gather({
            "rng": torch.get_rng_state(), "names": self.names, "sums": self.sums.cpu(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None})
        if rank():
            return
        save_checkpoint(self.out / FILE_NAME, {
            "config": asdict(self.config), "kind": self.config.kind, "model": self.config.model,
            "objective": self.objective.state_dict(), "optimizer": self.stepper.optimizer.state_dict(),
            "step": self.step, "seconds": self.seconds, "summed": self.summed, "processes": processes})

    def _saved(self) -> str:
        saved = self.out / FILE_NAME
        return f"{saved} holds the last good step" if saved.exists() else "no checkpoint had been written"

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.objective.load_state_dict(checkpoint["objective"])
        self.stepper.optimizer.load_state_dict(checkpoint["optimizer"])
        self.stepper.settle()
        self.step, self.seconds, self.summed = checkpoint["step"], checkpoint["seconds"], checkpoint["summed"]
        processes = checkpoint["processes"]
        own = processes[rank() % len(processes)]
        self.names, self.sums = own["names"], own["sums"].to(self.device)
        if rank() >= len(processes):  # more of them than there were: draws that are no other's
            torch.manual_seed(self.config.seed + 10_007 * rank() + 1_000_003 * self.step)
            return
        torch.set_rng_state(own["rng"])
        if self.device.type == "cuda" and own["cuda_rng"] is not None:
            torch.cuda.set_rng_state(own["cuda_rng"], self.device)


@contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the flag, so that a step is finished before the run stops; a second one acts at once.

    Not so among several processes: there torchrun passes on what all of them have already got from the terminal.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # signals reach the main thread only
        return

    def handler(number: int, frame: object) -> None:
        flag.set()
        if size() == 1:
            restore()

    def restore() -> None:
        for number, action in previous.items():
            signal.signal(number, action)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        restore()
