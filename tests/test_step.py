"""The step as written, and as a CUDA graph; where there is no CUDA, all of that but the graph itself."""

import copy
import subprocess
import sys

import pytest
import torch

from air import AIR, ESTIMATORS
from air.training import step as step_module
from air.training.step import WARM_UP, TrainStep, random_shift
from tests.conftest import SMALL

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.fixture
def make_step(images):
    """Training steps of an objective that is the same each time, on five images; draws no random number of its own."""
    def make(device="cpu", estimator="enumerate", precision="fp32") -> TrainStep:
        torch.manual_seed(0)
        objective = ESTIMATORS[estimator](AIR(**SMALL), exploration=0.3, revive=0.5,
                                          particles=2 if estimator == "vimco" else 1).to(device)
        return TrainStep(objective, (255 * images).to(torch.uint8).to(device), precision=precision)
    return make


def weights(some):
    return [p.detach().clone() for group in some.optimizer.param_groups for p in group["params"]]


def take(some, batches, rates):
    torch.manual_seed(1)
    losses = []
    for indices, rate in zip(batches, rates):
        losses.append(some(torch.tensor(indices, device=some.device), rate)[0].item())
    return losses


PAGES = """
import resource, torch
from air.training.step import keep_freed_memory

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(3 * 2**22).fill_(0)  # 48 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
without = fresh_pages()
keep_freed_memory()
fresh_pages()  # the heap grows, once or twice
print(without, fresh_pages())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is asked")
def test_freed_blocks_stay_with_the_process():
    """In a process of its own: what the allocator is told stays with it."""
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    without, kept = map(int, done.stdout.split())
    assert kept < 0.01 * without


BATCHES = [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 2], [1, 3]]
RATES = [1.0, 0.9, 0.8, 0.5, 0.3, 0.1, 0.0]


def test_a_step_is_adam_s_on_the_batch_s_gradient(make_step):
    """Adam's first step is rate times the gradient's sign."""
    some, other = make_step(), make_step()
    before = weights(some)
    torch.manual_seed(1)
    loss, metrics = some(torch.tensor([3, 1]), 0.5)
    torch.manual_seed(1)
    again, _ = other.forward(some.images[[3, 1]])
    assert loss == again and not loss.requires_grad and metrics["elbo"].isfinite()
    moved = 0
    for p, old in zip(some.optimizer.param_groups[0]["params"], before):
        sure = p.grad.abs() > 1e-3
        torch.testing.assert_close((p - old)[sure], (-0.5e-3 * p.grad.sign())[sure], rtol=1e-3, atol=1e-7)
        moved += int(sure.sum())
    assert moved > 100


def test_what_is_replayed_reads_each_step_s_batch_and_rates(make_step, monkeypatch):
    """The graph's part is played by the step itself, run again."""
    plain = make_step()
    losses = take(plain, BATCHES, RATES)
    calls = []
    monkeypatch.setattr(step_module, "on_side_stream", lambda run: calls.append("aside") or run())
    monkeypatch.setattr(step_module, "capture", lambda run: calls.append("capture") or run)
    replayed = make_step()
    replayed.captures = True
    replayed._place_lrs()
    rates = [group["lr"] for group in replayed.optimizer.param_groups]
    assert all(group["capturable"] for group in replayed.optimizer.param_groups)
    assert take(replayed, BATCHES, RATES) == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(weights(replayed), weights(plain))
    assert calls == ["aside"] * WARM_UP + ["capture"]
    assert replayed.indices.tolist() == BATCHES[-1]
    for group, rate in zip(replayed.optimizer.param_groups, rates):
        assert group["lr"] is rate and rate.item() == 0  # written into, not replaced


def test_the_optimiser_s_settings_are_not_loaded(make_step):
    some, other = make_step(), make_step()
    rates = [group["lr"] for group in other.optimizer.param_groups]
    take(some, BATCHES[:2], RATES[:2])
    state = copy.deepcopy(some.state_dict())
    for group in state["param_groups"]:  # as a checkpoint of a CUDA run has them, and as no run has them
        group["lr"], group["capturable"], group["betas"] = torch.tensor(0.25), True, (float("nan"), 2.0)
    other.load_state_dict(state)
    assert [group["lr"] for group in other.optimizer.param_groups] == rates
    assert all(type(group["lr"]) is float and group["capturable"] is False and group["betas"] == (0.9, 0.999)
               for group in other.optimizer.param_groups)


def test_images_are_shifted_each_by_its_own_pixels():
    images = torch.zeros(400, 2, 9, 9, dtype=torch.uint8)
    images[:, 0, 3, 4], images[:, 1, 8, 8] = 200, 100
    torch.manual_seed(0)
    moved = random_shift(images, 2)
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    rows, columns = (moved[:, 0] == 200).nonzero()[:, 1:].unbind(1)
    assert len(rows) == 400 and {*rows.tolist()} == {1, 2, 3, 4, 5} and {*columns.tolist()} == {2, 3, 4, 5, 6}
    assert len({*zip(rows.tolist(), columns.tolist())}) == 25  # along x and y independently
    stays = (rows <= 3) & (columns <= 4)  # the other channel moves along, and out at the edge
    assert torch.equal((moved[:, 1] == 100).flatten(1).any(1), stays)
    assert torch.equal((moved[:, 1] == 100).nonzero()[:, 1:], torch.stack((rows + 5, columns + 4), 1)[stays])
    assert random_shift(images, 0) is images


def test_a_step_shifts_its_images(make_step):
    some, seen = make_step(), []
    some.shift, forward = 1, some.forward
    some.forward = lambda images: seen.append(images) or forward(images)
    torch.manual_seed(0)
    some(torch.arange(5))
    torch.manual_seed(0)
    assert torch.equal(seen[0], random_shift(some.images, 1)) and not torch.equal(seen[0], some.images)


def test_tf32_is_for_cuda(make_step):
    with pytest.raises(ValueError, match="tf32 needs a CUDA device"):
        make_step(precision="tf32")


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_a_graph_takes_the_steps_that_are_written(make_step, estimator, precision):
    written, replayed = (make_step("cuda", estimator, precision) for _ in range(2))
    assert written.captures
    written.captures = False
    written._place_lrs()
    losses = take(written, BATCHES, RATES)
    assert take(replayed, BATCHES, RATES) == pytest.approx(losses, rel=1e-2 if precision == "bf16" else 1e-4)
    assert replayed.replay is not None


@needs_cuda
def test_a_graph_draws_anew_at_each_replay(make_step):
    some = make_step("cuda")
    assert len(set(take(some, [[0, 1]] * 8, [0.0] * 8))) == 8
