"""One process alone, two over gloo, and the command under torchrun."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import train
from air import AIR, ESTIMATORS
from air.checkpoints import load_checkpoint
from air.config import with_settings
from air.distributed import (
    any_of,
    cleanup,
    gather,
    is_peer_failure,
    mean,
    rank,
    rank_zero_first,
    setup,
    world_size,
)
from air.evaluation import evaluate as evaluation
from air.training.trainer import Trainer
from tests.conftest import FEW, SMALL
from tests.test_trainer import assert_identical, everything, run_killed_at

ROOT = Path(__file__).parent.parent


def test_collectives_of_a_single_process():
    assert (rank(), world_size()) == (0, 1) and setup("cpu") == torch.device("cpu")
    value = torch.tensor([1.0, 2.0])
    assert gather("word") == ["word"] and mean(value) is value and rank_zero_first(lambda: 3) == 3
    assert any_of(True) and not any_of(False)


@pytest.mark.parametrize("own", [None, "0"])
def test_an_error_of_nccl_is_raised_rather_than_ending_the_process(monkeypatch, own):
    """Unless the user says otherwise; everything but the gradients goes over gloo."""
    asked = {}
    for name, value in (("is_available", True), ("device_count", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: asked.update(
        backend=backend, handling=os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"]))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", own or "")
    if own is None:
        monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING")
    assert setup("cuda") == torch.device("cuda", 0)
    assert asked == {"backend": "cpu:gloo,cuda:nccl", "handling": own or "2"}


def test_a_dead_process_is_recognised_by_nccl_s_errors_and_gloo_s():
    aborted = "NCCL communicator was aborted on rank 0."
    assert is_peer_failure(torch.distributed.DistBackendError(aborted))
    assert is_peer_failure(RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"))
    assert not is_peer_failure(RuntimeError("CUDA error: an illegal memory access was encountered"))


def two_processes(work, *arguments):
    """work(*arguments), in two processes that torchrun might have started."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(as_worker, (port, work, arguments), nprocs=2)


def as_worker(number, port, work, arguments):
    os.environ.update(TORCHELASTIC_RUN_ID="x", RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2",
                      MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    setup("cpu")
    try:
        work(*arguments)
    finally:
        cleanup()


def tell_one_another(folder):
    assert world_size() == 2 and gather(("rank", rank())) == [("rank", 0), ("rank", 1)]
    own = torch.tensor([1.0 + rank()])
    assert mean(own).item() == 1.5 and own.item() == 1.0 + rank()
    assert any_of(rank() == 1) and any_of(rank() == 0) and not any_of(False)

    torch.distributed.barrier = None  # on CUDA it would go by NCCL

    def build():
        if rank() == 0:
            time.sleep(0.5)
            (folder / "cache").touch()
        return (folder / "cache").exists()
    assert rank_zero_first(build)

    def fails_first():
        raise OSError(f"process {rank()}")
    with pytest.raises(OSError, match=f"process {rank()}"):  # in both, and neither waits for the other
        rank_zero_first(fails_first)


def estimator(name):
    """Its draws replaced by their means, so that it does the same to an image whatever stands beside it."""
    torch.manual_seed(0)
    model = AIR(**SMALL, count_prior=0.1).double()
    model.attend = lambda images, at_mean, particles, ground: AIR.attend(model, images, True, particles)
    torch.rand_like = lambda tensor: torch.full_like(tensor, 0.6)
    return ESTIMATORS[name](model, exploration=0.3, particles=2, revive=0.5).double()


def gradients_are_those_of_the_joint_batch(images):
    for name in ESTIMATORS:
        alone, shared = estimator(name), estimator(name)
        alone(images)[0].backward()
        wrapped = DistributedDataParallel(shared)
        wrapped(images[rank()::2])[0].backward()
        for one, other in zip(alone.parameters(), shared.parameters()):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-9)
        assert any(parameter.grad.abs().max() > 1e-3 for parameter in shared.parameters())


def sizes_are_those_of_the_joint_batch(images):
    alone, shared = (estimator("enumerate") for _ in range(2))
    for some, own in ((alone, images), (shared, images[rank()::2])):
        some.model.prior_moves = True
        some(own)
    assert not torch.equal(shared.model.size_moments, alone.model.size_moments)
    torch.testing.assert_close(mean(shared.model.size_moments), alone.model.size_moments)


def evaluations_are_those_of_all_scenes(scenes):
    torch.manual_seed(0)
    model = AIR(**SMALL).double()
    evaluation.CHUNK, evaluation.LOOKS = 6, 3
    found = evaluation.evaluate(model, scenes, iw_particles=2)
    assert all(each == found for each in gather(found))
    cleanup()
    alone = evaluation.evaluate(model, scenes, iw_particles=2)
    for exact in ("confusion", "count_accuracy_map", "count_accuracy_by_count", "count_error", "size_histogram",
                  "blank", "collapsed", "wrong", "iw_scenes"):
        assert found[exact] == alone[exact]
    assert found["box_iou"] == pytest.approx(alone["box_iou"], abs=1e-9)
    for third, quality in alone["box_by_size"].items():
        assert found["box_by_size"][third] == {**quality, "iou": pytest.approx(quality["iou"], abs=1e-9)}
    for drawn in ("elbo", "iw_bound", "count_accuracy_sampled"):
        assert found[drawn] == pytest.approx(alone[drawn], rel=0.05)


