import pytest
import torch
from torch import nn

from experiments.studies import heads


@pytest.fixture(autouse=True)
def small_heads(monkeypatch):
    monkeypatch.setattr(heads, "HIDDEN", 64)
    monkeypatch.setattr(heads, "STEPS", 400)
    monkeypatch.setattr(heads, "PATIENCE", 200)


def test_an_answer_follows_from_two_digits_by_arithmetic():
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
def test_each_classifier_learns_what_can_be_learned(make):
    """Tested on unseen pairs of noisy one-hot digits; chance is 55%."""
    digits = torch.randint(10, (1500, 2), generator=torch.Generator().manual_seed(0))
    codes = nn.functional.one_hot(digits, 10).float() + 0.1 * torch.randn(1500, 2, 10)
    pictures = codes.repeat_interleave(6, 1)[:, None]  # (M, 1, 12, 10): six rows a digit
    inputs = {"by_object": torch.cat((codes, torch.randn(1500, 1, 10)), 1), "of_code": codes.flatten(1)}.get(
        make, 255 * nn.functional.pad(pictures, (1, 1)))
    labels = (digits[:, 0] <= digits[:, 1]).long()
    net = heads.learn(getattr(heads, make), [inputs[:1200]], labels[:1200], "order", seed=0)
    right = (heads.answers(net, [inputs[1200:]]) == labels[1200:]).float().mean()
    assert right > 0.9 and not net.training


def test_an_answer_averages_over_the_looks():
    """One confident look outweighs two uncertain ones."""
    net = nn.Identity()
    sure, unsure = torch.tensor([[0.0, 4.0]]), torch.tensor([[0.1, 0.0]])
    assert heads.answers(net, [unsure, sure, unsure]).tolist() == [1]
    assert heads.answers(net, [unsure]).tolist() == [0]


def test_training_uses_every_look():
    """Only the second look is informative."""
    labels = torch.randint(2, (300,), generator=torch.Generator().manual_seed(2))
    shows = torch.randn(300, 3, generator=torch.Generator().manual_seed(3)) + 4 * labels[:, None]
    net = heads.learn(heads.of_code, [torch.randn(300, 3), shows], labels, "order", seed=0)
    assert (heads.answers(net, [shows]) == labels).float().mean() > 0.9


def test_training_stops_early_and_keeps_the_best_weights(monkeypatch):
    """With random labels, the held-back loss rises as the rest is memorised."""
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
