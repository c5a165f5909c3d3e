"""How well a model counts, locates and explains held-out scenes."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from air.data.scenes import Scenes
from air.distributed import gather, rank, size
from air.inference.elbo import elbo_terms
from air.inference.refine import LOOKS, refine
from air.models.air import AIR
from air.models.base import CountingModel, Inference
from air.models.distributions import log_at_least
from air.scenes3d.model import SceneAIR
from air.scenes3d.poses import PoseErrors, pose_errors

BLANK = 0.1  # intensity
CHUNK = 500  # rollouts at a time
IW_SCENES = 1000  # the importance-weighted bound is that of the first scenes only: it takes K rollouts a scene


@torch.no_grad()
def evaluate(model: CountingModel, scenes: Scenes, iw_particles: int = 0, refined: bool = False, seed: int = 0
             ) -> dict[str, Any]:
    """Measure a model on scenes it was not trained on.

    The random numbers it draws are its own: it neither depends on torch's global generator nor moves it. In a run of
    several processes each measures a share of the scenes, and all have the result; so all are to call it.

    Args:
        model: put into eval mode while it is measured.
        scenes: with their true counts and boxes, where they are known.
        iw_particles: K of the importance-weighted bound; 0 leaves the bound out.
        refined: count by `refine` as well, which takes nine times as long as `infer`; of AIR alone.
        seed: of the latents' draws.
    Returns:
        elbo, log_likelihood, kl_pres, kl_where, kl_what: nats an image, z_where and z_what drawn once, n summed out.
        mean_count: the average count under q(n).
        counted: how many scenes have the MAP count n, n = 0..N.
        squared_error: of the canvas after n = 0..N objects, at their mean latents, averaged over the pixels.
        scale_offset: of AIR alone: how far the counted objects' s lies from its prior's mean, in the prior's sds, on
            average; 0 where nothing is counted. Far below 0 the windows want to be larger than the prior says, far
            above it smaller.
        blank: share of scenes with this failure, see `failures`.
        iw_bound, iw_particles, iw_scenes: the importance-weighted bound in nats an image, averaged over the first
            IW_SCENES scenes, its K, and how many scenes that were.

        Of the scenes whose count is known, where there are any, and of boxes, where they are:
        count_accuracy_map: share of scenes whose most probable count is right.
        count_accuracy_sampled: probability that a count drawn from q(n) is right.
        count_accuracy_refined: share of scenes counted right by `refine`, where asked for.
        confusion: scenes by true count (row) and MAP count (column).
        box_iou: mean over true objects of the IoU with the inferred box matched to it, 0 for one that was missed.
        box_ap50: average precision of the inferred boxes at IoU 0.5, ranked by q(n >= t) of the draw.
        split, merged, collapsed: shares of scenes with these failures.

        Of the objects of 3D scenes whose box overlaps with the inferred one matched to it:
        identity_accuracy, place_error, rotation_error: see `PoseErrors`.
    Source: Burda et al. (2016) for the bound; the rest is the project's evaluation protocol.
    """
    was_training = model.training
    model.eval()
    tallies = gather(_tally(model, scenes, iw_particles, refined, seed))
    model.train(was_training)
    metrics = _means((tally.sums for tally in tallies), len(scenes))
    metrics["counted"] = torch.stack([tally.counted for tally in tallies]).sum(0).tolist()
    if "scale_offset" in metrics:
        metrics["scale_offset"] *= len(scenes) / max(1, sum(n * seen for n, seen in enumerate(metrics["counted"])))
    if iw_particles:
        iw_scenes = min(IW_SCENES, len(scenes))
        metrics |= {"iw_bound": sum(tally.iw for tally in tallies) / iw_scenes, "iw_particles": iw_particles,
                    "iw_scenes": iw_scenes}
    known = scenes.counts[scenes.counts >= 0]
    if len(known):
        confusion = torch.stack([tally.confusion for tally in tallies]).sum(0)
        metrics |= _means((tally.known_sums for tally in tallies), len(known))
        metrics |= {"count_accuracy_map": confusion.diagonal().sum().item() / len(known),
                    "confusion": confusion.tolist()}
    objects = int(known.sum())
    if len(known) and (not objects or (scenes.boxes[..., 2] > scenes.boxes[..., 0]).any()):
        iou, score = torch.cat([tally.iou for tally in tallies]), torch.cat([tally.score for tally in tallies])
        metrics |= _means((tally.boxed_sums for tally in tallies), len(known))
        metrics |= {"box_iou": iou.sum().item() / max(1, objects),
                    "box_ap50": average_precision(iou >= 0.5, score, objects)}
    found = [errors for tally in tallies for errors in tally.poses]
    if found:
        metrics |= PoseErrors(*map(torch.cat, zip(*found))).medians()
    return metrics


class _Tally(NamedTuple):
    """What a process found in its share of the scenes."""

    sums: dict[str, Tensor]  # over its scenes
    known_sums: dict[str, Tensor]  # over those whose count is known
    boxed_sums: dict[str, Tensor]  # over the same ones, and of use where their boxes are known as well
    counted: Tensor  # scenes by MAP count
    confusion: Tensor  # scenes by true count and MAP count
    iou: Tensor  # of each inferred box with the true one matched to it
    score: Tensor  # how sure the model was of that box
    poses: list[PoseErrors]  # of 3D scenes
    iw: float  # the bound, over its scenes


def _means(sums: Iterable[Mapping[str, Tensor]], scenes: int) -> dict[str, Any]:
    """The processes' sums together, a scene; a list where a scene has several values."""
    first, *others = sums
    return {name: (sum((other[name] for other in others if name in other), total) / scenes).tolist()
            for name, total in first.items()}


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """To the sums, values of more scenes, (B, ...) each."""
    for name, value in values.items():
        total = value.double().sum(0).cpu()
        sums[name] = sums[name] + total if name in sums else total


