import json
import threading
from types import SimpleNamespace

import pytest
import torch

from experiments import records, run
from experiments.catalogue import EXPERIMENTS


def test_milestones_are_the_first_evaluations_that_reach_them():
    evaluations = [{"step": 100 * (i + 1), "seconds": 2.0 * i, "held_out": {"count_accuracy_map": accuracy}}
                   for i, accuracy in enumerate((0.5, 0.949, 0.93, 0.95, 0.97))]
    assert run.milestones(evaluations) == {"steps_to_90": 200, "seconds_to_90": 2.0,
                                           "steps_to_95": 400, "seconds_to_95": 6.0}
    assert run.milestones([{"step": 1, "seconds": 1, "held_out": {"elbo": 1.0}}]) == {}


@pytest.mark.parametrize("arguments, word", [(["magic"], "strict-enumerate"), ([], "NAME"),
                                             (["noise", "--jobs", "0"], "at least 1")])
def test_wrong_arguments_are_explained(arguments, word, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2 and word in capsys.readouterr().err


def test_jobs_run_in_parallel_and_share_the_threads(monkeypatch, tmp_path, capsys):
    together = threading.Barrier(2, timeout=60)

    def one_run(seed, arguments):
        together.wait()  # passes only if two runs wait at the same time
        metrics = dict(count_accuracy_map=0.99, count_accuracy_sampled=0.99, confusion=[[1, 0]], elbo=1.0)
        return {"seed": seed, "command": " ".join(arguments), "threads": torch.get_num_threads(), "device": "chip",
                "torch": "x", "commit": "c", "metrics": metrics}

    monkeypatch.setattr(run, "run", one_run)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        run.main(["noise", "digits-9px", "--seeds", "3", "0", "1", "--jobs", "2"])  # an odd number of runs each
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out.count("3 of 3 runs") == 2
    for name in ("noise", "digits-9px"):
        results = records.load_results(name)
        assert [result["seed"] for result in results] == [0, 1, 3]
        assert {(result["threads"], result["jobs"]) for result in results} == {(3, 2)}
        assert results[0]["command"] == EXPERIMENTS[name].arguments


def test_a_run_is_recorded_with_its_command_and_configuration():
    arguments = ("--dataset sprites --estimator enumerate --data.train-scenes 40 --data.held-out-scenes 10 --steps 2 "
                 "--batch-size 4").split()
    result = run.run(5, arguments)
    assert result["command"] == f"python train.py {' '.join(arguments)} --seed 5 --run.eval-every 100"
    assert (result["seed"], result["config"]["run"]["seed"], result["config"]["data"]["name"]) == (5, 5, "sprites")
    assert result["config"]["optim"]["steps"] == 2
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("code", [2, 130])
def test_a_wrong_argument_and_ctrl_c_end_the_program(code, monkeypatch):
    monkeypatch.setattr(run.subprocess, "run", lambda *arguments, **keywords: SimpleNamespace(returncode=code))
    with pytest.raises(SystemExit) as ended:
        run.run(0, ["--magic"])
    assert ended.value.code == code
