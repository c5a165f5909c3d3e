"""Classifiers for the sum and the order of two digits, on top of a scene's features; see representations.py."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from air.models.networks import MLP

STEPS, CHECK_EVERY, PATIENCE, BATCH = 12_000, 100, 1000, 64
MOST_HELD = 2000  # labelled scenes held back for early stopping
CHUNK = 1000
CLASSES = {"sum": 19, "order": 2}
ANSWERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda left, right: left + right, "order": lambda left, right: (left <= right).long()}
HIDDEN, TINY = 512, 1e-6  # units of a hidden layer; added to probabilities before their log
Make = Callable[[Tensor, str], nn.Module]  # features (M, ...) and a task -> an untrained classifier


class Standardised(nn.Module):
    """Applies a network to (x - mean) / sd."""

    def __init__(self, net: nn.Module, mean: Tensor, sd: Tensor) -> None:
        super().__init__()
        self.net, self.mean, self.sd = net, mean, sd

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> logits."""
        return self.net((x - self.mean) / self.sd)


class Arithmetic(nn.Module):
    """Turns distributions over the left and the right digit into one over answers.

    P(c) = Σ_{a, b: answer(a, b) = c} p_left(a) p_right(b)
    """

    answers: Tensor  # (10, 10, classes), one-hot

    def __init__(self, digits: nn.Module, task: str) -> None:
        """Args: digits: a network with (B, 20) or (B, 2, 10) logits as output. task: a key of ANSWERS."""
        super().__init__()
        self.digits = digits
        left, right = torch.meshgrid(torch.arange(10), torch.arange(10), indexing="ij")
        self.register_buffer("answers", F.one_hot(ANSWERS[task](left, right), CLASSES[task]).float())

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> log-probabilities of the classes."""
        left, right = self.digits(x).reshape(len(x), 2, 10).softmax(-1).unbind(1)
        return (torch.einsum("bi,bj,ijc->bc", left, right, self.answers) + TINY).log()


def by_object(codes: Tensor, task: str) -> nn.Module:
    """A network that reads the codes (B, N, L) of the first two objects one at a time, with shared weights."""
    flat = codes[:, :2].flatten(0, 1)
    return Arithmetic(FirstTwo(standardised(mlp(codes.shape[2], 10), flat)), task)


class FirstTwo(nn.Module):
    """Applies a network to the first two of several codes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, L) -> (B, 2, ...)."""
        return self.net(x[:, :2])


def of_code(codes: Tensor, task: str) -> nn.Module:
    """A network that reads both digits from one code (B, L)."""
    return Arithmetic(standardised(mlp(codes.shape[1], 20), codes), task)


def mlp(inputs: int, outputs: int) -> nn.Module:
    """An MLP of two hidden layers with dropout."""
    return nn.Sequential(MLP(inputs, [HIDDEN], "ReLU", True), nn.Dropout(0.3), MLP(HIDDEN, [HIDDEN], "ReLU", True),
                         nn.Dropout(0.3), nn.Linear(HIDDEN, outputs))


def standardised(net: nn.Module, like: Tensor) -> nn.Module:
    """The network with its inputs standardised by the statistics of `like`, (M, L)."""
    return Standardised(net, like.mean(0), like.std(0).clamp(min=1e-3))


def cnn(inputs: Tensor, task: str) -> nn.Module:
    """A CNN that reads both digits from pixels, uint8 (B, 1, H, W)."""
    return Arithmetic(convolutions(inputs, 20), task)


def cnn_classes(inputs: Tensor, task: str) -> nn.Module:
    """A CNN on pixels with one output a class: it has to learn the arithmetic as well."""
    return convolutions(inputs, CLASSES[task])


def convolutions(inputs: Tensor, outputs: int) -> nn.Module:
    """Three strided convolutions and two linear layers, on pixels in 0..255."""
    side = -(-inputs.shape[-1] // 8)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * side**2, 256), nn.ReLU(), nn.Linear(256, outputs))
    net = net.to(memory_format=torch.channels_last)  # a third faster on a CPU
    return Standardised(net, torch.zeros(()), torch.full((), 255.0))


def learn(make: Make, inputs: Sequence[Tensor], labels: Tensor, task: str, seed: int) -> nn.Module:
    """Train a classifier with early stopping on every fifth labelled scene, at most MOST_HELD of them.

    Args:
        inputs: the features of each look, (M, ...); every step draws one of the looks.
        labels: (M,), classes.
    Returns:
        the classifier as of the step with the lowest held-back loss.
    """
    torch.manual_seed(seed)
    held = torch.arange(len(labels)) % max(5, len(labels) // MOST_HELD) == 0
    shown, held_inputs = (~held).nonzero().flatten(), inputs[0][held]
    net = make(inputs[0][shown], task)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    best, best_state, best_step = float("inf"), net.state_dict(), 0
    for step in range(1, STEPS + 1):
        look, chosen = inputs[int(torch.randint(len(inputs), ()))], shown[torch.randint(len(shown), (BATCH,))]
        net.train()
        optimizer.zero_grad()
        F.cross_entropy(net(look[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0:
            loss = F.cross_entropy(outputs(net, held_inputs), labels[held]).item()
            if loss < best:
                best, best_step = loss, step
                best_state = {name: value.clone() for name, value in net.state_dict().items()}
            elif step - best_step >= PATIENCE:
                break
    net.load_state_dict(best_state)
    return net


@torch.no_grad()
def outputs(net: nn.Module, inputs: Tensor) -> Tensor:
    """Logits of all inputs, (M, classes), in eval mode."""
    net.eval()
    return torch.cat([net(chunk) for chunk in inputs.split(CHUNK)])


def answers(net: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The most probable classes (M,) of the average distribution over the looks."""
    return torch.stack([outputs(net, look).softmax(-1) for look in inputs]).mean(0).argmax(-1)
