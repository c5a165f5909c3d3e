"""The accumulators, and the functions they are made of."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal

from air.evaluation.metrics import (
    BEYOND,
    Accumulator,
    Batch,
    Counts,
    ImportanceWeightedBound,
    Poses,
    iw_bound,
    probability_of,
)
from air.models.base import Inference
from air.models.distributions import log_count_probs


def test_probability_of_a_count_is_0_where_it_is_unknown_or_beyond_the_model():
    q = torch.tensor([[0.2, 0.8]]).repeat(4, 1)
    assert probability_of(torch.tensor([0, 1, 2, -1]), q).tolist() == pytest.approx([0.2, 0.8, 0, 0])


@pytest.mark.parametrize("particles", [1, 3])
def test_iw_bound_is_the_log_mean_weight_summed_over_counts(make_model, images, particles):
    """A weight is Σ_n p(n) p(x | n) Π_{t<=n} p(z_t) / q(z_t), here from torch's own densities."""
    model = make_model(count_prior=0.4)
    torch.manual_seed(3)
    bound = iw_bound(model, images, particles)
    torch.manual_seed(3)
    rollout = model.rollout(images, particles=particles)
    ratio = sum((Normal(z.prior_loc, z.prior_scale).log_prob(z.value)
                 - Normal(z.loc, z.scale).log_prob(z.value)).sum(-1) for z in rollout.latents.values())  # (B K, N)
    weights = torch.zeros(len(images) * particles, dtype=torch.float64)
    for n in range(4):
        log_weight = model.count_prior.log_probs[n] + rollout.log_likelihood[:, n] + ratio[:, :n].sum(-1)
        weights += log_weight.detach().exp()
    torch.testing.assert_close(bound, weights.view(len(images), particles).mean(-1).log())


