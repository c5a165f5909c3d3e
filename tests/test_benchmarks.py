import itertools
import json
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import train
from air.data.cache import cache_dir

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmark(monkeypatch):
    """Import a script of benchmarks/ by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: __import__(name)


def test_the_floor_counts_the_layers_products(benchmark):
    """A layer of 3 x 5 on a batch of 4: forward, weight gradient, and input gradient where there is one to give."""
    layer, log = torch.nn.Linear(3, 5), benchmark("bench_step").ProductLog()
    with log:
        layer(torch.randn(4, 3)).sum().backward()
        layer(torch.randn(4, 3, requires_grad=True)).sum().backward()
        torch.bmm(torch.randn(2, 3, 4), torch.randn(2, 4, 5))
    assert sum(log.products.values()) == 5
    assert sum(count * product.flops for product, count in log.products.items()) == 5 * 2 * 4 * 3 * 5
    for product in log.products:
        product.ready("cpu")()


def test_bench_step_times_the_main_job_s_model(benchmark):
    bench = benchmark("bench_step").Bench("nvil-without-baseline", 4, "cpu")
    model = bench.trainer.config.model
    assert (model["num_steps"], model["x_size"], model["rnn_hidden_size"], model["z_what_size"]) == (3, 50, 256, 50)
    assert bench.trainer.config.estimator == "nvil" and bench.trainer.objective.baseline is None


def test_bench_step_measures_what_it_says(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "bench_step.py"), "--estimator", "enumerate",
                           "nvil", "--batch-size", "2", "--steps", "8", "--threads", "1",
                           "--json", str(tmp_path / "deep" / "step.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "deep" / "step.json").read_text())
    assert report["batch_size"] == 2 and report["threads"] == 1 and report["peak_memory_mib"] > 100
    for name, figures in report["estimators"].items():
        assert name in done.stdout
        assert figures["floor_ms"] == pytest.approx(figures["floor_products_ms"] + figures["floor_optimiser_ms"])
        assert figures["ratio_to_floor"] == pytest.approx(figures["step_ms"] / figures["floor_ms"])
        assert figures["ratio_to_floor"] > 1 and figures["step_ms_p10"] <= figures["step_ms"] <= figures["step_ms_p90"]
        assert figures["inference_ratio_to_floor"] > 1
        assert figures["images_per_s"] == pytest.approx(2e3 / figures["step_ms"])
    assert done.stderr == ""
    gflop = {name: figures["gflop"] for name, figures in report["estimators"].items()}
    # The baseline reads the image as well: about as much again as the model's recurrent net.
    assert 1.5 * gflop["enumerate"] < gflop["nvil"] < 2.5 * gflop["enumerate"]


def test_bench_step_fails_where_a_step_is_too_slow(benchmark):
    with pytest.raises(SystemExit) as ended:  # with a text in place of a number, which Python prints, and exits with 1
        benchmark("bench_step").main(["--estimator", "enumerate", "--batch-size", "2", "--steps", "8", "--threads", "1",
                                      "--at-most", "1.01"])
    assert ended.value.code == "bench_step.py: more than 1.01 times the floor: enumerate"


def test_bench_step_explains_bad_arguments(benchmark, capsys):
    for arguments, word in ((["--batch-size", "0"], "at least 1"), (["--estimator", "magic"], "nvil-without-baseline"),
                            (["--estimator", "vimco", "--particles", "1"], "at least 2")):
        with pytest.raises(SystemExit) as ended:
            benchmark("bench_step").main(arguments)
        assert ended.value.code == 2 and word in capsys.readouterr().err


def test_growth_finds_a_line_and_what_a_step_keeps(benchmark):
    growth, bench_step = benchmark("growth"), benchmark("bench_step")
    found = growth.line([1, 2, 4], [5.0, 7.0, 11.0])
    assert found == pytest.approx({"slope": 2, "start": 3, "worst_miss": 0}, abs=1e-9)
    assert growth.line([1, 2, 3], [1.0, 1.5, 1.0])["worst_miss"] > 0.1
    kept = {(batch, n): growth.kept_bytes(bench_step.Bench("enumerate", batch, "cpu", **{"model.num_steps": n}))
            for batch, n in ((2, 1), (4, 1), (4, 2), (4, 3))}
    assert kept[4, 1] == pytest.approx(2 * kept[2, 1], rel=0.1)
    each = kept[4, 2] - kept[4, 1]
    assert kept[4, 3] - kept[4, 2] == pytest.approx(each, rel=0.1)
    # At least, for each image and step: the canvas, the window and its glimpse, the hidden layers, in four bytes each.
    assert 4 * 4 * (50 * 50 + 2 * 28 * 28 + 2 * 200) < each < 5 * 4 * 4 * (50 * 50 + 2 * 28 * 28 + 2 * 200)


def test_data_are_timed_in_a_cache_of_their_own(benchmark, monkeypatch, tmp_path, capsys):
    script, built = benchmark("bench_data"), []
    times = itertools.chain([0, 5, 10, 13, 20, 21, 30, 32, 40, 44, 50, 52], itertools.repeat(0))
    monkeypatch.setattr(script, "sprites", lambda train, size: built.append((cache_dir(), cache_dir().parent.exists())))
    monkeypatch.setattr(script.time, "perf_counter", lambda: next(times))
    script.main(["sprites", "--scenes", "50", "--json", str(tmp_path / "data.json")])
    (folder, existed), = set(built)
    assert len(built) == 6 and existed and not folder.parent.exists() and folder != cache_dir()
    report = json.loads((tmp_path / "data.json").read_text())
    assert report["rows"] == {"sprites": {"generate_s": 5, "load_s": 2}} and report["scenes"] == 50
    assert "| sprites | 5.00 | 2.000 |" in capsys.readouterr().out
    for arguments, word in ((["cifar"], "no data set named cifar"), (["--scenes", "0"], "at least 1"),
                            (["multi-mnist", "--data-root", "/nowhere"], "MNIST")):
        with pytest.raises(SystemExit) as ended:
            script.main(arguments)
        assert ended.value.code == 2 and word in capsys.readouterr().err


def result(seed, accuracy):
    metrics = None if accuracy is None else dict(
        count_accuracy_map=accuracy, count_accuracy_sampled=accuracy, count_accuracy_refined=accuracy, box_iou=0.5,
        box_ap50=0.5, elbo=600.0 + seed, log_likelihood=650.0, kl_pres=1.0, kl_where=2.0, kl_what=3.0, iw_bound=610.0,
        steps=10, seconds=1.0, confusion=[[4 + seed, 0], [1, 2]])
    return {"seed": seed, "metrics": metrics, "device": "chip", "threads": 2, "jobs": 1, "torch": "x", "commit": "c"}


def test_the_table_keeps_failed_runs(benchmark):
    text = benchmark("tables").table([result(0, 0.99), result(1, 0.5), result(2, None)])
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:]]
            for line in text.splitlines() if line.startswith("|")}
    assert rows["0"][0] == "99.00" and rows["1"][0] == "50.00" and set(rows["2"][:-1]) == {"-"}
    assert rows["mean"][0] == "74.50" and rows["worst"][0] == "50.00" and rows["worst"][5] == "600.0"
    assert "1 of 3 runs" in text and "with 0 objects, by MAP count, all runs: 0: 9, 1: 0." in text


def test_unseen_counts_have_columns_where_they_were_measured(benchmark):
    tables, runs = benchmark("tables"), [result(0, 0.9), result(1, 0.9)]
    assert "unseen" not in tables.table(runs).lower()
    for run, share in zip(runs, (0.25, 0.75)):
        run["metrics"]["unseen"] = {"count_accuracy_map": share, "count_accuracy_refined": 1.0, "box_iou": 0.5,
                                    "confusion": [[0, 0], [3, 1]]}
    text = tables.table(runs)
    rows = text.splitlines()
    place = [cell.strip() for cell in rows[0].split("|")].index("unseen counts, MAP %")
    assert [row.split("|")[place].strip() for row in rows[2:7]] == ["25.00", "75.00", "50.00", "35.36", "25.00"]
    assert "* Unseen scenes with 1 objects, by MAP count, all runs: 0: 6, 1: 2." in text
    summary = tables.summary({"a": runs, "b": [result(0, 0.5)]}, ("unseen_count_accuracy_map", "box_iou"))
    assert summary.splitlines()[2:] == ["| `a` | 2 | 50.00 (25.00) | 0.500 (0.500) |",
                                        "| `b` | 1 | - | 0.500 (0.500) |"]


def test_three_dimensional_scenes_have_columns_of_their_own(benchmark):
    """The worst of errors is the largest; what nobody measured has no column."""
    tables, runs = benchmark("tables"), [result(seed, 0.9) for seed in range(2)]
    for run, place in zip(runs, (0.01, 0.03)):
        del run["metrics"]["count_accuracy_refined"]
        run["metrics"] |= {"identity_accuracy": 1 - place, "place_error": place, "rotation_error": 100 * place}
        run["metrics"]["unseen"] = {"count_accuracy_map": 0.5, "box_iou": 0.5, "identity_accuracy": 0.75,
                                    "place_error": place, "confusion": [[0, 0], [3, 1]]}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.table(runs).splitlines() if "|" in line]
    by_name = {row[0]: dict(zip(rows[0], row)) for row in rows}
    assert "refined %" not in rows[0] and "unseen, refined %" not in rows[0]
    worst = by_name["worst"]
    assert (worst["shapes %"], worst["place %"], worst["rotation, °"]) == ("97.00", "3.00", "3.0")
    assert (by_name["mean"]["place %"], by_name["1"]["unseen, place %"]) == ("2.00", "3.00")
    summary = tables.summary({"a": runs}, ("place_error", "unseen_identity_accuracy"))
    assert summary.splitlines()[2] == "| `a` | 2 | 2.00 (3.00) | 75.00 (75.00) |"


def test_scenes_of_unknown_count_have_other_columns(benchmark):
    """No share counted right is made up for them, nor a success."""
    tables = benchmark("tables")
    runs = [result(seed, 0.9) for seed in range(2)]
    for run, error in zip(runs, (0.02, 0.03)):
        for name in (*tables.WITH_TRUTH, "confusion"):
            run["metrics"].pop(name, None)
        run["metrics"] |= {"mean_count": 2.5, "squared_error": [0.1, error], "counted": [1, 4]}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.table(runs).splitlines() if "|" in line]
    by_name = {row[0]: dict(zip(rows[0], row)) for row in rows}
    assert by_name["1"]["mean count"] == "2.50" and by_name["1"]["error after 1, x1000"] == "30.0"
    assert by_name["mean"]["error after 1, x1000"] == "25.0" and by_name["worst"]["ELBO"] == "600.0"
    assert by_name["worst"]["error after 1, x1000"] == "30.0" and by_name["worst"]["error after 2, x1000"] == "-"
    needing_truth = {**tables.WITH_TRUTH, **tables.MILESTONES_REACHED}
    assert not set(rows[0]) & {name for name, _, _ in needing_truth.values()}
    text = tables.table(runs)
    assert "by MAP count, all runs: 0: 2, 1: 8." in text and "runs count at least" not in text
    summary = tables.summary({"a": [*runs, result(2, None)]}, ("elbo", "squared_error_1", "squared_error_2"))
    assert summary.splitlines()[2] == "| `a` | 3 | 600.5 (600.0) | 25.0 (30.0) | - |"
    assert benchmark("seeds").milestones([{"step": 1, "seconds": 1, "held_out": {"elbo": 1.0}}]) == {}


def test_milestones_are_the_first_evaluations_that_reach_them(benchmark):
    evaluations = [{"step": 100 * (i + 1), "seconds": 2.0 * i, "held_out": {"count_accuracy_map": accuracy}}
                   for i, accuracy in enumerate((0.5, 0.949, 0.93, 0.95, 0.97))]
    assert benchmark("seeds").milestones(evaluations) == {"steps_to_90": 200, "seconds_to_90": 2.0,
                                                          "steps_to_95": 400, "seconds_to_95": 6.0}


def test_the_overview_counts_failed_runs_as_the_slowest(benchmark):
    fast = result(0, 0.99)
    fast["metrics"] |= {"steps_to_98": 300, "seconds_to_98": 6.0}
    lines = benchmark("tables").overview({"a": [fast, result(1, 0.5), result(2, None)]}).splitlines()
    (line,) = [line for line in lines if line.startswith("| `a`")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:6] == ["1/3", "74.50", "50.00", "-", "-"] and cells[10] == "600.5"


def test_every_experiment_is_a_command_that_train_py_takes(benchmark):
    for experiment in benchmark("experiments").EXPERIMENTS.values():
        train.build_parser().parse_args(shlex.split(experiment.arguments))


def test_seeds_explains_bad_arguments(benchmark, capsys):
    for arguments, word in ((["magic"], "strict-enumerate"), ([], "--tables"), (["noise", "--tables"], "--tables"),
                            (["noise", "--jobs", "0"], "at least 1")):
        with pytest.raises(SystemExit) as ended:
            benchmark("seeds").main(arguments)
        assert ended.value.code == 2 and word in capsys.readouterr().err


def test_jobs_run_at_a_time_and_share_the_threads(benchmark, monkeypatch, tmp_path, capsys):
    seeds, together = benchmark("seeds"), threading.Barrier(2, timeout=60)

    def run(seed, arguments):
        together.wait()  # passed by two at a time only
        return result(seed, 0.99) | {"threads": torch.get_num_threads(), "command": " ".join(arguments)}

    monkeypatch.setattr(seeds, "run", run)
    monkeypatch.setattr(benchmark("tables"), "RESULTS", tmp_path)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        seeds.main(["noise", "digits-9px", "--seeds", "3", "0", "1", "--jobs", "2"])  # an odd number of runs each
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out.count("3 of 3 runs") == 2
    for name in ("noise", "digits-9px"):
        kept = benchmark("tables").load_results(name)
        assert [each["seed"] for each in kept] == [0, 1, 3]
        assert {(each["threads"], each["jobs"]) for each in kept} == {(3, 2)}
        assert kept[0]["command"] == benchmark("experiments").EXPERIMENTS[name].arguments


def test_the_tables_written_are_those_of_the_results(benchmark, monkeypatch, tmp_path):
    tables, experiments = benchmark("tables"), benchmark("experiments")
    written = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    for name in ("RESULTS_FILE", "README"):
        monkeypatch.setattr(tables, name, tmp_path / name)
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    told = {tables.README: (ROOT / "README.md").read_text()}
    told |= {tmp_path / page: (ROOT / "docs" / page).read_text() for page, _ in tables.SUMMARIES.values()}
    for file, text in told.items():
        file.write_text(re.sub(r"(?m)^\| `(strict-nvil|dair-to-3-n3)` .*\n", "", text))
    assert tables.write_tables() == written == tables.RESULTS_FILE.read_text()
    assert {file: file.read_text() for file in told} == told
    pages = "".join((*told.values(), (ROOT / "docs" / "recipe.md").read_text()))
    for name in experiments.EXPERIMENTS:  # the pages show all of them, and no other figures
        results = tables.load_results(name)
        if not results:
            continue
        for kept in results:
            assert shlex.split(kept["command"])[2:-4] == shlex.split(experiments.EXPERIMENTS[name].arguments)
        if f"\n| `{name}` |" not in pages:  # it has no row of a table
            assert f"`{name}`: {tables.brief(results)}" in pages


def test_a_table_goes_into_its_own_section_or_nowhere(benchmark, tmp_path):
    page, replace_table = tmp_path / "page.md", benchmark("tables").replace_table
    page.write_text("# T\n\n## A\n\nno table\n\n## B\n\n| experiment | x |\n| old |\n\nafter\n")
    replace_table(page, "## B", "| experiment | y |\n| new |")
    written = page.read_text()
    assert written == "# T\n\n## A\n\nno table\n\n## B\n\n| experiment | y |\n| new |\n\nafter\n"
    for heading in ("## A", "## C"):
        with pytest.raises(ValueError, match=f"no table of experiments under '{heading}'"):
            replace_table(page, heading, "| experiment |")
    assert page.read_text() == written


def test_a_gradient_s_bias_and_variance_are_told_apart(benchmark):
    """Blocks of a known offset and noise: the estimate of the squared bias does not see the noise."""
    squared_bias = benchmark("gradient_variance").squared_bias
    torch.manual_seed(0)
    for offset in (0.0, 3.0):
        estimates = torch.tensor([squared_bias(list(torch.randn(10, 40) + offset / 40**0.5), list(torch.randn(10, 40)))
                                  for _ in range(200)])
        mean, error = estimates.mean(0)
        assert mean.item() == pytest.approx(offset**2, abs=4 * (estimates[:, 0].std() / 200**0.5).item())
        assert 0.8 < error.item() / estimates[:, 0].std().item() < 2  # too large, if anything: where there is no bias


def test_gradients_have_the_variance_they_were_given(benchmark):
    """Each network is one weight whose gradient is drawn from Normal(2, 3²)."""
    script = benchmark("gradient_variance")

    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Module()
            for name in script.NETWORKS:
                self.model.add_module(name, torch.nn.Linear(1, 1, bias=False))

        def forward(self, images):
            noise = 2 + 3 * torch.randn(4)
            return sum(n * getattr(self.model, name).weight.sum() for n, name in zip(noise, script.NETWORKS)), {}

    torch.manual_seed(0)
    drawn = script.Draws(Noisy(), torch.zeros(1), 4000)
    for name in script.NETWORKS:
        assert drawn.mean(name).item() == pytest.approx(2, abs=4 * 3 / 4000**0.5)
        assert drawn.variance(name) == pytest.approx(9, rel=4 * (2 / 4000)**0.5)


def test_the_gradients_told_of_are_those_measured(benchmark, capsys):
    benchmark("gradient_variance").main(["--table"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 1000 |")]
    page = (ROOT / "docs" / "recipe.md").read_text()
    assert len(rows) == 7 and all(row in page for row in rows)


def test_gradient_variance_explains_bad_arguments(benchmark, capsys):
    for arguments, word in ((["--draws", "5"], "--draws 20"), (["--moments", "0"], "--moments"),
                            (["--data-root", "/nowhere"], "--data-root")):
        with pytest.raises(SystemExit) as ended:
            benchmark("gradient_variance").main(arguments)
        assert ended.value.code == 2 and word in capsys.readouterr().err
