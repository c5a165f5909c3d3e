import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal

from air.evaluation.evaluate import average_precision, evaluate, failures, iw_bound, match
from air.inference.refine import refine
from air.models.base import Inference
from air.models.distributions import NormalLatent, log_count_probs


class TestMatching:
    def test_pairs_one_to_one_the_best_first(self):
        boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30]]])
        truth = torch.tensor([[[0.0, 0, 10, 10], [25, 20, 35, 30]]])
        everything = torch.ones(1, 3, dtype=torch.bool)
        iou, which = match(boxes, everything, truth, everything[:, :2])
        assert iou.tolist() == [[1.0, 0.0, pytest.approx(50 / 150)]]  # the second is near the first's truth: no match
        assert which[0, [0, 2]].tolist() == [0, 1]

    def test_absent_boxes_match_nothing(self):
        boxes = torch.tensor([[[0.0, 0, 4, 4], [4, 4, 8, 8]]]).repeat(2, 1, 1)
        present = torch.tensor([[True, False], [True, True]])
        true_present = torch.tensor([[True, True], [False, True]])
        iou, which = match(boxes, present, boxes, true_present)
        assert iou.tolist() == [[1, 0], [0, 1]] and (which[0, 0], which[1, 1]) == (0, 1)


class TestAveragePrecision:
    def test_known_curves(self):
        """By rank: hit, miss, hit has precisions 1, 1/2, 2/3 at its ranks; miss, hit, hit has 0, 1/2, 2/3, of which the
        first hit is given the best that a later rank reaches."""
        score = torch.tensor([0.2, 0.9, 0.5])
        assert average_precision(torch.tensor([True, True, False]), score, 4) == pytest.approx((1 + 2 / 3) / 4)
        assert average_precision(torch.tensor([True, False, True]), score, 4) == pytest.approx((2 / 3 + 2 / 3) / 4)
        assert average_precision(torch.tensor([False, True, True]), score, 4) == pytest.approx((1 + 1) / 4)

    def test_limits(self):
        assert average_precision(torch.ones(5, dtype=torch.bool), torch.rand(5), 5) == pytest.approx(1)
        assert average_precision(torch.zeros(5, dtype=torch.bool), torch.rand(5), 5) == 0
        assert average_precision(torch.zeros(0, dtype=torch.bool), torch.zeros(0), 5) == 0


def test_failures_by_name():
    """One scene each: right; a blank second object; one object in two halves; two objects in one; none found; empty."""
    one, other, both = [10.0, 10, 20, 20], [22.0, 10, 32, 20], [10.0, 10, 32, 20]
    upper, lower, none = [10.0, 10, 20, 15], [10.0, 14, 20, 20], [0.0] * 4
    truth = torch.tensor([[one, other], [one, none], [one, none], [one, other], [one, none], [none, none]])
    boxes = torch.tensor([[other, one], [one, upper], [upper, lower], [both, none], [none, none], [none, none]])
    z_pres = (boxes[..., 2] > 0).float()
    canvases = torch.zeros(6, 3, 1, 40, 40)
    canvases[:, 1:, :, 12, 12] = 0.8
    canvases[:, 2, :, 13, 13] = 0.8
    canvases[1, 2, :, 13, 13] = 0.05
    inferred = Inference(*[torch.zeros(6)] * 2, z_pres, *[torch.zeros(6)] * 2, boxes, torch.zeros(6), canvases)
    seen = {name: where.nonzero().flatten().tolist() for name, where in failures(inferred, truth).items()}
    assert seen == {"blank": [1], "split": [2], "merged": [3], "collapsed": [4]}


@pytest.mark.parametrize("particles", [1, 3])
def test_iw_bound_is_the_log_mean_weight_summed_over_counts(make_model, images, particles):
    """A weight is Σ_n p(n) p(x|n) Π_{t<=n} p(z_t)/q(z_t), here from torch's own densities."""
    model = make_model(count_prior=0.4)
    torch.manual_seed(3)
    bound = iw_bound(model, images, particles)
    torch.manual_seed(3)
    weights = torch.zeros(len(images), particles, dtype=torch.float64)
    rollouts = model.rollout(images, particles=particles)
    for k in range(particles):
        def of_k(rows):
            return rows.unflatten(0, (-1, particles))[:, k]

        latents = {name: NormalLatent(*(of_k(x) if x.ndim == 3 else x for x in latent))
                   for name, latent in rollouts.latents.items()}
        rollout = rollouts._replace(latents=latents, log_likelihood=of_k(rollouts.log_likelihood))
        ratio = sum((Normal(z.prior_loc, z.prior_scale).log_prob(z.value)
                     - Normal(z.loc, z.scale).log_prob(z.value)).sum(-1) for z in rollout.latents.values())
        for n in range(4):
            log_weight = model.count_prior.log_probs[n] + rollout.log_likelihood[:, n] + ratio[:, :n].sum(-1)
            weights[:, k] += log_weight.detach().exp()
    torch.testing.assert_close(bound, weights.mean(-1).log())


