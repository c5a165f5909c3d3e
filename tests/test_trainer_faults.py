"""What stops a run, and what is left of it: kills, signals, losses that are not finite, full disks, damaged logs."""

import errno
import os
import resource
import signal
import threading
from functools import partial

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from air.checkpoints import load_checkpoint
from air.files import CheckpointError
from air.files.signals import SIGNALS
from air.training import trainer as trainer_module
from air.training.logs import quiet_events_writer
from air.training.trainer import Interrupted, Trainer, TrainingError
from tests.test_trainer import assert_identical, everything, run_killed_at


@pytest.mark.parametrize("place", ["evaluate", "atomic_write"])
def test_killed_in_the_final_evaluation_it_makes_that_again(make_config, dataset, tmp_path, monkeypatch, place):
    """Before its line is written, or after it: the resumed run has that line once, gradient norms included."""
    config = make_config()
    Trainer(config, dataset, tmp_path / "whole").run()
    trainer, act = Trainer(config, dataset, tmp_path / "parts"), getattr(trainer_module, place)

    def killed(*args, **kwargs):
        if trainer.step == 12 and (place == "evaluate" or args[0].name == "metrics.json"):
            raise KeyboardInterrupt
        return act(*args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trainer_module, place, killed)
        trainer.run()
    assert not (tmp_path / "parts" / "metrics.json").exists()
    Trainer(config, dataset, tmp_path / "parts", load_checkpoint(tmp_path / "parts")[1]).run()
    assert_identical(everything(tmp_path / "parts"), everything(tmp_path / "whole"))
    assert any(name.startswith("grad_norm_") for name in everything(tmp_path / "parts")[2][-1]["train"])
    events = EventAccumulator(str(tmp_path / "parts")).Reload()
    assert [event.step for event in events.Scalars("train/elbo")] == [4, 8, 12]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"{}", b'{"step": "5"}', b"\xff", b"[" * 100_000])
def test_a_damaged_line_of_the_log_is_named(make_config, dataset, tmp_path, line):
    run_killed_at(7, Trainer(make_config(), dataset, tmp_path))
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + line + b"\n")
    with pytest.raises(CheckpointError, match="metrics.jsonl, line 2: expected a JSON object with a step; remove the"):
        Trainer(make_config(), dataset, tmp_path, load_checkpoint(tmp_path)[1])
    log.unlink()
    log.mkdir()
    with pytest.raises(CheckpointError, match="metrics.jsonl is not a regular file"):
        Trainer(make_config(), dataset, tmp_path, load_checkpoint(tmp_path)[1])


def test_weights_that_are_not_finite_after_the_last_step_are_no_result(make_config, dataset, tmp_path):
    """The last update may spoil them, and no loss follows it."""
    trainer = Trainer(make_config(), dataset, tmp_path)
    step = trainer.train_step

    def last_update_overflows():
        metrics = step()
        if trainer.step == 12:
            next(trainer.objective.parameters()).data.fill_(float("nan"))
        return metrics

    trainer.train_step = last_update_overflows
    with pytest.raises(TrainingError, match="the weights are not finite after step 12; .*checkpoint.pt holds the last"):
        trainer.run()
    assert load_checkpoint(tmp_path)[1]["step"] == 10 and not (tmp_path / "metrics.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(make_config, dataset, tmp_path):
    trainer = Trainer(make_config(), dataset, tmp_path)
    train_step = trainer.train_step

    def spoilt():
        if trainer.step == 6:
            with torch.no_grad():
                trainer.model.decode.mlp[0].weight.fill_(float("nan"))
        return train_step()

    trainer.train_step = spoilt
    with pytest.raises(TrainingError, match=r"loss is nan at step 7; .*checkpoint.pt holds the last good step"):
        trainer.run()
    _, checkpoint = load_checkpoint(tmp_path)
    assert checkpoint["step"] == 5 and all(value.isfinite().all() for value in checkpoint["objective"].values())


def test_weights_that_are_not_finite_are_never_saved(make_config, dataset, tmp_path):
    trainer = Trainer(make_config(), dataset, tmp_path)
    trainer._save()
    with torch.no_grad():
        trainer.model.z_what_init.fill_(float("inf"))
    trainer.step = 7
    trainer._save()
    assert load_checkpoint(tmp_path)[1]["step"] == 0


def test_a_full_disk_stops_the_run_in_words_and_leaves_a_whole_checkpoint(make_config, dataset, tmp_path):
    """No file may grow beyond some size from step 7 on: a checkpoint's writing fails half-way, as on a full disk."""
    Trainer(make_config(), dataset, tmp_path / "whole").run()
    out = tmp_path / "full"
    trainer = Trainer(make_config(), dataset, out)
    train_step, (_, most) = trainer.train_step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling():
        if trainer.step == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, most))
        return train_step()

    trainer.train_step = filling
    try:
        with pytest.raises(TrainingError, match=r"cannot be written at step 10 .*checkpoint.pt holds the last good "
                                                "step. Make room"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert load_checkpoint(out)[1]["step"] == 5 and not list(out.glob(".*"))
    Trainer(make_config(), dataset, out, load_checkpoint(out)[1]).run()
    assert_identical(everything(out), everything(tmp_path / "whole"))


def test_a_disk_too_full_for_tensorboard_is_said_without_its_traceback(make_config, dataset, tmp_path, capfd,
                                                                       monkeypatch):
    """TensorBoard writes in a thread, which would print a traceback; other threads still do."""
    write, hook = RecordWriter.write, threading.excepthook

    def full(writer, data):
        if b"elbo" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(writer, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(TrainingError, match="cannot be written at step 4 .*No space left"):
        Trainer(make_config(), dataset, tmp_path).run()
    assert capfd.readouterr().err == "" and threading.excepthook == hook


def test_errors_of_other_threads_are_shown(capfd):
    def fail():
        raise OSError("mine")

    shown, hook = [], threading.excepthook
    threading.excepthook = shown.append
    try:
        with quiet_events_writer():
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
    finally:
        threading.excepthook = hook
    assert str(shown[0].exc_value) == "mine"


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_saves_the_step_it_interrupts(make_config, dataset, tmp_path, number):
    trainer = Trainer(make_config(), dataset, tmp_path)
    train_step = trainer.train_step

    def interrupted():
        if trainer.step == 2:
            signal.raise_signal(number)
        return train_step()

    trainer.train_step = interrupted
    with pytest.raises(Interrupted):
        trainer.run()
    assert load_checkpoint(tmp_path)[1]["step"] == 3 and not (tmp_path / "metrics.json").exists()


def test_a_second_signal_during_the_save_waits_for_its_end(make_config, dataset, tmp_path, monkeypatch):
    """Ctrl-C in step 3, and again while it is saved: the checkpoint is whole, then the second one acts."""
    trainer, save = Trainer(make_config(), dataset, tmp_path), torch.save
    train_step, acted = trainer.train_step, []

    def interrupted(work, *args):
        if trainer.step == 2 or work is save:
            signal.raise_signal(signal.SIGINT)
        return work(*args)

    before = signal.signal(signal.SIGINT, lambda *what: acted.append((tmp_path / "checkpoint.pt").exists()))
    trainer.train_step = partial(interrupted, train_step)
    monkeypatch.setattr(torch, "save", partial(interrupted, save))
    try:
        with pytest.raises(Interrupted):
            trainer.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert acted == [True] and load_checkpoint(tmp_path)[1]["step"] == 3 and not list(tmp_path.glob(".*"))
