"""Evaluate a model on held-out scenes: how well it counts, locates and explains their objects."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from air.data.scenes import IMAGE_SIZE, Scenes
from air.distributed import gather, rank, world_size
from air.evaluation.box_metrics import Boxes, BoxesBySize, Sizes, match
from air.evaluation.failures import Failures
from air.evaluation.mask_metrics import Masks
from air.evaluation.metrics import (
    Accumulator,
    Batch,
    Counts,
    ElboTerms,
    ImportanceWeightedBound,
    Poses,
    ScaleOffset,
    SquaredError,
    iw_bound,
)
from air.inference.elbo import elbo_terms
from air.inference.refine import LOOKS, refine
from air.models.air import AIR
from air.models.base import CountingModel
from air.scenes3d.model import SceneAIR

CHUNK = 500  # rollouts at a time on the CPU; on CUDA at least as many, see `chunk_size`
CUDA_CHUNK = 5000
CUDA_VALUES = 5000 * 3 * 50**2  # pixels of the canvases of as many default models' rollouts
FURTHER_VALUES = 5 * 10**7  # pixels of the canvases of a chunk that is counted further than N
# At most so many pixels, channels counted, for the importance-weighted bound, which takes K rollouts per scene: 1,000
# scenes of the usual size.
IW_PIXELS = 1000 * IMAGE_SIZE**2


@torch.no_grad()
def evaluate(model: CountingModel, scenes: Scenes, iw_particles: int = 0, refined: bool = False, seed: int = 0,
             most: int | None = None) -> dict[str, Any]:
    """Measure a model on scenes it was not trained on.

    The global random number generators keep their states. In a distributed run every process must call this function:
    each evaluates a share of the scenes, and all return the same metrics.

    Args:
        model: put into eval mode during the evaluation.
        scenes: with their true counts and boxes where known.
        iw_particles: K of the importance-weighted bound; 0 omits the bound.
        refined: also count with `refine`, which takes nine times as long as `infer`; AIR only.
        seed: of the latents' draws.
        most: the largest count, see `AIR.infer`; None: as in training.
    Returns:
        Metrics by name, as numbers, lists of numbers and dictionaries of either.

        elbo, log_likelihood, kl_pres, kl_where, kl_what: in nats per image, with the other latents drawn once and n
            summed out. Models with further latents have a kl_* for each.
        mean_count: average of the count under q(n).
        counted: number of scenes with each MAP count n = 0..N.
        squared_error: of the canvas after n = 0..N objects at their mean latents, averaged over pixels.
        scale_offset: AIR only: (s - prior mean) / prior sd, with log s for s where the guide is search, averaged over
            the counted objects; 0 if there are none. If it is far below 0, the windows need to be larger than the prior
            says; far above 0, smaller.
        size_histogram: number of counted objects whose box has a longer side of 0, 1, 2, ... pixels, rounded; the
            last bin is the image's side and more.
        sizes: the quantiles "5%", "25%", "50%", "75%" and "95%" of these sides in pixels; absent if no object was
            counted.
        blank: share of scenes with this failure, see `failures.failures`.
        iw_bound, iw_particles, iw_scenes: the importance-weighted bound in nats per image, its K, and the number of
            scenes it is averaged over (the first that have IW_PIXELS together).

        Of the scenes whose true count is known, if there are any:

        count_accuracy_map: share of scenes whose MAP count is correct.
        count_accuracy_sampled: probability that a count drawn from q(n) is correct.
        count_accuracy_refined: share of scenes whose MAP count by `refine` is correct.
        count_accuracy_by_count: share of the scenes with each true count whose MAP count is correct; None where no
            scene has that count. Rows as in confusion.
        count_error: absolute difference between MAP count and true count, averaged over scenes.
        confusion: number of scenes by true count (row) and MAP count (column); true counts of N + metrics.BEYOND and
            more share the last row.

        Of the same scenes, if their boxes are known:

        box_iou: IoU of each true box with the inferred box matched to it, 0 if there is none, averaged over true boxes.
        box_ap50: average precision of the inferred boxes at IoU 0.5, ranked by q(n >= t).
        box_by_size: for the true boxes in the "small", "medium" and "large" third by their longer side, see
            `box_metrics.terciles`: side, [smallest, largest] in pixels; objects, their number; iou, averaged as
            box_iou; found, the share with an IoU of at least 0.5. None where a third is empty; absent if all are.
        split, merged, collapsed: share of scenes with these failures, see `failures.failures`.
        wrong: share of scenes whose MAP count is wrong, each under the first that applies: "split"; "merged"; "border"
            and "small", a true object at the border, or of the small third, was missed (IoU below 0.1); "other".

        Of scenes whose masks are known, if there are any:

        fg_ari: adjusted Rand index of the pixels that belong to objects, between the true masks and whose the model
            takes each pixel for, the ground's included; averaged over scenes. 1 is perfect, also where there is nothing
            to tell apart; 0 is chance.
        fg_ari_several: the same, over the scenes in which two objects or more are seen; absent if there are none.
        mask_iou: IoU of each true object's pixels with those of the inferred object matched to it, one to one, 0 if
            there is none; averaged over the true objects. Absent if there are none.

        Of 3D objects whose box overlaps the true box matched to it: identity_accuracy, place_error, rotation_error, see
        `PoseErrors`.
    Source: Burda et al. (2016) for the bound; the other metrics are the project's evaluation protocol.
    """
    device = next(model.parameters()).device
    if most is not None and (iw_particles or refined):
        raise ValueError("the importance-weighted bound and refined counts are those of N steps: leave out most")
    over_batches = accumulators(model, scenes, most)
    bound = ImportanceWeightedBound(iw_particles)
    pixels = (most or model.num_steps) * scenes.images[0].numel()
    chunk = chunk_size(device, pixels) if most is None else max(1, min(CHUNK, FURTHER_VALUES // pixels))
    was_training = model.training
    model.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + rank())
        for share in _share(scenes, chunk):
            batch = run_model(model, share, max(1, chunk // LOOKS) if refined else 0, most)
            for accumulator in over_batches:
                accumulator.update(batch)
        if iw_particles:
            enough = math.ceil(IW_PIXELS / scenes.images.shape[1:].numel())
            for share in _share(scenes[:enough], max(1, chunk // iw_particles)):
                bound.update(iw_bound(model, share.images.to(device), iw_particles))
    model.train(was_training)

    all_accumulators: list[Accumulator[Any]] = [*over_batches, bound] if iw_particles else [*over_batches]
    merged, *others = gather(all_accumulators)
    for other in others:
        for accumulator, same_topic in zip(merged, other):
            accumulator.merge(same_topic)
    return {name: value for accumulator in merged for name, value in accumulator.compute().items()}


def chunk_size(device: torch.device, pixels: int) -> int:
    """How many rollouts an evaluation makes at a time.

    The draws follow the chunks, so metrics that depend on draws follow the chunks' size: it is the same on every CPU.
    The draws on CUDA differ from those on the CPU anyway. There a chunk is larger, since its kernels take about as long
    to launch whatever its size, unless the images are so large that memory counts, or processes share the chunks.

    Args:
        device: of the model.
        pixels: of one rollout's canvases, N C H W.
    """
    if device.type == "cpu" or world_size() > 1:
        return CHUNK
    return max(CHUNK, min(CUDA_CHUNK, CUDA_VALUES // pixels))


def accumulators(model: CountingModel, scenes: Scenes, most: int | None = None) -> list[Accumulator[Batch]]:
    """List the accumulators that apply to a model and to what is known about the scenes.

    Args:
        model: to be evaluated.
        scenes: all scenes of the evaluation, so that all processes choose the same accumulators.
        most: as in `evaluate`.
    Returns:
        One new accumulator per topic.
    """
    counts = scenes.counts[scenes.counts >= 0]
    boxes_known = len(counts) > 0 and bool(scenes.has_box.any() or not counts.any())
    chosen: list[tuple[Accumulator[Batch], bool]] = [
        (ElboTerms(), most is None),
        (SquaredError(), most is None),
        (ScaleOffset(), isinstance(model, AIR)),
        (Counts(most or model.num_steps, int(scenes.counts.max())), True),
        (Failures(boxes_known), True),
        (Boxes(), boxes_known),
        (BoxesBySize(), boxes_known),
        (Sizes(max(scenes.images.shape[-2:])), True),
        (Masks(), scenes.masks is not None),
        (Poses(), scenes.poses is not None and isinstance(model, SceneAIR)),
    ]
    return [accumulator for accumulator, applies in chosen if applies]


def run_model(model: CountingModel, scenes: Scenes, refine_chunk: int, most: int | None = None) -> Batch:
    """Run a model on scenes and match the boxes it infers to the true ones.

    Args:
        model: in eval mode.
        scenes: B scenes, on any device.
        refine_chunk: also run `refine`, on so many scenes at a time, if the model is AIR; 0: do not.
        most: as in `evaluate`.
    Returns:
        What accumulators read.
    """
    device = next(model.parameters()).device
    scenes = replace(scenes, **{name: value.to(device) for name, value in scenes.arrays().items()})
    images = model.as_images(scenes.images)
    rollout = terms = None
    if most is None:
        inference, rollout = model.infer(images), model.rollout(images)
        terms = elbo_terms(model, rollout)
    else:
        if not isinstance(model, AIR):
            raise ValueError(f"most={most}: only AIR counts further than num_steps")
        inference = model.infer(images, most)
    refined_count = None
    if refine_chunk and isinstance(model, AIR):
        refined_count = torch.cat([refine(model, few).count for few in images.split(refine_chunk)])
    comparable = (inference.z_pres > 0) & (scenes.counts >= 0)[:, None]  # (B, N)
    true_present = scenes.has_box  # (B, L)
    matched_iou, matched = match(inference.boxes, comparable, scenes.boxes, true_present)
    return Batch(model, scenes, images, inference, rollout, terms, comparable, matched_iou, matched, refined_count)


def _share(scenes: Scenes, chunk_size: int) -> Iterator[Scenes]:
    """Yield the chunks of this process: chunk 0 goes to process 0, chunk 1 to process 1, and so on in turn."""
    for start in range(0, len(scenes), chunk_size)[rank()::world_size()]:
        yield scenes[start:start + chunk_size]
