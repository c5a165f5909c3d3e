"""Captured steps compared with written ones, in weights and buffers; on a GPU by real graphs.

Without one, the graph's part is played by the step itself, run again: that tests these tests.
"""

import copy
from contextlib import contextmanager

import pytest
import torch

from air import AIR, ESTIMATORS
from air.checkpoints import load_checkpoint
from air.config import with_settings
from air.evaluation.evaluate import evaluate
from air.training import step as step_module
from air.training.step import WARM_UP, TrainStep
from air.training.trainer import Trainer
from tests.conftest import SMALL
from tests.small_scenes import make_images, make_scene_model

STEPS = WARM_UP + 4
ON_CUDA = pytest.param("cuda", marks=pytest.mark.cuda)

# Estimator, the model's keywords, those of the step; whether a step is deterministic on CUDA (docs/performance.md).
CASES = {
    "enumerate": ("enumerate", {}, {}, True),
    "nvil": ("nvil", {}, {}, True),
    "vimco": ("vimco", {}, {}, True),
    "shift": ("enumerate", {}, {"shift": 2}, True),
    "bf16": ("enumerate", {}, {"precision": "bf16"}, False),  # the same sums in another order
    "difference": ("enumerate", {"guide": "difference"}, {}, False),
    "search": ("nvil", {"guide": "search"}, {}, False),
    "sizes": ("enumerate", {"guide": "search", "scale_prior_sd": 1.0, "touch_price": 30.0}, {}, False),
    "background": ("enumerate", {"background": True}, {}, False),
    "convolutional": ("enumerate", {"convolutional": True, "window_size": 8}, {}, False),
    "3D": ("nvil", None, {}, False),
    "compile": ("enumerate", {}, {"compiled": True}, True),
}
DETERMINISTIC = [name for name, case in CASES.items() if case[-1]]


@pytest.fixture(params=["cpu", ON_CUDA])
def device(request, monkeypatch):
    """Where steps are taken; on the CPU a replay runs the captured function again."""
    if request.param == "cpu":
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
        monkeypatch.setattr(step_module, "on_stream", lambda stream, run: run())
        monkeypatch.setattr(step_module, "capture", lambda stream, run: run)
    return request.param


@pytest.fixture
def make_step(images, device):
    """A training step of a case, the same each time it is made."""
    def make(case, captures=True) -> TrainStep:
        estimator, keywords, of_step, _ = CASES[case]
        if device == "cpu" and of_step.get("compiled"):
            pytest.skip("compiling takes long on the CPU, where tests/test_operations.py counts what is dispatched")
        torch.manual_seed(0)
        if keywords is None:
            model, some_images = make_scene_model(), make_images()
        else:
            model, some_images = AIR(**{**SMALL, **keywords}), images
        # In float32 on a CPU, Adam makes whole steps of gradients that are nothing but rounding, as on CUDA.
        model = model.double() if device == "cpu" and case in ("3D", "search", "sizes") else model.float()
        objective = ESTIMATORS[estimator](model, exploration=0.3, revive=0.5, **{"vimco": {"particles": 2}}.get(
            estimator, {})).to(device)
        some = TrainStep(objective, (255 * some_images).to(torch.uint8).to(device), **of_step)
        some.capture_steps(captures)
        return some
    return make


def batches(some):
    """The indices of each step's batch, and the scale of its rates."""
    generator = torch.Generator().manual_seed(3)
    return [(torch.randperm(len(some.images), generator=generator)[:3].to(some.device), 1 - step / STEPS)
            for step in range(STEPS)]


def take(some, between=lambda step, metrics: None, first=0):
    """Take the steps; ELBOs, and everything that the objective and the optimiser hold afterwards."""
    if not first:
        torch.manual_seed(1)
    elbos = []
    for step, (indices, rate) in list(enumerate(batches(some)))[first:]:
        metrics = some(indices, rate)[1]
        elbos.append(metrics["elbo"].item())
        between(step, metrics)
    return torch.tensor(elbos), state_of(some)


