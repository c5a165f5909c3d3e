"""What accumulates the metrics of an evaluation, and the metrics of counts, ELBOs and poses.

`evaluate` hands every batch of scenes to every accumulator, merges the accumulators of all processes and collects what
they compute. To add metrics, write a subclass of `Accumulator` and add it to the list in `evaluate.accumulators`. The
metrics of boxes are in `box_metrics`, those of failures in `failures`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from air.data.scenes import Scenes
from air.inference.elbo import Terms, elbo_terms
from air.models.air import AIR
from air.models.base import CountingModel, Inference, Rollout
from air.models.distributions import log_at_least
from air.scenes3d.poses import PoseErrors, pose_errors

BEYOND = 20  # true counts of N + BEYOND and more share the last row of the confusion matrix

Input = TypeVar("Input")


@dataclass(frozen=True)
class Batch:
    """What a model found in B scenes, beside the truth. All tensors are on the model's device."""

    model: CountingModel
    scenes: Scenes  # the truth, as far as it is known
    images: Tensor  # (B, C, H, W), intensities, in the model's dtype
    inference: Inference
    rollout: Rollout | None  # latents drawn once, N steps; None where inference was asked for further steps
    terms: Terms | None  # of the rollout
    comparable: Tensor  # (B, N) bool, the inferred objects of the scenes whose true count is known
    matched_iou: Tensor  # (B, N), IoU of each comparable object's box with its true box, see `box_metrics.match`
    matched: Tensor  # (B, N) int64, index of that true box
    refined_count: Tensor | None  # (B,) int64, the MAP count of `refine`, if requested

    @property
    def q(self) -> Tensor:
        """(B, N+1), q(n) of the rollout or else of the inference."""
        return self.inference.count_probs if self.terms is None else self.terms.log_q.exp()

    @property
    def log_at_least(self) -> Tensor:
        """(B, N), log q(n >= t) for t = 1..N, of the rollout or else of the inference."""
        if self.rollout is not None:
            return log_at_least(self.rollout.logits)[:, 1:]
        return self.inference.count_probs.flip(-1).cumsum(-1).flip(-1)[:, 1:].log()

    @property
    def count_known(self) -> Tensor:
        """(B,) bool, whether the true count is known."""
        return self.scenes.counts >= 0

    @property
    def true_iou(self) -> Tensor:
        """(B, L), IoU of each true box with the inferred box matched to it; 0 where there is none."""
        slots = torch.arange(self.scenes.boxes.shape[1], device=self.matched.device)  # (L,)
        return (self.matched_iou[..., None] * (self.matched[..., None] == slots)).amax(1)


