import json
from pathlib import Path

import pytest
import torch
from torch import nn

from air.data import Scenes


@pytest.fixture
def r(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return __import__("representations")


@pytest.fixture
def heads(r, monkeypatch):
    heads = __import__("heads")
    monkeypatch.setattr(heads, "HIDDEN", 64)
    monkeypatch.setattr(heads, "STEPS", 400)
    monkeypatch.setattr(heads, "PATIENCE", 200)
    return heads


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


def test_an_answer_follows_from_two_digits_by_arithmetic(heads):
    """Against a loop over all pairs."""
    logits = torch.randn(3, 2, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, right = logits.softmax(-1).unbind(1)
    for task, answer, classes in (("sum", lambda a, b: a + b, 19), ("order", lambda a, b: int(a <= b), 2)):
        expected = torch.zeros(3, classes, dtype=torch.float64)
        for a in range(10):
            for b in range(10):
                expected[:, answer(a, b)] += left[:, a] * right[:, b]
        found = heads.Arithmetic(nn.Identity(), task).double()(logits)
        torch.testing.assert_close(found.exp(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("make", ["by_object", "of_code", "cnn", "cnn_classes"])
def test_each_classifier_learns_what_can_be_learned(heads, make):
    """Pairs of digits, each shown as it is, against chance, on inputs that it has not seen; no label names a digit."""
    digits = torch.randint(10, (1500, 2), generator=torch.Generator().manual_seed(0))
    codes = nn.functional.one_hot(digits, 10).float() + 0.1 * torch.randn(1500, 2, 10)
    pictures = codes.repeat_interleave(6, 1)[:, None]  # (M, 1, 12, 10): six rows a digit
    inputs = {"by_object": torch.cat((codes, torch.randn(1500, 1, 10)), 1), "of_code": codes.flatten(1)}.get(
        make, 255 * nn.functional.pad(pictures, (1, 1)))
    labels = (digits[:, 0] <= digits[:, 1]).long()
    net = heads.learn(getattr(heads, make), [inputs[:1200]], labels[:1200], "order", seed=0)
    right = (heads.answers(net, [inputs[1200:]]) == labels[1200:]).float().mean()
    assert right > 0.9 and not net.training


def test_looks_are_the_image_moved(r):
    image = torch.zeros(1, 1, 4, 5, dtype=torch.uint8)
    image[0, 0, 1, 2] = 9
    places = [tuple(look[0, 0].nonzero()[0].tolist()) for look in r.looks(image)]
    assert places == [(1 + down, 2 + right) for right, down in r.LOOKS] and len(set(places)) == 5
    image[:] = 7  # what comes in at an edge is black
    assert [int((look == 0).sum()) for look in r.looks(image)] == [0, 8, 8, 8, 8]


def test_an_answer_is_the_mean_of_the_looks(heads):
    """Two looks that are not sure against one that is."""
    net = nn.Identity()
    sure, unsure = torch.tensor([[0.0, 4.0]]), torch.tensor([[0.1, 0.0]])
    assert heads.answers(net, [unsure, sure, unsure]).tolist() == [1]
    assert heads.answers(net, [unsure]).tolist() == [0]


def test_every_look_is_learned_from(heads):
    """What only the second look shows."""
    labels = torch.randint(2, (300,), generator=torch.Generator().manual_seed(2))
    shows = torch.randn(300, 3, generator=torch.Generator().manual_seed(3)) + 4 * labels[:, None]
    net = heads.learn(heads.of_code, [torch.randn(300, 3), shows], labels, "order", seed=0)
    assert (heads.answers(net, [shows]) == labels).float().mean() > 0.9


def test_a_classifier_is_kept_as_it_was_at_its_best(heads, monkeypatch):
    """On labels without rule, the fifth that is held back gets worse as the rest is learned by heart."""
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(100, 20, generator=generator), torch.randint(2, (100,), generator=generator)
    held = torch.arange(100) % 5 == 0
    losses = []

    def outputs(net, some, real=heads.outputs):
        logits = real(net, some)
        losses.append(nn.functional.cross_entropy(logits, labels[held]).item())
        return logits

    monkeypatch.setattr(heads, "outputs", outputs)
    net = heads.learn(heads.of_code, [inputs], labels, "order", seed=0)
    checks = list(losses)
    patience, steps = heads.PATIENCE / heads.CHECK_EVERY, heads.STEPS / heads.CHECK_EVERY
    assert len(checks) == checks.index(min(checks)) + 1 + patience < steps
    heads.outputs(net, inputs[held])
    assert losses[-1] == pytest.approx(min(checks)) and checks[-1] > 1.5 * min(checks)


def test_the_most_frequent_answers_are_nine_and_ascending(r):
    assert r.usual_answer("sum") == 0.1 and r.usual_answer("order") == 0.55


def test_the_page_s_table_is_that_of_the_results(r, tmp_path, capsys):
    r.main(["--table", "--plot", str(tmp_path / "plot.png")])
    assert capsys.readouterr().out in (r.ROOT / "docs" / "experiments.md").read_text()


def test_the_table_has_mean_and_worst(r):
    records = [{"task": task, "method": method, "labels": size, "seed": seed, "accuracy": 0.5 + seed / 10}
               for task in r.CLASSES for method in ("AIR", "CNN") for size in (50, 1000) for seed in (0, 1)]
    assert r.table(records).splitlines()[2] == "| sum | AIR | 55.0 (50.0) | 55.0 (50.0) |"
    assert "1,000" in r.table(records).splitlines()[0] and len(r.table(records).splitlines()) == 6


def test_the_table_is_of_all_seeds_that_have_a_file(r, tmp_path, capsys):
    of = ["--table", "--results", str(tmp_path), "--plot", str(tmp_path / "plot.png")]
    with pytest.raises(SystemExit):
        r.main(of)
    assert f"there are no results in {tmp_path}" in capsys.readouterr().err
    for seed in (0, 1):
        records = [{"task": task, "method": "AIR", "labels": 50, "seed": seed, "accuracy": 0.5 + seed / 10}
                   for task in r.CLASSES]
        (tmp_path / f"seed{seed}.json").write_text(json.dumps({"records": records}))
    r.main(of)
    assert "| sum | AIR | 55.0 (50.0) |" in capsys.readouterr().out and (tmp_path / "plot.png").stat().st_size > 1000
