"""What learns the sum and the order of two digits from features of their scene: see representations.py."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from air.models.networks import MLP

STEPS, CHECK_EVERY, PATIENCE, BATCH = 12_000, 100, 1000, 64
MOST_HELD = 2000  # labelled scenes, to choose when to stop
CHUNK = 1000
CLASSES = {"sum": 19, "order": 2}
ANSWERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda left, right: left + right, "order": lambda left, right: (left <= right).long()}
HIDDEN, TINY = 512, 1e-6  # of a head; of a probability
Make = Callable[[Tensor, str], nn.Module]  # features (M, ...) and a task -> a classifier


class Standardised(nn.Module):
    """A network on (x - mean) / sd."""

    def __init__(self, net: nn.Module, mean: Tensor, sd: Tensor) -> None:
        super().__init__()
        self.net, self.mean, self.sd = net, mean, sd

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> logits."""
        return self.net((x - self.mean) / self.sd)


class Arithmetic(nn.Module):
    """From what the left digit is, and what the right one is, to the answer: P(c) = Σ_{a, b: answer c} p(a) p(b)."""

    answers: Tensor  # (10, 10, classes), 1 for the right one

    def __init__(self, digits: nn.Module, task: str) -> None:
        """Args: digits: gives (B, 20) or (B, 2, 10) logits."""
        super().__init__()
        self.digits = digits
        left, right = torch.meshgrid(torch.arange(10), torch.arange(10), indexing="ij")
        self.register_buffer("answers", F.one_hot(ANSWERS[task](left, right), CLASSES[task]).float())

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> log-probabilities of the classes."""
        left, right = self.digits(x).reshape(len(x), 2, 10).softmax(-1).unbind(1)
        return (torch.einsum("bi,bj,ijc->bc", left, right, self.answers) + TINY).log()


def by_object(codes: Tensor, task: str) -> nn.Module:
    """The same network for each of the first two objects' codes, (B, N, L)."""
    flat = codes[:, :2].flatten(0, 1)
    return Arithmetic(FirstTwo(standardised(mlp(codes.shape[2], 10), flat)), task)


class FirstTwo(nn.Module):
    """A network on the first two of several codes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, L) -> (B, 2, ...)."""
        return self.net(x[:, :2])


def of_code(codes: Tensor, task: str) -> nn.Module:
    """One code, (B, L), for both digits."""
    return Arithmetic(standardised(mlp(codes.shape[1], 20), codes), task)


def mlp(inputs: int, outputs: int) -> nn.Module:
    """Two hidden layers, with dropout."""
    return nn.Sequential(MLP(inputs, [HIDDEN], "ReLU", True), nn.Dropout(0.3), MLP(HIDDEN, [HIDDEN], "ReLU", True),
                         nn.Dropout(0.3), nn.Linear(HIDDEN, outputs))


def standardised(net: nn.Module, like: Tensor) -> nn.Module:
    """The network on (x - mean) / sd, those of `like`, (M, L)."""
    return Standardised(net, like.mean(0), like.std(0).clamp(min=1e-3))


def cnn(inputs: Tensor, task: str) -> nn.Module:
    """On pixels, uint8 (B, 1, H, W), for both digits."""
    return Arithmetic(convolutions(inputs, 20), task)


def cnn_classes(inputs: Tensor, task: str) -> nn.Module:
    """On pixels, an output for each class."""
    return convolutions(inputs, CLASSES[task])


def convolutions(inputs: Tensor, outputs: int) -> nn.Module:
    """Three convolutions and two layers."""
    side = -(-inputs.shape[-1] // 8)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * side**2, 256), nn.ReLU(), nn.Linear(256, outputs))
    net = net.to(memory_format=torch.channels_last)  # a third faster on a CPU
    return Standardised(net, torch.zeros(()), torch.full((), 255.0))


def learn(make: Make, inputs: Sequence[Tensor], labels: Tensor, task: str, seed: int) -> nn.Module:
    """A classifier of the labelled inputs, as it was when it did best on every fifth of them, MOST_HELD at most.

    Args: inputs: the features of each look, (M, ...).
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
    """The logits of all inputs, (M, classes), in eval mode."""
    net.eval()
    return torch.cat([net(chunk) for chunk in inputs.split(CHUNK)])


def answers(net: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The class that is the most probable one in the mean over the looks, (M,)."""
    return torch.stack([outputs(net, look).softmax(-1) for look in inputs]).mean(0).argmax(-1)