class Accumulator(ABC, Generic[Input]):
    """Metrics of one topic, accumulated batch by batch.

    The state is a set of named sums over scenes and a set of named lists of values, all on the CPU, so it can be sent
    to other processes and merged in the same way for every topic. A subclass defines `update` and `compute`.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # float64
        self.scenes: dict[str, int] = {}  # the number of scenes in each sum
        self.values: dict[str, list[Tensor]] = {}

    @abstractmethod
    def update(self, batch: Input) -> None:
        """Take in one batch, with `add` and `append`."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """Return the metrics by name, as numbers and lists of numbers; omit those that no scene defines."""

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add values (B, ...) to the sums of their names."""
        for name, value in values.items():
            self._add(name, value.double().sum(0).cpu(), len(value))

    def append(self, values: Mapping[str, Tensor]) -> None:
        """Append values (M, ...) to the lists of their names."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value.cpu())

    def merge(self, other: "Accumulator[Input]") -> None:
        """Add the sums of another process and append its values."""
        for name, total in other.sums.items():
            self._add(name, total, other.scenes[name])
        for name, values in other.values.items():
            self.values.setdefault(name, []).extend(values)

    def means(self) -> dict[str, Any]:
        """The sums divided by their numbers of scenes: a number, or a list if a scene has several values."""
        return {name: (total / self.scenes[name]).tolist() for name, total in self.sums.items() if self.scenes[name]}

    def _add(self, name: str, total: Tensor, scenes: int) -> None:
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.scenes[name] = self.scenes.get(name, 0) + scenes


# ---- accumulators ----------------------------------------------------------------------------------------------------

class ElboTerms(Accumulator[Batch]):
    """elbo, log_likelihood, kl_* (nats per image) and mean_count, with the count summed out."""

    def update(self, batch: Batch) -> None:
        assert batch.terms is not None
        self.add(batch.terms.per_image())

    def compute(self) -> dict[str, Any]:
        return self.means()


class SquaredError(Accumulator[Batch]):
    """squared_error of the canvas after n = 0..N objects, averaged over pixels."""

    def update(self, batch: Batch) -> None:
        error = batch.images[:, None] - batch.inference.canvases  # (B, N+1, C, H, W)
        self.add({"squared_error": error.square().mean((2, 3, 4))})

    def compute(self) -> dict[str, Any]:
        return self.means()


class ScaleOffset(Accumulator[Batch]):
    """scale_offset of the counted objects, as `evaluate` says. Only AIR has this prior."""

    def update(self, batch: Batch) -> None:
        assert isinstance(batch.model, AIR)
        where = batch.model.guide_net.normal_where(batch.inference.z_where)
        offset = (where - batch.model.z_where_prior_loc) / batch.model.z_where_prior_scale
        self.add({"offset": (offset[..., 0] * batch.inference.z_pres).sum(-1), "objects": batch.inference.count})

    def compute(self) -> dict[str, Any]:
        objects = int(self.sums["objects"])
        return {"scale_offset": self.means()["offset"] * (self.scenes["offset"] / max(1, objects))}


class Counts(Accumulator[Batch]):
    """counted; and count_accuracy_*, count_error and confusion of the scenes whose count is known."""

    def __init__(self, num_steps: int, max_count: int) -> None:
        """
        Args:
            num_steps: N, the largest count that is inferred.
            max_count: the largest true count; it may exceed N. True counts of N + BEYOND and more share a row.
        """
        super().__init__()
        self.inferred_counts = num_steps + 1
        self.true_counts = max(num_steps, min(max_count, num_steps + BEYOND)) + 1

    def update(self, batch: Batch) -> None:
        known, count, truth = batch.count_known, batch.inference.count, batch.scenes.counts
        counted = F.one_hot(count, self.inferred_counts)  # (B, N+1)
        compared = {"count_accuracy_sampled": probability_of(truth, batch.q), "count_accuracy_map": count == truth,
                    "count_error": (count - truth).abs()}
        if batch.refined_count is not None:
            compared["count_accuracy_refined"] = batch.refined_count == truth
        true = F.one_hot(truth[known].clamp(max=self.true_counts - 1), self.true_counts)
        self.add({name: value[known] for name, value in compared.items()})
        self.add({"counted": counted, "confusion": true[:, :, None] * counted[known][:, None]})

    def compute(self) -> dict[str, Any]:
        metrics = self.means()
        metrics |= {name: self.sums[name].long().tolist() for name in ("counted", "confusion") if name in metrics}
        if "confusion" in metrics:
            # A row of a true count that the model cannot reach has no cell for it.
            metrics["count_accuracy_by_count"] = [sum(row[true:true + 1]) / sum(row) if any(row) else None
                                                  for true, row in enumerate(metrics["confusion"])]
        return metrics


class Poses(Accumulator[Batch]):
    """identity_accuracy, place_error and rotation_error of 3D objects whose box overlaps its true box."""

    def update(self, batch: Batch) -> None:
        assert batch.scenes.poses is not None
        self.append(pose_errors(batch.inference, batch.scenes.labels, batch.scenes.poses, batch.matched_iou > 0,
                                batch.matched)._asdict())

    def compute(self) -> dict[str, Any]:
        return PoseErrors(**{name: torch.cat(values) for name, values in self.values.items()}).medians()


class ImportanceWeightedBound(Accumulator[Tensor]):
    """iw_bound, iw_particles and iw_scenes; a batch is the images' bounds, (B,) in nats."""

    def __init__(self, particles: int) -> None:
        super().__init__()
        self.particles = particles

    def update(self, batch: Tensor) -> None:
        self.add({"iw_bound": batch})

    def compute(self) -> dict[str, Any]:
        return {**self.means(), "iw_particles": self.particles, "iw_scenes": self.scenes["iw_bound"]}


# ---- functions -------------------------------------------------------------------------------------------------------

def iw_bound(model: CountingModel, images: Tensor, particles: int) -> Tensor:
    """Importance-weighted bound on log p(x), with the count summed out of each particle's weight.

    The weight of a rollout is w = Σ_n p(n) p(x | z_{1:n}) Π_{t<=n} p(z_t) / q(z_t). Its mean is p(x) whatever q(n) is,
    and its variance is smaller than that of a weight with a sampled n.

    Args:
        images: as `CountingModel.rollout` takes them.
        particles: K.
    Returns:
        (B,) in nats: log 1/K Σ_k w_k.
    Source: Burda et al. (2016), eq. 8.
    """
    rollout = model.rollout(images, particles=particles)
    terms = elbo_terms(model, rollout, sampled=True, masked=True)
    log_w = terms.log_joint.logsumexp(-1)  # (B K,)
    return log_w.unflatten(0, (-1, particles)).logsumexp(-1) - math.log(particles)


def probability_of(counts: Tensor, q: Tensor) -> Tensor:
    """q(n) at given counts.

    Args:
        counts: (B,) int64; -1 where unknown.
        q: (B, N+1).
    Returns:
        (B,); 0 where the count is unknown or exceeds N.
    """
    inside = (counts >= 0) & (counts < q.shape[-1])
    return q.gather(-1, (counts * inside)[:, None]).squeeze(-1) * inside