def test_iw_bound_exceeds_the_elbo_and_rises_with_particles(make_model, images):
    model = make_model(count_prior=0.4)
    many = images.repeat(100, 1, 1, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        bounds = [iw_bound(model, many, k).mean().item() for k in (1, 4, 16)]
        rollout = model.rollout(many)
        log_q = log_count_probs(rollout.logits)
        elbo = (log_q.exp() * (rollout.log_likelihood + model.count_prior.log_probs - log_q)).sum(-1)
        for z in rollout.latents.values():
            elbo = elbo - (log_q.exp()[:, 1:].flip(-1).cumsum(-1).flip(-1) * z.kl()).sum(-1)
    assert elbo.mean().item() < bounds[0] < bounds[1] < bounds[2]


def test_the_iou_of_a_true_box_is_that_of_its_match():
    """Three inferred boxes, of which the first has no match: the index it holds is that of another's true box."""
    matched_iou, matched = torch.tensor([[0.0, 0.7, 0.2]]), torch.tensor([[2, 2, 0]])

    def true_iou(slots):
        return Batch.true_iou.fget(SimpleNamespace(matched_iou=matched_iou, matched=matched,
                                                   scenes=SimpleNamespace(boxes=torch.zeros(1, slots, 4))))
    assert true_iou(4).tolist() == torch.tensor([[0.2, 0, 0.7, 0]]).tolist() and true_iou(0).shape == (1, 0)


class MeanAndAll(Accumulator[torch.Tensor]):
    """The values' mean, and all values."""

    def update(self, batch):
        self.add({"mean": batch})
        self.append({"all": batch})

    def compute(self):
        return self.means() | {"all": torch.cat(self.values["all"]).tolist()}


def accumulated(*batches):
    accumulator = MeanAndAll()
    for batch in batches:
        accumulator.update(torch.tensor(batch))
    return accumulator


class TestAccumulator:
    def test_merged_processes_equal_one_process(self):
        """Sums add up and values follow in the order of the processes, one of which has had no batch."""
        merged = accumulated([1.0, 2.0])
        for other in (accumulated(), accumulated([3.0], [6.0, 8.0])):
            merged.merge(pickle.loads(pickle.dumps(other)))  # as it is sent between processes
        assert merged.compute() == accumulated([1.0, 2.0], [3.0], [6.0, 8.0]).compute()
        assert merged.compute() == {"mean": 4.0, "all": [1.0, 2.0, 3.0, 6.0, 8.0]}
        first = accumulated()
        first.merge(merged)
        assert first.compute() == merged.compute()

    def test_sums_are_in_float64(self):
        assert accumulated([2.0**24], [1.0]).compute()["mean"] == (2**24 + 1) / 2

    def test_a_mean_over_no_scene_is_left_out(self):
        assert accumulated([]).compute() == {"all": []}

    def test_a_mean_is_over_the_scenes_that_its_values_are_of(self):
        accumulator = MeanAndAll()
        accumulator.add({"known": torch.tensor([True]), "all": torch.tensor([[1, 0], [0, 1], [0, 1], [0, 1]])})
        assert accumulator.means() == {"known": 1.0, "all": [0.25, 0.75]}


def counts_batch(count, truth, refined=None):
    """What `Counts` reads of a batch; q(n) is certain of 1."""
    count, truth = torch.tensor(count), torch.tensor(truth)
    return SimpleNamespace(inference=SimpleNamespace(count=count), scenes=SimpleNamespace(counts=truth),
                           q=torch.tensor([0.0, 1, 0]).repeat(len(count), 1), count_known=truth >= 0,
                           refined_count=None if refined is None else torch.tensor(refined))


def test_counts_of_two_batches():
    counts = Counts(num_steps=2, max_count=3)
    counts.update(counts_batch([0, 1, 2], [0, 1, -1], refined=[1, 1, 1]))
    counts.update(counts_batch([2, 2], [3, 1], refined=[2, 1]))
    assert counts.compute() == {"counted": [1, 1, 3], "count_accuracy_map": 0.5, "count_accuracy_sampled": 0.5,
                                "count_accuracy_refined": 0.5, "count_error": 0.5,
                                "count_accuracy_by_count": [1, 0.5, None, 0],
                                "confusion": [[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]]}


def test_a_huge_true_count_does_not_grow_the_confusion_matrix():
    counts = Counts(num_steps=2, max_count=10**9)
    counts.update(counts_batch([0, 1, 2, 2], [2 + BEYOND - 1, 2 + BEYOND, 10**9, 2]))
    confusion = counts.compute()["confusion"]
    assert len(confusion) == 2 + BEYOND + 1 and confusion[2] == [0, 0, 1]
    assert confusion[-2:] == [[1, 0, 0], [0, 1, 1]]  # the last row is N + BEYOND and more
    assert counts.compute()["count_accuracy_map"] == 1 / 4
    assert counts.compute()["count_accuracy_by_count"][2:] == [1] + 18 * [None] + [0, 0]
    assert counts.compute()["count_error"] == (21 + 21 + 10**9 - 2) / 4


def test_counts_without_truth_are_only_counted():
    counts = Counts(num_steps=2, max_count=-1)
    counts.update(counts_batch([0, 2], [-1, -1]))
    assert counts.compute() == {"counted": [1, 0, 1]}


def test_poses_without_a_match_have_no_metrics():
    poses = Poses()
    unused = torch.zeros(1)
    inferred = Inference(count=unused, count_probs=unused, z_pres=unused, z_where=torch.zeros(1, 1, 4),
                         z_what=torch.zeros(1, 1, 3), boxes=unused, reconstruction=unused, canvases=unused,
                         masks=unused)
    none = torch.zeros(1, 1)
    poses.update(SimpleNamespace(inference=inferred, matched_iou=none, matched=none.long(),
                                 scenes=SimpleNamespace(labels=none.long(), poses=torch.zeros(1, 1, 4))))
    assert poses.compute() == {}


def test_the_bound_is_averaged_over_the_scenes_it_is_of():
    bound = ImportanceWeightedBound(particles=7)
    bound.update(torch.tensor([-1.0, -3.0]))
    bound.update(torch.tensor([-5.0]))
    assert bound.compute() == {"iw_bound": -3.0, "iw_particles": 7, "iw_scenes": 3}
