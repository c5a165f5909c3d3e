"""The step as written, and what a captured one does beside the graph; tests/test_graph.py compares the two."""

import copy
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from air import AIR, ESTIMATORS
from air.training import step as step_module
from air.training.step import WARM_UP, TrainStep, random_crop, random_shift, set_arithmetic
from tests.conftest import SMALL


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
    return [p.detach().clone() for p in weights_in_place(some)]


def weights_in_place(some):
    return [p for group in some.optimizer.param_groups for p in group["params"]]


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
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "stream")
    monkeypatch.setattr(step_module, "on_stream", lambda stream, run: calls.append("aside") or run())
    monkeypatch.setattr(step_module, "capture", lambda stream, run: calls.append("capture") or run)
    replayed = make_step()
    replayed.capture_steps(True)
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


def pictures():
    """Two pictures of 5 x 9 and 7 x 4 in images of 7 x 9; each pixel inside has a value of its own, 0 is beyond."""
    images = torch.arange(1, 2 * 2 * 7 * 9 + 1).view(2, 2, 7, 9)
    images[0, :, 5:] = images[1, :, :, 4:] = 0
    return images, torch.tensor([[5, 9], [7, 4]])


def test_crops_lie_anywhere_inside_their_own_picture():
    images, sizes = pictures()
    torch.manual_seed(0)
    chosen = torch.tensor([1, 0]).repeat(500)
    crops = random_crop(images, sizes, chosen, 3)
    assert crops.shape == (1000, 2, 3, 3) and crops.all()
    for picture, (height, width) in enumerate(sizes.tolist()):
        own = crops[chosen == picture]
        whole = images[picture].unfold(1, 3, 1).unfold(2, 3, 1)  # (C, rows, columns, 3, 3)
        places = whole[:, :height - 2, :width - 2].flatten(1, 2).movedim(1, 0)
        which = (own[:, None] == places).flatten(2).all(-1)  # (crops, places)
        assert (which.sum(1) == 1).all()
        expected = 500 / len(places)
        assert (which.sum(0) - expected).abs().max() < 4 * expected**0.5  # uniform


def test_a_crop_as_large_as_its_picture_is_the_picture():
    images = torch.rand(3, 1, 6, 6)
    assert torch.equal(random_crop(images, torch.full((3, 2), 6), torch.tensor([2, 0]), 6), images[[2, 0]])


def test_a_step_crops_its_images(make_step):
    some, seen = make_step(), []
    forward = some.forward
    some.images = torch.zeros(5, 1, 30, 25, dtype=torch.uint8).random_(256)
    some.crop, some.sizes = 12, torch.tensor([30, 25]).expand(5, 2)
    some.forward = lambda images: seen.append(images) or forward(images)
    torch.manual_seed(0)
    some(torch.tensor([3, 1, 3]))
    torch.manual_seed(0)
    assert torch.equal(seen[0], random_crop(some.images, some.sizes, torch.tensor([3, 1, 3]), 12))


class FakeStream:
    """What CUDA's streams and graphs are asked to do, in order."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self, log):
        self.log = log

    def replay(self):
        self.log.append("replay")


def test_warm_up_and_capture_share_a_stream(make_step, monkeypatch):
    log = []
    current, streams = FakeStream("current", log), []

    def new_stream(device):
        streams.append(FakeStream(f"stream {len(streams)}", log))
        return streams[-1]

    @contextmanager
    def inside(what, stream):
        log.append(f"{what} on {stream.name}")
        yield
        log.append("end")

    monkeypatch.setattr(torch.cuda, "Stream", new_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: inside("run", stream))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: inside("capture", stream))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(log))
    some = make_step()
    some.capture_steps(True)
    take(some, BATCHES[:5], RATES)
    warm_up = ["stream 0 waits for current", "run on stream 0", "end", "current waits for stream 0"]
    assert log == 3 * warm_up + ["capture on stream 0", "end", "replay", "replay"] and WARM_UP == 3
    log.clear()
    some.load_state_dict(copy.deepcopy(some.state_dict()))  # captures anew, on the same stream
    take(some, BATCHES[:5], RATES)
    assert log == 3 * warm_up + ["capture on stream 0", "end", "replay", "replay"] and len(streams) == 1


class CastLog(TorchDispatchMode):
    """Which tensors are cast to bfloat16, by where they lie in memory."""

    def __init__(self):
        super().__init__()
        self.cast = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._to_copy and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.cast.append(args[0].data_ptr())
        return func(*args, **(kwargs or {}))


def test_a_captured_step_casts_each_weight_once_and_each_step_anew(make_step, monkeypatch):
    """What the captured region does: it casts as often as a step that is not captured, and keeps no cast."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "stream")
    monkeypatch.setattr(step_module, "on_stream", lambda stream, run: run())
    monkeypatch.setattr(step_module, "capture", lambda stream, run: run)
    written, captured = make_step(precision="bf16"), make_step(precision="bf16")
    captured.capture_steps(True)
    logs = []
    for some in (written, captured):
        take(some, BATCHES[:WARM_UP], RATES)
        for batch in BATCHES[WARM_UP:WARM_UP + 2]:
            with CastLog() as log:
                take(some, [batch], [1.0])
            where = {p.data_ptr() for p in weights_in_place(some)}
            assert max(Counter(each for each in log.cast if each in where).values()) == 1
            logs.append(log.cast)
    assert len({len(each) for each in logs}) == 1 and len(logs[0]) > 10


def test_tf32_is_for_cuda(make_step):
    with pytest.raises(ValueError, match="tf32 needs a CUDA device"):
        make_step(precision="tf32")


@pytest.fixture
def arithmetic():
    """As they were, after the test."""
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic
    yield
    torch.set_float32_matmul_precision(before[0])
    cudnn.allow_tf32, cudnn.deterministic = before[1:]


def test_the_precision_is_that_of_products_and_convolutions(arithmetic):
    for wanted, products in ((False, "highest"), (True, "high"), (False, "highest")):
        set_arithmetic(torch.device("cuda"), wanted)
        assert torch.get_float32_matmul_precision() == products and torch.backends.cudnn.allow_tf32 is wanted
        assert torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32 = True
    set_arithmetic(torch.device("cpu"), False)
    assert torch.backends.cudnn.allow_tf32  # of no interest there


def test_torch_s_advice_on_newer_settings_is_not_repeated(arithmetic, monkeypatch):
    """torch 2.9 gives it to whoever uses those that 2.4 has; other warnings are shown."""
    def warns(precision):
        warnings.warn("Please use the new API settings to control TF32 behavior, such as ...", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    with monkeypatch.context() as patched, pytest.warns(UserWarning) as seen:
        patched.setattr(torch, "set_float32_matmul_precision", warns)
        set_arithmetic(torch.device("cuda"), False)
    assert [str(each.message) for each in seen] == ["something else"]