def _tally(model: CountingModel, scenes: Scenes, iw_particles: int, refined: bool, seed: int) -> _Tally:
    """This process's share of `evaluate`."""
    device = next(model.parameters()).device
    confusion = torch.zeros(max(int(scenes.counts.max()), model.num_steps) + 1, model.num_steps + 1, dtype=torch.int64)
    counted, iw = torch.zeros_like(confusion[0]), 0.0
    sums: dict[str, Tensor] = {}
    known_sums: dict[str, Tensor] = {}
    boxed_sums: dict[str, Tensor] = {}
    overlaps, scores = [torch.empty(0)], [torch.empty(0)]
    poses: list[PoseErrors] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + rank())
        for start in range(0, len(scenes), CHUNK)[rank()::size()]:
            chunk = scenes[start:start + CHUNK]
            images, boxes, counts = chunk.images.to(device), chunk.boxes.to(device), chunk.counts.to(device)
            inferred, rollout = model.infer(images), model.rollout(images)
            terms = elbo_terms(model, rollout)
            q = terms.log_q.exp()  # (B, N+1)
            wrong = failures(inferred, boxes)
            error = (model.as_images(images)[:, None] - inferred.canvases).square().mean((2, 3, 4))  # (B, N+1)
            _add(sums, {**terms.per_image(q), "blank": wrong.pop("blank"), "squared_error": error})
            if isinstance(model, AIR):
                offset = (inferred.z_where - model.z_where_prior_loc) / model.z_where_prior_scale  # (B, N, 3)
                _add(sums, {"scale_offset": (offset[..., 0] * inferred.z_pres).sum(-1)})
            counted += inferred.count.bincount(minlength=len(counted)).cpu()
            known = counts >= 0
            right = {"count_accuracy_sampled": _at(q, counts)}
            if refined and isinstance(model, AIR):
                again = torch.cat([refine(model, few).count for few in images.split(max(1, CHUNK // LOOKS))])
                right["count_accuracy_refined"] = again == counts
            _add(known_sums, {name: value[known] for name, value in right.items()})
            _add(boxed_sums, {name: value[known] for name, value in wrong.items()})
            confusion.index_put_((counts[known].cpu(), inferred.count[known].cpu()), torch.ones_like(confusion[0, 0]),
                                 True)
            present = (inferred.z_pres > 0) & known[:, None]
            overlap, truth = match(inferred.boxes, present, boxes, boxes[..., 2] > boxes[..., 0])
            overlaps.append(overlap[present].cpu())
            if chunk.poses is not None and isinstance(model, SceneAIR):
                errors = pose_errors(inferred, chunk.labels.to(device), chunk.poses.to(device), overlap > 0, truth)
                poses.append(PoseErrors(*(each.cpu() for each in errors)))
            scores.append(log_at_least(rollout.logits)[:, 1:][present].cpu())
        batches = scenes.images[:IW_SCENES].split(max(1, CHUNK // max(1, iw_particles))) if iw_particles else ()
        for images in batches[rank()::size()]:
            iw += iw_bound(model, images.to(device), iw_particles).double().sum().item()
    return _Tally(sums, known_sums, boxed_sums, counted, confusion, torch.cat(overlaps), torch.cat(scores), poses, iw)


def failures(inferred: Inference, true_boxes: Tensor) -> dict[str, Tensor]:
    """How counts and boxes go wrong, image by image.

    Args:
        inferred: of B images.
        true_boxes: (B, L, 4), (x0, y0, x1, y1) in pixels; 0 where absent.
    Returns:
        (B,) bool each. blank: an object was counted that paints nothing brighter than BLANK; split: two objects that
        do paint lie, each with most of its box, in one true box; merged: one object's box holds most of two true
        boxes; collapsed: there are objects, and none was counted.
    """
    painted = inferred.canvases.diff(dim=1).abs().amax((2, 3, 4)) > BLANK  # (B, N)
    counted, there = inferred.z_pres > 0, true_boxes[..., 2] > true_boxes[..., 0]  # (B, N), (B, L)
    box, truth = inferred.boxes[:, :, None], true_boxes[:, None]  # (B, N, 1, 4), (B, 1, L, 4)
    shared = (torch.minimum(box[..., 2:], truth[..., 2:]) - torch.maximum(box[..., :2], truth[..., :2])).clamp(min=0)
    shared = shared.prod(-1) * (counted & painted)[..., None] * there[:, None]  # (B, N, L), in pixels²
    inside = shared > (box[..., 2:] - box[..., :2]).prod(-1) / 2
    holds = shared > (truth[..., 2:] - truth[..., :2]).prod(-1) / 2
    return {"blank": (counted & ~painted).any(-1), "split": (inside.sum(1) > 1).any(-1),
            "merged": (holds.sum(2) > 1).any(-1), "collapsed": there.any(-1) & ~counted.any(-1)}


def iw_bound(model: CountingModel, images: Tensor, particles: int) -> Tensor:
    """The importance-weighted bound on log p(x), with the count summed out of every particle.

    A rollout's weight is Σ_n p(n) p(x | z_{1:n}) Π_{t<=n} p(z_t)/q(z_t): its mean is p(x) whatever q(n) is, and it
    varies less than that of a drawn n.

    Args:
        images: as `CountingModel.rollout` takes them.
        particles: K.
    Returns:
        (B,) in nats: log 1/K Σ_k w_k.
    Source: Burda et al. (2016), eq. 8.
    """
    rollout = model.rollout(images, particles=particles)
    terms = elbo_terms(model, rollout, sampled=True, masked=True)
    log_w = (terms.explained + terms.log_p).logsumexp(-1)  # (B K,)
    return log_w.view(-1, particles).logsumexp(-1) - math.log(particles)


def match(boxes: Tensor, present: Tensor, true_boxes: Tensor, true_present: Tensor) -> tuple[Tensor, Tensor]:
    """The true box that each inferred one is matched to: pairs are one to one, the best overlap in the image first.

    Args:
        boxes: (B, N, 4), (x0, y0, x1, y1); present: (B, N) bool.
        true_boxes: (B, L, 4); true_present: (B, L) bool.
    Returns:
        Their IoU, 0 for an inferred box without a match, and which true box it is, there any: (B, N) each.
    """
    iou = torch.vmap(box_iou)(boxes, true_boxes)  # (B, N, L)
    iou = iou * (present[..., :, None] & true_present[..., None, :])
    matched = iou.new_zeros(iou.shape[:2])
    truth = torch.zeros_like(matched, dtype=torch.int64)
    image = torch.arange(len(iou), device=iou.device)
    for _ in range(min(iou.shape[1:])):
        best, pair = iou.flatten(1).max(-1)
        row, column = pair // iou.shape[2], pair % iou.shape[2]
        truth[image, row] = column.where(best > matched[image, row], truth[image, row])
        matched[image, row] = torch.maximum(matched[image, row], best)  # a best of 0 takes no match away
        iou[image, row] = 0
        iou[image, :, column] = 0
    return matched, truth


def average_precision(hit: Tensor, score: Tensor, objects: int) -> float:
    """Area under the precision-recall curve, precision made non-increasing, as in PASCAL VOC (2010 on).

    Args:
        hit: (P,) bool, whether an inferred box is right.
        score: (P,), higher means surer.
        objects: how many true boxes there are.
    """
    if not objects:
        return float(not len(hit))
    right = hit[score.argsort(descending=True, stable=True)].double()
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(right) else precision
    return (envelope * right).sum().item() / objects  # recall rises by 1/objects at each hit


def _at(q: Tensor, counts: Tensor) -> Tensor:
    """q at the true count, (B,); 0 where the model cannot count so far, or no count is known."""
    inside = (counts >= 0) & (counts < q.shape[-1])
    return q.gather(-1, (counts * inside)[:, None]).squeeze(-1) * inside
