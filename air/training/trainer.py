"""The training loop: schedules, evaluations, checkpoints, resuming."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from air.checkpoints import FILE_NAME, load_weights, save_checkpoint
from air.config import Config
from air.data import Dataset, Scenes
from air.data.crops import disjoint_crops, random_crops
from air.distributed import any_of, gather, is_peer_failure, mean, rank, setup, world_size
from air.evaluation.evaluate import evaluate
from air.evaluation.pictures import reconstruction_picture, sample_picture, second_view_picture
from air.evaluation.whole import evaluate_whole
from air.files import atomic_write, clear_stale
from air.files.signals import deferred_signals, interrupt_flag
from air.models.air import AIR
from air.models.settings import to_dict
from air.models.where_prior import LocatingModel
from air.recipe import SCALE_PRIOR_SPREAD, build_model, build_objective
from air.scenes3d.model import SceneAIR
from air.training.batches import EpochSampler, RunningMeans
from air.training.logs import NoOpLogger, RunLogger, entries_before, quiet_events_writer
from air.training.memory import check_run
from air.training.step import TrainStep, as_compile_error

IW_PARTICLES = 100  # of the final evaluation's bound
QUICK_SCENES = 1000  # held-out scenes of intermediate evaluations; the final one uses all
PICTURE_SCENES = 6  # one of them empty, where the data set has empty ones
CHECK_EVERY = 50  # steps between checks of a GPU's loss: each waits for the device
SEED_STRIDE = 10_007  # between the seeds of processes
LOWER_LR = "Try a lower --optim.lr, or --precision fp32"
ASK_EVERY = 10  # steps between the processes' agreeing whether to stop; on CUDA they agree after each step


class TrainingError(Exception):
    """A run cannot go on; the message says what is left and what to try."""


class Interrupted(Exception):
    """The run was stopped by a signal (Ctrl-C, SIGTERM, SIGHUP) and has been saved."""


class Trainer:
    """One run: a model, its objective, the training step, and the folder that the run writes to.

    With several processes (torchrun) each takes its share of every batch and of every evaluation, the gradients are
    averaged, and rank 0 writes the files.
    """

    def __init__(self, config: Config, dataset: Dataset, out: Path, state: dict[str, Any] | None = None) -> None:
        """Build the model and the optimiser.

        Args:
            config: resolved, see `air.recipe.resolve`.
            dataset: what the configuration was resolved for.
            out: the run's folder.
            state: of a checkpoint to continue from, as if the run had never stopped.
        Raises:
            ValueError: a setting does not fit the device or the number of processes.
            CheckpointError: the state is not that of this configuration, or metrics.jsonl is damaged.
        """
        optim, seed = config.optim, config.run.seed
        self.device = setup(config.run.device)
        if optim.batch_size % world_size():
            raise ValueError(f"a batch of {optim.batch_size} images cannot be divided equally among {world_size()} "
                             "processes")
        check_run(config, dataset, self.device)
        torch.manual_seed(seed)
        self.config, self.dataset, self.out = config, dataset, out
        self.model = build_model(config.model)
        if optim.learn_scale_prior and isinstance(self.model, LocatingModel):
            self.model.prior_moves = True
        self.objective = build_objective(config.estimator, self.model).to(self.device)
        train, crop = dataset.train, optim.crop
        self.take_step = TrainStep(self.objective, train.images.to(self.device), optim.lr, optim.baseline_lr,
                                   optim.shift, config.run.precision, config.run.compile, crop,
                                   train.sizes.to(self.device))
        self.sampler = EpochSampler(len(train), optim.batch_size, seed, self.device,
                                    disjoint_crops(train, crop) if crop else None)
        # What evaluations and pictures show: scenes of the size that training shows.
        self.held_out = random_crops(dataset.held_out, crop) if crop else dataset.held_out
        self.means = RunningMeans()
        self.step = 0  # steps taken
        self.check_every = 1 if self.device.type == "cpu" else CHECK_EVERY
        self.seconds = 0.0  # spent in training steps
        self.clock = 0.0  # when the seconds not yet counted began
        self.gradient_norms: dict[str, float] = {}  # of a checkpoint from which no step has been taken yet
        self.logged: list[bytes] = []  # lines of metrics.jsonl that stay
        if rank():
            torch.manual_seed(seed + SEED_STRIDE * rank())  # each process draws its own latents
        if state is not None:
            self._restore(state)

    def run(self) -> dict[str, Any]:
        """Train to the last step, evaluate on all held-out scenes or crops, and write the run's files.

        Returns:
            The final metrics, as in metrics.json.
        Raises:
            Interrupted: a signal; the checkpoint is the state at that moment.
            TrainingError: the loss is not finite, the disk is full, or another process has died; the checkpoint is the
                last one written before.
            CompileError: torch.compile does not work here.
        """
        try:
            with quiet_events_writer():
                return self._run()
        except OSError as error:
            raise TrainingError(f"the run's folder cannot be written at step {self.step} ({error}); {self._saved()}. "
                                "Make room, and continue with --resume") from error
        except RuntimeError as error:
            if is_peer_failure(error):
                raise TrainingError(f"another process of this run has died, at step {self.step}; {self._saved()}. "
                                    "Continue with --resume") from error
            raise as_compile_error(error) or error

    def _run(self) -> dict[str, Any]:
        if not rank():
            clear_stale(self.out)
        self._write_json("config.json", to_dict(self.config))
        log = NoOpLogger() if rank() else RunLogger(self.out, self.logged, self.step, self._steps)
        try:
            self._train(log)
            if not self._is_finite():
                raise TrainingError(f"the weights are not finite after step {self.step}; {self._saved()}. {LOWER_LR}")
            metrics = self._evaluate(log, self.held_out, iw_particles=IW_PARTICLES, refined=True)
            if self.dataset.unseen is not None:
                metrics["unseen"] = evaluate(self.model, self.dataset.unseen, refined=True)
            if self.config.optim.crop and isinstance(self.model, AIR):
                metrics["whole"] = evaluate_whole(self.model, self.dataset.held_out)
        finally:
            log.close()
        metrics |= {"held_out_scenes": len(self.held_out), "steps": self.step, "seconds": self.seconds,
                    "log_likelihood_ceiling": self.model.log_likelihood_ceiling}
        self._write_json("metrics.json", metrics)
        return metrics

    def _train(self, log: RunLogger | NoOpLogger) -> None:
        """Take the steps that are left, with an evaluation and a checkpoint every so many of them."""
        every = self.config.run
        # NCCL waits for a process that has died until it is killed itself; gloo, which is asked here, raises an error.
        ask_every = ASK_EVERY if world_size() > 1 and self.device.type == "cpu" else 1
        self.clock = time.monotonic()
        with interrupt_flag(several=lambda: world_size() > 1) as interrupted:
            while self.step < self._steps:
                log.step(self.train_step()["elbo"])
                last = self.step == self._steps
                if self.step % every.eval_every == 0 and not last:
                    with self._untimed():
                        self._evaluate(log, self.held_out[:QUICK_SCENES])
                stop = self.step % ask_every == 0 and any_of(interrupted.is_set())
                if self.step % every.checkpoint_every == 0 or last or stop:
                    with self._untimed():
                        self._save()
                if stop:
                    raise Interrupted

    @contextmanager
    def _untimed(self) -> Iterator[None]:
        """Stop the clock, as soon as the device has run the kernels of all steps taken, until the block ends."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.monotonic() - self.clock
        yield
        self.clock = time.monotonic()

    # ---- one step --------------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, Tensor]:
        """Take one step: forward, backward, optimiser.

        Returns:
            The objective's metrics, on the device.
        Raises:
            TrainingError: the loss is not finite.
        """
        self.model.anneal(self.step / self._steps)
        self.objective.exploration.fill_(exploration(self.config, self.step))
        loss, metrics = self.take_step(self.sampler.indices(self.step), lr_scale(self.config, self.step))
        self._learn_priors(metrics)
        self.step += 1
        if self.step % self.check_every == 0 and not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} at step {self.step}; {self._saved()}. {LOWER_LR}")
        self.means.add(metrics)
        return metrics

    def _learn_priors(self, metrics: dict[str, Tensor]) -> None:
        """Move the priors that are learned towards what the step has inferred, once they have begun to follow it."""
        optim = self.config.optim
        if optim.learn_count_prior and self.step >= (optim.learn_count_prior_from or 0):
            shares = [metrics[f"share_{n}"] for n in range(self.model.num_steps + 1)]
            self.model.count_prior.follow(mean(torch.stack(shares)))
        if optim.learn_scale_prior and self.step >= (optim.learn_scale_prior_from or 0):
            assert isinstance(self.model, LocatingModel)
            self.model.follow_sizes(mean(self.model.size_moments), SCALE_PRIOR_SPREAD)

    @property
    def _steps(self) -> int:
        assert self.config.optim.steps is not None, "the configuration is not resolved"
        return self.config.optim.steps

    # ---- what is written -------------------------------------------------------------------------------------------

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        if rank() == 0:
            with atomic_write(self.out / name) as file:
                file.write(json.dumps(content, indent=2).encode())

    def _evaluate(self, log: RunLogger | NoOpLogger, scenes: Scenes, **thorough: Any) -> dict[str, Any]:
        held_out = evaluate(self.model, scenes, **thorough)
        if self.config.optim.learn_scale_prior and isinstance(self.model, LocatingModel):
            held_out["scale_prior"] = self.model.prior_sides()
        train = self.means.pop() | self._gradient_norms()
        if rank():
            return held_out
        pictures = self._pictures(scenes)
        log.evaluation(self.step, self.seconds, train, held_out, pictures)
        for name, picture in pictures.items():
            with atomic_write(self.out / f"{name}.png") as file:
                to_pil_image(picture).save(file, "png")
        return held_out

    def _pictures(self, scenes: Scenes) -> dict[str, Tensor]:
        """What a person looks at after an evaluation, by file name: (3, height, width) uint8 each."""
        empty, filled = (which.nonzero().flatten() for which in (scenes.counts == 0, scenes.counts != 0))
        shown = torch.cat((filled[:PICTURE_SCENES - 1], empty[:1]))
        pictures = {"reconstructions": reconstruction_picture(self.model, scenes[shown])}
        if isinstance(self.model, SceneAIR):
            pictures["second_view"] = second_view_picture(self.model, scenes[shown])
        if self.dataset.unseen is not None:
            pictures["unseen"] = reconstruction_picture(self.model, self.dataset.unseen[:PICTURE_SCENES])
        if self.config.optim.learn_count_prior:
            pictures["samples"] = sample_picture(self.model)
        return pictures

    def _gradient_norms(self) -> dict[str, float]:
        """Norms of the last step's gradients, by network; a checkpoint's until a step has been taken."""
        networks = dict(self.model.named_children()) | {
            name: child for name, child in self.objective.named_children() if child is not self.model}
        norms: dict[str, float] = {}
        for name, network in networks.items():
            gradients = [p.grad.norm() for p in network.parameters() if p.grad is not None]
            if gradients:
                norms[f"grad_norm_{name}"] = torch.stack(gradients).norm().item()
        return norms or self.gradient_norms

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if not self._is_finite():
            return  # the next loss will not be finite: keep the last good checkpoint
        processes = gather({
            "rng": torch.get_rng_state(), "means": self.means.state_dict(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None})
        if rank():
            return
        with deferred_signals():
            save_checkpoint(self.out / FILE_NAME, self.config, {
                "objective": self.objective.state_dict(), "optimizer": self.take_step.state_dict(),
                "step": self.step, "seconds": self.seconds, "gradient_norms": self._gradient_norms(),
                "images": dict(self.dataset.digests), "processes": processes})

    def _is_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.objective.parameters())

    def _saved(self) -> str:
        saved = self.out / FILE_NAME
        return f"{saved} holds the last good step" if saved.exists() else "no checkpoint had been written"

    def _restore(self, state: dict[str, Any]) -> None:
        load_weights(self.objective, state["objective"])
        self.take_step.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.gradient_norms = state["gradient_norms"]
        if not rank():
            # The final evaluation has yet to be made, or is made again: its line is not kept beside the new one.
            self.logged = entries_before(self.out, self.step + (self.step < self._steps))
        processes = state["processes"]
        own = processes[rank() % len(processes)]
        self.means.load_state_dict(own["means"], self.device)
        if rank() >= len(processes):  # more processes than there were: draws that no other process makes
            torch.manual_seed(self.config.run.seed + SEED_STRIDE * (rank() + self.step * world_size()))
            return
        torch.set_rng_state(own["rng"])
        if self.device.type == "cuda" and own["cuda_rng"] is not None:
            torch.cuda.set_rng_state(own["cuda_rng"], self.device)


def lr_scale(config: Config, step: int) -> float:
    """What the learning rates are multiplied by: 1 at step 0, falling to `final_lr` along a cosine."""
    assert config.optim.steps is not None
    cosine = (1 + math.cos(math.pi * step / config.optim.steps)) / 2
    return config.optim.final_lr + (1 - config.optim.final_lr) * cosine


def exploration(config: Config, step: int) -> float:
    """ε: as set for the first half of the exploration steps, then falling to 0 along a line."""
    until = config.estimator.exploration_steps
    remaining = 1 - step / until if until else 0.0
    return config.estimator.exploration * min(1.0, max(0.0, 2 * remaining))