def test_iw_bound_rises_with_particles_above_the_elbo(make_model, images):
    model = make_model(count_prior=0.4)
    many = images.repeat(100, 1, 1, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        bounds = [iw_bound(model, many, k).mean().item() for k in (1, 4, 16)]
        rollout = model.rollout(many)
        q = log_count_probs(rollout.logits)
        elbo = (q.exp() * (rollout.log_likelihood + model.count_prior.log_probs - q)).sum(-1)
        for z in rollout.latents.values():
            elbo = elbo - (q.exp()[:, 1:].flip(-1).cumsum(-1).flip(-1) * z.kl()).sum(-1)
    assert elbo.mean().item() < bounds[0] < bounds[1] < bounds[2]


def test_measures_agree_with_counting_by_hand(make_model, scenes):
    model = make_model(count_prior=0.3).float()
    metrics = evaluate(model, scenes, iw_particles=2, refined=True)
    seen = model.eval().infer(scenes.images)
    assert metrics["count_accuracy_map"] == pytest.approx((seen.count == scenes.counts).float().mean().item())
    again = refine(model, scenes.images)
    assert metrics["count_accuracy_refined"] == pytest.approx((again.count == scenes.counts).float().mean().item())
    confusion = torch.tensor(metrics["confusion"])
    assert confusion.shape == (4, 4) and confusion.sum() == len(scenes)
    for truth in range(4):
        for count in range(4):
            assert confusion[truth, count] == ((scenes.counts == truth) & (seen.count == count)).sum()
    torch.manual_seed(0)
    q = log_count_probs(model.rollout(scenes.images).logits).exp()
    sampled = sum(q[i, count].item() for i, count in enumerate(scenes.counts.tolist())) / len(scenes)
    assert metrics["count_accuracy_sampled"] == pytest.approx(sampled)
    parts = metrics["log_likelihood"] - metrics["kl_pres"] - metrics["kl_where"] - metrics["kl_what"]
    assert metrics["elbo"] == pytest.approx(parts)
    assert metrics["iw_particles"] == 2 and metrics["iw_bound"] > metrics["elbo"]
    assert 0 <= metrics["box_iou"] <= 1


def test_scale_offset_is_that_of_the_counted_objects(make_model, scenes):
    model = make_model(scale_prior_mean=2.0, scale_prior_sd=0.5).float()
    with torch.no_grad():
        model.predict.mlp[-1].weight *= 5  # or every image would have the same count
        model.predict.mlp[-1].bias[0] = 0.3
    seen = model.infer(scenes.images)
    scales = [s for z_where, count in zip(seen.z_where, seen.count.tolist()) for s in z_where[:count, 0].tolist()]
    assert 1 < len(scales) < 3 * len(scenes)
    offset = evaluate(model, scenes)["scale_offset"]
    assert offset == pytest.approx(sum((s - 2) / 0.5 for s in scales) / len(scales), rel=1e-5)
    with torch.no_grad():
        model.predict.mlp[-1].bias[0] = -50
    assert evaluate(model, scenes)["scale_offset"] == 0


def test_a_perfect_model_scores_perfectly(make_model, scenes):
    """A model that is told the truth: counts 100%, boxes IoU 1, AP 1."""
    model = make_model().float()
    truth = iter(range(0, len(scenes), 500))
    infer = model.infer

    def told(images):
        start = next(truth)
        chunk = scenes[start:start + 500]
        seen = infer(images)
        boxes = torch.cat((chunk.boxes, torch.zeros(len(chunk), 1, 4)), 1)
        return seen._replace(count=chunk.counts, boxes=boxes, z_pres=(torch.arange(3) < chunk.counts[:, None]).float())

    model.infer = told
    metrics = evaluate(model, scenes)
    assert metrics["count_accuracy_map"] == metrics["box_iou"] == metrics["box_ap50"] == pytest.approx(1)
    assert "iw_bound" not in metrics


def test_it_leaves_the_generator_and_the_mode_alone(make_model, scenes):
    model = make_model().float().train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = evaluate(model, scenes)
    assert torch.equal(torch.rand(3), expected) and model.training
    assert evaluate(model, scenes) == first  # its own draws are seeded
    assert evaluate(model, scenes, seed=1)["elbo"] != first["elbo"]


def test_counts_beyond_the_model_are_wrong_not_an_error(make_model, scenes):
    model = make_model(num_steps=1).float()
    metrics = evaluate(model, scenes)
    assert len(metrics["confusion"]) == 3 and len(metrics["confusion"][0]) == 2
    assert math.isfinite(metrics["elbo"])


def test_scenes_whose_count_is_unknown_take_part_in_what_needs_no_truth(make_model, scenes):
    model = make_model(count_prior=0.3).float()
    half = torch.arange(len(scenes)) % 2 == 0
    partly = replace(scenes, counts=torch.where(half, scenes.counts, -1))
    whole, partial, none = (evaluate(model, which, iw_particles=2, refined=True) for which in (
        scenes, partly, replace(scenes, counts=torch.full_like(scenes.counts, -1))))
    free = set(none)
    assert {"elbo", "mean_count", "counted", "squared_error", "blank", "iw_bound"} <= free
    assert not any(name.startswith(("count_", "box_", "confusion", "merged")) for name in free)
    assert all(whole[name] == partial[name] == none[name] for name in free)
    assert sum(map(sum, partial["confusion"])) == half.sum()
    seen = model.eval().infer(scenes.images)
    assert partial["count_accuracy_map"] == pytest.approx((seen.count == scenes.counts)[half].float().mean().item())
    there = evaluate(model, scenes[half])
    assert partial["box_iou"] == pytest.approx(there["box_iou"]) and partial["merged"] == there["merged"]
    no_boxes = evaluate(model, replace(scenes, boxes=torch.zeros(len(scenes), 0, 4)))
    assert no_boxes["confusion"] == whole["confusion"] and not {"box_iou", "merged"} & set(no_boxes)
    counted = seen.count.bincount(minlength=4).tolist()
    error = (scenes.images[:, None] / 255 - seen.canvases).square().mean((0, 2, 3, 4))
    assert whole["counted"] == counted and whole["squared_error"] == pytest.approx(error.tolist(), rel=1e-5)