def a_resumed_run_equals_an_uninterrupted_one(folder, config, dataset):
    Trainer(config, dataset, folder / "whole").run()
    run_killed_at(7, Trainer(config, dataset, folder / "parts"))
    _, checkpoint = load_checkpoint(folder / "parts")
    assert checkpoint["step"] == 5 and len(checkpoint["processes"]) == 2
    Trainer(config, dataset, folder / "parts", checkpoint).run()
    if rank() == 0:
        assert_identical(everything(folder / "parts"), everything(folder / "whole"))


def a_batch_that_cannot_be_divided_is_an_error(folder, config, dataset):
    with pytest.raises(ValueError, match="a batch of 7 images cannot be divided equally among 2 processes"):
        Trainer(with_settings(config, {"optim.batch_size": 7}), dataset, folder / "never")


def work_as_one(folder, images, config, dataset):
    tell_one_another(folder)
    gradients_are_those_of_the_joint_batch(images)
    sizes_are_those_of_the_joint_batch(images)
    a_batch_that_cannot_be_divided_is_an_error(folder, config, dataset)
    a_resumed_run_equals_an_uninterrupted_one(folder, config, dataset)
    evaluations_are_those_of_all_scenes(dataset.train)  # at the end of which they part


def test_two_processes_work_as_one(tmp_path, make_config, dataset):
    """One test, since two processes take seconds to start."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 1, 12, 12, generator=generator, dtype=torch.float64)
    config = make_config(changes={"optim.learn_scale_prior": True, "optim.learn_scale_prior_from": 3})
    two_processes(work_as_one, tmp_path, images, config, dataset)


@pytest.fixture
def torchrun():
    """Start train.py in two processes, on a handful of sprites and with small networks."""
    def start(*arguments):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                   str(ROOT / "train.py")]
        arguments += ("--device", "cpu", *([] if "--resume" in arguments else FEW))
        return subprocess.Popen([*command, *map(str, arguments)], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return start


def worker(process, number):
    """The pid of one of torchrun's workers."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"\0RANK={number}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"torchrun has no worker {number}")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the workers by /proc")
def test_a_killed_worker_ends_the_run_with_a_message(torchrun, tmp_path):
    train_and_kill(torchrun, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the workers by /proc")
@pytest.mark.slow
def test_a_run_with_a_killed_worker_is_resumed_from_its_checkpoint(torchrun, tmp_path):
    parts, reached = train_and_kill(torchrun, tmp_path)
    resumed = torchrun("--resume", parts)
    said, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    assert f"steps {reached} to 60" in said and "in 2 processes" in said and said.count("step 60/60") == 1
    assert load_checkpoint(parts)[1]["step"] == 60 and (parts / "metrics.json").exists()


def train_and_kill(torchrun, tmp_path):
    """Kill one of two processes after the first checkpoint: the run's folder and the step of its checkpoint."""
    parts = tmp_path / "parts"
    process = torchrun("--dataset", "sprites", "--batch-size", 8, "--steps", 60, "--run.eval-every", 5,
                       "--run.checkpoint-every", 5, "--out", parts)
    deadline = time.monotonic() + 60
    while not (parts / "checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(worker(process, 1), signal.SIGKILL)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "[rank0]" not in errors  # as tracebacks of process 0 would begin
    assert "another process of this run has died" in errors and f"{parts / 'checkpoint.pt'} holds" in errors
    reached = load_checkpoint(parts)[1]["step"]
    assert len(load_checkpoint(parts)[1]["processes"]) == 2 and not (parts / "metrics.json").exists()
    return parts, reached


@pytest.mark.slow
def test_other_numbers_of_processes_go_on_with_a_run(torchrun, tmp_path):
    """In two processes, then in one, then in two again."""
    parts = tmp_path / "parts"
    first = torchrun("--dataset", "sprites", "--batch-size", 8, "--steps", 24, "--out", parts)
    said, errors = first.communicate(timeout=120)
    assert first.returncode == 0 and len(load_checkpoint(parts)[1]["processes"]) == 2, errors
    train.main(["--resume", str(parts), "--steps", "26", "--device", "cpu"])
    assert len(load_checkpoint(parts)[1]["processes"]) == 1
    wider = torchrun("--resume", parts, "--steps", 28)
    said, errors = wider.communicate(timeout=120)
    assert wider.returncode == 0 and "steps 26 to 28" in said, errors
    one, other = load_checkpoint(parts)[1]["processes"]
    assert load_checkpoint(parts)[1]["step"] == 28 and not torch.equal(one["rng"], other["rng"])