def state_of(some):
    """Copies of weights and buffers, and of Adam's moments once there are any."""
    return copy.deepcopy({**objective_of(some).state_dict(), **moments(some.state_dict())})


def objective_of(some):
    return getattr(some.forward, "_orig_mod", some.forward)


def moments(state):
    """Adam's, and how many steps it has taken."""
    return {f"{number} {name}": value for number, each in state["state"].items() for name, value in each.items()}


EXACTLY = 0.0, 0.0


def within(device, case):
    """How far the weights and the moments of two runs may be apart, see `assert_same`."""
    if device == "cpu":
        return 1e-4, 1e-4  # an optimiser whose rates are tensors rounds otherwise
    # Adam makes whole steps of gradients that are nothing but noise; in its moments they do not count.
    return EXACTLY if case in DETERMINISTIC else (1.0, 0.1)


def assert_same(one, other, start, shares):
    """Equal; or the weights apart by less than a share of the way from the start, the moments by one of their size."""
    assert one.keys() == other.keys() and start.keys() < one.keys()
    if shares == EXACTLY:
        for name, value in one.items():
            assert torch.equal(value.nan_to_num(1e9), other[name].nan_to_num(1e9)), name  # unused moments are nan
        return
    sizes, apart = [0.0, 0.0], [0.0, 0.0]
    for name, value in one.items():
        which = name.endswith("exp_avg")
        first = torch.zeros_like(value) if which else start.get(name)
        if first is not None and first.isfinite().all():  # NVIL's own moments begin with the first step
            sizes[which] += (value - first).double().square().sum().item()
            apart[which] += (value - other[name]).double().square().sum().item()
    for size, distance, share in zip(sizes, apart, shares):
        assert size > 0 and distance < share**2 * size, (distance / size)**0.5


@pytest.mark.parametrize("case", CASES)
def test_a_graph_takes_the_steps_that_are_written(make_step, device, case):
    written, captured = make_step(case, captures=False), make_step(case)
    start = state_of(written)
    (elbos, state), (again, state_again) = take(written), take(captured)
    assert_same(state, state_again, start, within(device, case))
    torch.testing.assert_close(again, elbos, rtol=within(device, case)[1], atol=0)
    assert captured.replay is not None and written.replay is None


def test_a_stale_batch_would_be_noticed(make_step, device, monkeypatch):
    written, captured = make_step("enumerate", captures=False), make_step("enumerate")
    start = state_of(written)
    real = batches(written)
    with monkeypatch.context() as patched:
        patched.setitem(globals(), "batches", lambda some: real[:WARM_UP] + [real[WARM_UP]] * (STEPS - WARM_UP))
        stale = take(captured)[1]
    with pytest.raises(AssertionError):
        assert_same(take(written)[1], stale, start, (1.0, 0.1))


@pytest.mark.parametrize("case", ["nvil", "bf16"])
def test_a_graph_taken_twice_is_the_same(make_step, case):
    (_, one), (_, other) = take(make_step(case)), take(make_step(case))
    assert_same(one, other, {}, EXACTLY)


@pytest.mark.parametrize("case", ["enumerate", "search"])
def test_priors_and_evaluations_act_between_replays(make_step, device, scenes, case):
    """The priors that a graph reads follow what is inferred; an evaluation moves neither weights nor draws."""
    def between(some):
        def act(step, metrics):
            model = objective_of(some).model
            model.count_prior.follow(torch.stack([metrics[f"share_{n}"] for n in range(model.num_steps + 1)]))
            model.follow_sizes(model.size_moments, 1 / 30)
            if step in (1, WARM_UP + 1):
                evaluate(model, scenes[:6], iw_particles=2)
        return act

    written, captured = make_step(case, captures=False), make_step(case)
    for some in (written, captured):
        objective_of(some).model.prior_moves = True
    start = state_of(written)
    elbos, state = take(written, between(written))
    again, state_again = take(captured, between(captured))
    for prior in ("count_prior.log_probs", "z_where_prior_loc", "z_where_prior_scale"):
        assert not torch.equal(state[f"model.{prior}"], start[f"model.{prior}"])
    assert_same(state, state_again, start, within(device, case))
    torch.testing.assert_close(again, elbos, rtol=within(device, case)[1], atol=0)


