import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_step
from benchmarks.bench_step import Bench, ProductLog, main

ROOT = Path(__file__).parent.parent


def test_the_floor_counts_the_layers_products():
    """A layer of 3 x 5 on a batch of 4: forward, weight gradient, and input gradient where the input requires one."""
    layer, log = torch.nn.Linear(3, 5), ProductLog()
    with log:
        layer(torch.randn(4, 3)).sum().backward()
        layer(torch.randn(4, 3, requires_grad=True)).sum().backward()
        torch.bmm(torch.randn(2, 3, 4), torch.randn(2, 4, 5))
    assert sum(log.products.values()) == 5
    assert sum(count * product.flops for product, count in log.products.items()) == 5 * 2 * 4 * 3 * 5
    for product in log.products:
        product.ready("cpu")()


def test_the_model_is_that_of_the_main_job():
    bench = Bench("nvil-without-baseline", {"optim.batch_size": 4})
    model = bench.trainer.config.model
    assert (model.num_steps, model.x_size, model.rnn_hidden_size, model.z_what_size) == (3, 50, 256, 50)
    assert bench.trainer.config.estimator.name == "nvil" and bench.trainer.objective.baseline is None


def test_where_work_is_queued_products_and_steps_are_timed_many_at_a_time(monkeypatch):
    """The graph's part is played by the function; each run takes a second once the queue is waited for."""
    bench, clock = Bench("enumerate", {"optim.batch_size": 2}), {"now": 0.0, "queue": 0.0, "waits": 0}
    captured = []

    def wait():
        clock.update(now=clock["now"] + clock["queue"], queue=0.0, waits=clock["waits"] + 1)

    def run():
        clock["queue"] += 1.0

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(bench_step.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(bench_step, "on_stream", lambda stream, run: run())
    monkeypatch.setattr(bench_step, "capture", lambda stream, run: captured.append(run) or run)
    bench.queues, bench.stream, bench.trainer.train_step = True, "stream", run
    assert bench._time_alone("product", run) == bench._time_alone("product", run) == 1e3
    assert clock["waits"] == 20 and len(captured) == 1  # two for each of five times, twice; one graph
    bench.time_steps(7)
    assert bench.times["step"] == 7 * [1e3] and bench.times["in_a_row"] == [1e3] and clock["waits"] == 20 + 14 + 2
    for name in ("inference", "products", "inference_products", "optimiser"):
        bench.times[name] = [1.0]
    bench.times["in_a_row"] = [500.0]
    results = bench.results()
    assert results["ratio_to_floor"] == 250 and results["images_per_s"] == 4 and results["step_ms"] == 1e3


def test_an_order_is_copied_to_the_device_once_in_many_steps():
    bench = Bench("enumerate", {"optim.batch_size": 2})
    assert len(bench.trainer.sampler.places) // bench.trainer.sampler.batch_size >= 32


def test_the_script_measures_from_another_folder(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "bench_step.py"), "--estimator", "enumerate",
                           "nvil", "--batch-size", "2", "--steps", "8", "--threads", "1",
                           "--json", str(tmp_path / "deep" / "step.json")], capture_output=True, text=True,
                          cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "deep" / "step.json").read_text())
    assert report["batch_size"] == 2 and report["threads"] == 1 and report["peak_memory_mib"] > 100
    for name, figures in report["estimators"].items():
        assert name in done.stdout
        assert figures["floor_ms"] == pytest.approx(figures["floor_products_ms"] + figures["floor_optimiser_ms"])
        assert figures["ratio_to_floor"] == pytest.approx(figures["step_ms"] / figures["floor_ms"])
        assert figures["ratio_to_floor"] > 1 and figures["step_ms_p10"] <= figures["step_ms"] <= figures["step_ms_p90"]
        assert figures["inference_ratio_to_floor"] > 1
        assert figures["step_in_a_row_ms"] == figures["step_ms"]  # nothing is queued on the CPU
        assert figures["images_per_s"] == pytest.approx(2e3 / figures["step_ms"])
    assert done.stderr == ""
    gflop = {name: figures["gflop"] for name, figures in report["estimators"].items()}
    # The baseline reads the image as well and costs about as much as the model's recurrent net.
    assert 1.5 * gflop["enumerate"] < gflop["nvil"] < 2.5 * gflop["enumerate"]


def test_a_slow_step_exits_with_code_1():
    with pytest.raises(SystemExit) as ended:  # a string as exit code: Python prints it and exits with 1
        main(["--estimator", "enumerate", "--batch-size", "2", "--steps", "8", "--threads", "1", "--at-most", "1.01"])
    assert ended.value.code == "bench_step.py: slower than 1.01 times the floor: enumerate"


def test_wrong_arguments_are_explained(capsys):
    for arguments, word in ((["--batch-size", "0"], "at least 1"), (["--estimator", "magic"], "nvil-without-baseline"),
                            (["--estimator", "vimco", "--particles", "1"], "particles")):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and word in capsys.readouterr().err
