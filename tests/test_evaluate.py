import math
from dataclasses import replace

import pytest
import torch

from air.data import Table
from air.evaluation import evaluate as evaluation
from air.evaluation.box_metrics import Boxes, BoxesBySize, Sizes, longer_side
from air.evaluation.evaluate import accumulators, chunk_size, evaluate
from air.evaluation.metrics import Poses, ScaleOffset
from air.inference.refine import refine
from air.models.base import Inference
from air.models.distributions import log_count_probs
from air.scenes3d.model import SceneAIR
from air.scenes3d.renderer import View


def with_various_counts(model):
    """The model with an untrained guide whose MAP count depends on the image."""
    with torch.no_grad():
        model.guide_net.predict.mlp[-1].weight *= 5
        model.guide_net.predict.mlp[-1].bias[0] = 0.3
    return model


def test_metrics_agree_with_counting_by_hand(make_model, scenes):
    model = make_model(count_prior=0.3).float()
    metrics = evaluate(model, scenes, iw_particles=2, refined=True)
    inferred = model.eval().infer(scenes.images)
    assert metrics["count_accuracy_map"] == pytest.approx((inferred.count == scenes.counts).float().mean().item())
    refined = refine(model, scenes.images)
    assert metrics["count_accuracy_refined"] == pytest.approx((refined.count == scenes.counts).float().mean().item())
    confusion = torch.tensor(metrics["confusion"])
    assert confusion.shape == (4, 4) and confusion.sum() == len(scenes)
    for truth in range(4):
        for count in range(4):
            assert confusion[truth, count] == ((scenes.counts == truth) & (inferred.count == count)).sum()
    errors = [abs(count - truth) for count, truth in zip(inferred.count.tolist(), scenes.counts.tolist())]
    assert metrics["count_error"] == pytest.approx(sum(errors) / len(scenes))
    by_count = [[error == 0 for error, truth in zip(errors, scenes.counts) if truth == count] for count in range(4)]
    assert metrics["count_accuracy_by_count"] == [pytest.approx(sum(right) / len(right)) if right else None
                                                  for right in by_count]
    torch.manual_seed(0)
    q = log_count_probs(model.rollout(scenes.images).logits).exp()
    sampled = sum(q[i, count].item() for i, count in enumerate(scenes.counts.tolist())) / len(scenes)
    assert metrics["count_accuracy_sampled"] == pytest.approx(sampled)
    parts = metrics["log_likelihood"] - metrics["kl_pres"] - metrics["kl_where"] - metrics["kl_what"]
    assert metrics["elbo"] == pytest.approx(parts)
    assert metrics["iw_particles"] == 2 and metrics["iw_bound"] > metrics["elbo"]


def test_scale_offset_is_averaged_over_the_counted_objects(make_model, scenes):
    model = with_various_counts(make_model(scale_prior_mean=2.0, scale_prior_sd=0.5).float())
    inferred = model.infer(scenes.images)
    scales = inferred.z_where[..., 0][inferred.z_pres > 0].tolist()
    assert 1 < len(scales) < 3 * len(scenes)
    offset = evaluate(model, scenes)["scale_offset"]
    assert offset == pytest.approx(sum((s - 2) / 0.5 for s in scales) / len(scales), rel=1e-5)
    with torch.no_grad():
        model.guide_net.predict.mlp[-1].bias[0] = -50
    assert evaluate(model, scenes)["scale_offset"] == 0


def test_a_perfect_model_scores_perfectly(make_model, scenes):
    """A model that is given the truth: accuracy 100%, IoU 1, AP 1."""
    model = make_model().float()
    inferred = model.infer(scenes.images)
    boxes = torch.cat((scenes.boxes, torch.zeros(len(scenes), 1, 4)), 1)
    perfect = Inference(count=scenes.counts, count_probs=inferred.count_probs, z_pres=model.z_pres(scenes.counts),
                        z_where=inferred.z_where, z_what=inferred.z_what, boxes=boxes,
                        reconstruction=inferred.reconstruction, canvases=inferred.canvases, masks=inferred.masks)
    model.infer = lambda images: perfect
    metrics = evaluate(model, scenes)
    assert metrics["count_accuracy_map"] == metrics["box_iou"] == metrics["box_ap50"] == pytest.approx(1)
    sides = longer_side(scenes.boxes)[scenes.has_box]
    assert metrics["box_by_size"]["small"] == {"side": [3, 3], "objects": len(sides), "iou": pytest.approx(1),
                                               "found": 1}
    assert metrics["size_histogram"] == sides.long().bincount(minlength=13).tolist()
    assert metrics["sizes"]["5%"] == metrics["sizes"]["95%"] == 3
    assert metrics["count_error"] == sum(metrics["wrong"].values()) == 0
    assert "iw_bound" not in metrics


def test_the_global_generator_and_the_mode_stay_as_they_are(make_model, scenes):
    model = make_model().float().train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = evaluate(model, scenes)
    assert torch.equal(torch.rand(3), expected) and model.training
    assert evaluate(model, scenes) == first  # its draws have their own seed
    assert evaluate(model, scenes, seed=1)["elbo"] != first["elbo"]


def test_counts_beyond_the_model_are_wrong_not_an_error(make_model, scenes):
    model = make_model(num_steps=1).float()
    metrics = evaluate(model, scenes)
    assert len(metrics["confusion"]) == 3 and len(metrics["confusion"][0]) == 2
    assert math.isfinite(metrics["elbo"])


