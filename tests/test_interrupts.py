"""Ctrl-C, SIGTERM and SIGHUP, at every moment of the programs' lives; locks of runs."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import train
from air.checkpoints import load_checkpoint
from air.files import atomic_write
from air.files.signals import SIGNALS, Handlers, deferred_signals, exit_at_signals, interrupt_flag
from tests.conftest import FEW

ROOT = Path(__file__).parent.parent
SPRITES = ["--dataset", "sprites", "--batch-size", "8"]


@pytest.fixture
def caught():
    """The signals that reach the handlers there were before."""
    caught, handlers = [], Handlers()
    handlers.set(lambda number, frame: caught.append(number))
    yield caught
    handlers.restore()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_sets_the_flag_and_the_second_acts(caught, number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(RuntimeError), interrupt_flag() as flag:
        signal.raise_signal(number)
        assert flag.is_set() and not caught
        signal.raise_signal(number)
        assert caught == [number]
        raise RuntimeError  # how a loop ends that heeds its flag
    assert caught == [number] and [signal.getsignal(each) for each in SIGNALS] == before


def test_with_several_processes_every_signal_sets_the_flag(caught):
    with pytest.raises(RuntimeError), interrupt_flag(several=lambda: True) as flag:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert flag.is_set()
        raise RuntimeError
    assert not caught


def test_a_signal_too_late_for_the_flag_to_be_looked_at_acts_at_the_end(caught):
    with interrupt_flag():
        signal.raise_signal(signal.SIGHUP)
    assert caught == [signal.SIGHUP]


def test_signals_are_held_back_until_a_write_is_done(caught):
    with deferred_signals():
        for number in SIGNALS:
            signal.raise_signal(number)
        assert not caught
    assert caught == [signal.SIGINT]


def test_other_threads_leave_the_handlers_alone():
    before = [signal.getsignal(number) for number in SIGNALS]

    def work():
        with interrupt_flag(), deferred_signals(), exit_at_signals(str):
            assert [signal.getsignal(number) for number in SIGNALS] == before
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt_flag() as flag:
            signal.raise_signal(signal.SIGHUP)
            assert not flag.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupted_program_removes_what_it_was_writing_but_a_fork_does_not(tmp_path, capfd):
    """In forks of this process: the first is the program, the second a worker of it."""
    for fork_again in (False, True):
        child = os.fork()
        if not child:
            with exit_at_signals(lambda: "interrupted\udcff"), atomic_write(tmp_path / "file") as file:
                file.write(b"half")
                file.flush()
                if fork_again and os.fork():
                    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
                signal.raise_signal(signal.SIGTERM)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
        said = capfd.readouterr().err
        assert (len(list(tmp_path.iterdir())), said) == ((1, "") if fork_again else (0, "interrupted\\udcff\n"))


def start(program, *arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *program, *map(str, arguments)], env=env, text=True, cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


TRAIN, PREDICT = [str(ROOT / "train.py")], ["-m", "air.predict"]


def wait_until(there, process):
    deadline = time.monotonic() + 120
    while not there() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def interrupt(process, numbers, pause=0.0):
    """Send signals, one after the other; the exit code and the lines printed, none of which is of a traceback."""
    for number in numbers:
        process.send_signal(number)
        time.sleep(pause)
    said, errors = process.communicate(timeout=120)
    lines = (said + errors).splitlines()
    assert not [line for line in lines if "Traceback" in line or "ignored" in line], errors
    assert len(errors.splitlines()) <= 1, errors
    return process.returncode, lines


@pytest.mark.parametrize("program", [TRAIN, PREDICT])
def test_signals_while_the_program_starts(tmp_path, program):
    """As soon as its handlers stand, while torch is imported."""
    process = start(program, "nowhere", "nowhere")
    caught = f"SigCgt:\t{'0' * 8}"
    wanted = sum(1 << number - 1 for number in SIGNALS)
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("sees by /proc when the handlers are in place")
    wait_until(lambda: process.poll() is not None or caught in (text := status.read_text()) and
               int(text.split("SigCgt:\t")[1].split()[0], 16) & wanted == wanted, process)
    code, lines = interrupt(process, [signal.SIGTERM])
    assert (code, lines) == (130, [f"{'train.py' if program is TRAIN else 'air.predict'}: interrupted"])


@pytest.mark.parametrize("number", [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow)
                                                      for number in SIGNALS if number != signal.SIGTERM)])
def test_signals_in_the_final_evaluation(tmp_path, number):
    out = tmp_path / "run"
    process = start(TRAIN, *SPRITES, "--steps", 2, "--out", out, "--data.train-scenes", 64,
                    "--data.held-out-scenes", 1000)
    wait_until((out / "checkpoint.pt").exists, process)
    code, lines = interrupt(process, [number])
    assert code == 130 and not (out / "metrics.json").exists() and not list(out.glob(".*"))
    assert lines[-1].endswith(f"; continue from the last checkpoint with: python train.py --resume {out}")


def test_two_processes_cannot_train_one_run(tmp_path, capsys, few_scenes):
    out = tmp_path / "run"
    first = start(TRAIN, *SPRITES, "--steps", 100000, "--run.checkpoint-every", 1, "--out", out, *FEW)
    wait_until((out / "checkpoint.pt").exists, first)
    try:
        for arguments in ([*SPRITES, "--steps", "1", "--out", str(out)], ["--resume", str(out)]):
            with pytest.raises(SystemExit) as ended:
                train.main(arguments)
            (message,) = capsys.readouterr().err.splitlines()
            assert ended.value.code == 2 and message == (
                f"train.py: error: another process is at work in {out}: wait until it ends, or name another folder")
        assert json.loads((out / "config.json").read_text())["optim"]["steps"] == 100000
    finally:
        first.kill()
        first.communicate()
    reached = load_checkpoint(out)[1]["step"]
    train.main(["--resume", str(out), "--steps", str(reached + 1)])  # a dead owner's lock does not block
    assert not list(out.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_signals_at_random_moments(tmp_path, few_scenes, seed):
    """One or two signals at any moment: nothing but a sentence is said, what is there is whole, and it goes on."""
    rng, out = random.Random(seed), tmp_path / "run"
    process = start(TRAIN, *SPRITES, "--steps", 30, "--run.checkpoint-every", 1, "--run.eval-every", 7, "--out", out,
                    *FEW)
    if seed % 5:
        wait_until((out / "checkpoint.pt").exists, process)
    time.sleep(rng.uniform(0.2, 4) if seed % 5 == 0 else rng.uniform(0, 1))
    code, lines = interrupt(process, rng.choices(SIGNALS, k=rng.choice([1, 2])), rng.choice([0, 0.001, 0.01, 0.1]))
    assert code in (0, 130) and sum("interrupted" in line or "stopped at" in line for line in lines) == (code == 130)
    assert not list(out.glob(".*"))
    if (out / "checkpoint.pt").exists():
        train.main(["--resume", str(out)])
        steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert steps == [7, 14, 21, 28, 30]