@pytest.mark.parametrize("case", ["nvil", "shift"])
def test_a_graph_resumed_goes_on_as_the_first(make_step, case):
    """From a state taken between replays, by steps that capture a graph of their own."""
    whole, kept = make_step(case), {}

    def keep(step, metrics):
        if step == WARM_UP + 1:
            kept.update(copy.deepcopy({"objective": objective_of(whole).state_dict(), "optimizer": whole.state_dict(),
                                       "rng": generator_state(whole.device)}))

    _, state = take(whole, keep)
    resumed = make_step(case)
    objective_of(resumed).load_state_dict(kept["objective"])
    resumed.load_state_dict(kept["optimizer"])
    set_generator_state(resumed.device, kept["rng"])
    assert_same(state, take(resumed, first=WARM_UP + 2)[1], {}, EXACTLY)


def generator_state(device):
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def set_generator_state(device, state):
    torch.set_rng_state(state) if device.type == "cpu" else torch.cuda.set_rng_state(state, device)


@pytest.mark.parametrize("there", ["cpu", ON_CUDA])
def test_a_run_moves_from_device_to_device_and_back(make_config, dataset, tmp_path, there):
    """By its checkpoint: weights, moments and buffers arrive as they were, and steps go on from them."""
    state = None
    for place, last in (("cpu", 4), (there, 9), ("cpu", 11), (there, 12)):
        trainer = Trainer(with_settings(make_config(), {"run.device": place}), dataset, tmp_path, state)
        if state is not None:
            arrived = {**trainer.objective.state_dict(), **moments(trainer.take_step.state_dict())}
            sent = {**state["objective"], **moments(state["optimizer"])}
            assert arrived.keys() == sent.keys() and trainer.device.type == place
            assert all(torch.equal(arrived[name].cpu(), sent[name].cpu()) for name in sent)
        while trainer.step < last:
            assert trainer.train_step()["elbo"].isfinite()
        trainer._save()
        state = load_checkpoint(tmp_path)[1]
        assert state["step"] == last and all(each["step"] == last for each in state["optimizer"]["state"].values())


@contextmanager
def no_waiting(device):
    """An error where the host waits for the device."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("captures", [False, True], ids=["written", "captured"])
@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_no_step_waits_for_the_device(make_config, dataset, tmp_path, device, estimator, captures):
    """The trainer's step, from the second on (the first checks its batch) and within an epoch of five."""
    changes = {"run.device": device, "optim.learn_count_prior": True, "optim.learn_count_prior_from": 0,
               "optim.learn_scale_prior": True, "optim.learn_scale_prior_from": 0}
    if estimator == "vimco":
        changes["estimator.particles"] = 2
    trainer = Trainer(make_config(estimator, changes), dataset, tmp_path)
    trainer.take_step.capture_steps(captures)
    for step in range(10):
        # A new epoch's order is copied from the host; a capture waits before it begins.
        waits = step % 5 == 0 or captures and step == WARM_UP
        with no_waiting("cpu" if waits else device):
            trainer.train_step()
    assert (trainer.take_step.replay is not None) == captures


def test_a_graph_draws_anew_at_each_replay(make_step):
    some = make_step("enumerate")
    torch.manual_seed(1)
    indices = torch.tensor([0, 1], device=some.device)
    assert len({some(indices, 0.0)[1]["elbo"].item() for _ in range(STEPS)}) == STEPS