def test_scenes_of_unknown_count_enter_only_the_metrics_that_need_no_truth(make_model, scenes):
    model = with_various_counts(make_model(count_prior=0.3).float())
    half = torch.arange(len(scenes)) % 2 == 0
    partly = replace(scenes, counts=torch.where(half, scenes.counts, -1))
    unknown = replace(scenes, counts=torch.full_like(scenes.counts, -1))
    whole, partial, none = (evaluate(model, some, iw_particles=2, refined=True) for some in (scenes, partly, unknown))
    assert {"elbo", "mean_count", "counted", "squared_error", "blank", "iw_bound", "sizes"} <= none.keys()
    assert not any(name.startswith(("count_", "box_", "confusion", "merged", "wrong")) for name in none)
    assert all(whole[name] == partial[name] == none[name] for name in none)
    assert sum(map(sum, partial["confusion"])) == half.sum()
    inferred = model.eval().infer(scenes.images)
    assert partial["count_accuracy_map"] == pytest.approx((inferred.count == scenes.counts)[half].float().mean().item())
    of_half = evaluate(model, scenes[half])
    assert partial["wrong"] == of_half["wrong"] and partial["box_by_size"] == of_half["box_by_size"]
    assert partial["box_iou"] == pytest.approx(of_half["box_iou"]) and partial["merged"] == of_half["merged"]
    no_boxes = evaluate(model, replace(scenes, boxes=torch.zeros(len(scenes), 0, 4)))
    assert no_boxes["confusion"] == whole["confusion"]
    assert not {"box_iou", "box_by_size", "merged", "wrong"} & set(no_boxes)
    counted = inferred.count.bincount(minlength=4).tolist()
    error = (scenes.images[:, None] / 255 - inferred.canvases).square().mean((0, 2, 3, 4))
    assert whole["counted"] == counted and whole["squared_error"] == pytest.approx(error.tolist(), rel=1e-5)


def test_accumulators_are_those_that_apply(make_model, scenes):
    def topics(model, scenes):
        return {type(accumulator) for accumulator in accumulators(model, scenes)}

    unknown = replace(scenes, counts=torch.full_like(scenes.counts, -1))
    no_boxes = replace(scenes, boxes=torch.zeros_like(scenes.boxes))
    table = Table(image_size=16).generate(False, 4, (0, 1, 2))
    assert topics(make_model(), scenes) >= {ScaleOffset, Boxes, BoxesBySize, Sizes}
    assert Poses not in topics(make_model(), scenes)
    assert not {Boxes, BoxesBySize} & (topics(make_model(), unknown) | topics(make_model(), no_boxes))
    assert Sizes in topics(make_model(), unknown)
    assert Boxes in topics(make_model(), no_boxes[scenes.counts == 0])  # known: there are none
    assert topics(SceneAIR(2, 0.35, View(image_size=16)), table) >= {Poses, Boxes}
    assert ScaleOffset not in topics(SceneAIR(2, 0.35, View(image_size=16)), table)


def test_chunks_are_larger_on_cuda_within_the_memory_of_a_small_gpu(monkeypatch):
    """Those of the CPU decide its draws; larger images than the default model's get smaller chunks."""
    cpu, cuda, default = torch.device("cpu"), torch.device("cuda"), 3 * 50**2
    assert chunk_size(cpu, 432) == chunk_size(cpu, default) == chunk_size(cpu, 10**7) == 500
    assert chunk_size(cuda, 432) == chunk_size(cuda, default) == 5000
    assert chunk_size(cuda, 5 * default) == 1000 and chunk_size(cuda, 10**7) == 500
    monkeypatch.setattr("air.evaluation.evaluate.world_size", lambda: 2)
    assert chunk_size(cuda, default) == 500


def test_scenes_looks_and_particles_come_in_chunks(make_model, scenes, monkeypatch):
    """Here of 20 rollouts: 20 scenes, 2 scenes of nine looks, 6 scenes of three particles."""
    seen = {"run_model": [], "iw_bound": [], "refine": []}
    model = make_model(count_prior=0.3)

    def counted(name):
        act = getattr(evaluation, name)
        return lambda *given: seen[name].append(len(given[1])) or act(*given)

    monkeypatch.setattr(evaluation, "chunk_size", lambda device, pixels: {3 * 12**2: 20}[pixels])
    for name in seen:
        monkeypatch.setattr(evaluation, name, counted(name))
    evaluation.evaluate(model, scenes, iw_particles=3, refined=True)
    assert seen == {"run_model": [20, 20], "iw_bound": 6 * [6] + [4], "refine": 20 * [2]}


def flat(metrics, name=""):
    """Names and numbers of metrics within lists and dictionaries; None stays."""
    if isinstance(metrics, (dict, list)):
        for key, value in metrics.items() if isinstance(metrics, dict) else enumerate(metrics):
            yield from flat(value, f"{name}.{key}".strip("."))
    else:
        yield name, metrics


def test_chunks_together_are_all_scenes(make_model, scenes, monkeypatch):
    """Metrics that depend on no draws are the same for any size of the chunks."""
    model = with_various_counts(make_model(count_prior=0.3))
    whole = evaluate(model, scenes, iw_particles=2, refined=True)
    monkeypatch.setattr("air.evaluation.evaluate.CHUNK", 7)
    chunks = evaluate(model, scenes, iw_particles=2, refined=True)
    drawn = ("elbo", "log_likelihood", "kl_", "mean_count", "iw_bound", "count_accuracy_sampled", "box_ap50")
    for (name, found), expected in zip(flat(chunks), (value for _, value in flat(whole))):
        if not name.startswith(drawn):
            assert found == pytest.approx(expected), name
    assert min(whole["counted"][:2]) > 0 and chunks["iw_scenes"] == len(scenes) and chunks.keys() == whole.keys()
