from pathlib import Path

import pytest
import torch
from torch import nn

from air.data import Scenes


@pytest.fixture
def r(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return __import__("representations")


def test_tasks_read_the_digits_from_left_to_right(r):
    boxes = torch.zeros(3, 2, 4)
    boxes[:, 0, 0], boxes[:, 1, 0] = 20, 5  # the second digit stands to the left of the first
    scenes = Scenes(torch.zeros(3, 1, 9, 9), torch.full((3,), 2), boxes, torch.tensor([[7, 2], [2, 7], [4, 4]]))
    assert {name: labels.tolist() for name, labels in r.tasks(scenes).items()} == {"sum": [9, 9, 8], "order": [1, 0, 1]}


def test_codes_stand_from_left_to_right_and_absent_ones_last(r, make_model, images):
    model = make_model(count_prior=0.9)
    codes, seen = r.air_codes(model, images), model.infer(images)
    for code, z_pres, z_where, z_what in zip(codes, seen.z_pres, seen.z_where, seen.z_what):
        count = int(z_pres.sum())
        order = sorted(range(count), key=lambda t: (-z_where[t, 1] / z_where[t, 0]).item())
        expected = [torch.cat((torch.ones(1), z_where[t], z_what[t])) for t in order]
        torch.testing.assert_close(code[:count], torch.stack(expected) if count else code[:0])
        assert (code[count:] == 0).all()


@pytest.mark.parametrize("make, shape", [("by_object", (300, 2, 5)), ("of_code", (300, 5)), ("cnn", (300, 1, 16, 16))])
def test_each_classifier_learns_what_can_be_learned(r, make, shape, monkeypatch):
    """The sign of a number, against chance, on inputs that it has not seen."""
    monkeypatch.setattr(r, "STEPS", 300)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator)
    if len(shape) == 4:
        inputs = 128 + 40 * inputs.sign().mean((2, 3), keepdim=True).sign() * torch.ones(shape)
    labels = (inputs.flatten(1)[:, 0] > (128 if len(shape) == 4 else 0)).long()
    net = r.learn(getattr(r, make), [inputs[:200]], labels[:200], 2, seed=0)
    right = (r.answers(net, [inputs[200:]]) == labels[200:]).float().mean()
    assert right > 0.9 and not net.training


def test_looks_are_the_image_moved(r):
    image = torch.zeros(1, 1, 4, 5, dtype=torch.uint8)
    image[0, 0, 1, 2] = 9
    places = [tuple(look[0, 0].nonzero()[0].tolist()) for look in r.looks(image)]
    assert places == [(1 + down, 2 + right) for right, down in r.LOOKS] and len(set(places)) == 5
    image[:] = 7  # what comes in at an edge is black
    assert [int((look == 0).sum()) for look in r.looks(image)] == [0, 8, 8, 8, 8]


def test_an_answer_is_the_mean_of_the_looks(r):
    """Two looks that are not sure against one that is."""
    net = nn.Identity()
    sure, unsure = torch.tensor([[0.0, 4.0]]), torch.tensor([[0.1, 0.0]])
    assert r.answers(net, [unsure, sure, unsure]).tolist() == [1] and r.answers(net, [unsure]).tolist() == [0]


def test_every_look_is_learned_from(r, monkeypatch):
    """What only the second look shows."""
    monkeypatch.setattr(r, "STEPS", 300)
    labels = torch.randint(2, (300,), generator=torch.Generator().manual_seed(2))
    shows = torch.randn(300, 3, generator=torch.Generator().manual_seed(3)) + 4 * labels[:, None]
    net = r.learn(r.of_code, [torch.randn(300, 3), shows], labels, 2, seed=0)
    assert (r.answers(net, [shows]) == labels).float().mean() > 0.9


def test_a_classifier_is_kept_as_it_was_at_its_best(r, monkeypatch):
    """On labels without rule, the fifth that is held back gets worse as the rest is learned by heart."""
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(100, 20, generator=generator), torch.randint(2, (100,), generator=generator)
    held = torch.arange(100) % 5 == 0
    losses = []

    def outputs(net, some, real=r.outputs):
        logits = real(net, some)
        losses.append(nn.functional.cross_entropy(logits, labels[held]).item())
        return logits

    monkeypatch.setattr(r, "outputs", outputs)
    net = r.learn(r.of_code, [inputs], labels, 2, seed=0)
    checks = list(losses)
    assert len(checks) == checks.index(min(checks)) + 1 + r.PATIENCE / r.CHECK_EVERY < r.STEPS / r.CHECK_EVERY
    r.outputs(net, inputs[held])
    assert losses[-1] == pytest.approx(min(checks)) and checks[-1] > 1.5 * min(checks)


def test_the_table_has_mean_and_worst(r):
    records = [{"task": task, "method": method, "labels": size, "seed": seed, "accuracy": 0.5 + seed / 10}
               for task in r.CLASSES for method in ("AIR", "CNN") for size in (50, 1000) for seed in (0, 1)]
    assert r.table(records).splitlines()[2] == "| sum | AIR | 55.0 (50.0) | 55.0 (50.0) |"
    assert "1,000" in r.table(records).splitlines()[0] and len(r.table(records).splitlines()) == 6
