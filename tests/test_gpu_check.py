"""The command for a GPU, as far as it goes without one: a dry run, what stops a part, and what counts as a failure."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, gpu_parts
from benchmarks.gpu_check import PARTS, as_line, main, rows_of_process
from benchmarks.gpu_parts import CASES, EVERYTHING, RESUMED, TWICE, WRITTEN, Case, Place, Row, judged, measurements

ROOT = Path(__file__).parent.parent


def test_a_dry_run_goes_through_every_part(tmp_path, capfd):
    main(["--device", "cpu", "--json", str(tmp_path / "deep" / "report.json")])
    report, said = json.loads((tmp_path / "deep" / "report.json").read_text()), capfd.readouterr().out
    assert {"device", "driver", "torch", "commit"} <= report.keys() and report["dry_run"] is True
    assert list(report["parts"]) == list(PARTS) and sum(PARTS.values()) <= 8 * 60
    rows = {part: found["rows"] for part, found in report["parts"].items()}
    assert all(rows[part] for part in PARTS if part != "compiled")
    for row in (row for found in rows.values() for row in found):
        assert row["fault"] == "" and row["name"] in said
    for row in rows["agree"]:
        # Adam rounds otherwise where a graph could be captured; bf16 makes more of it.
        assert row["figures"][TWICE] and row["figures"]["elbo apart"] < (1e-2 if "bf16" in row["name"] else 1e-4)
    assert all(row["figures"][RESUMED] for row in rows["resume"])
    for row in rows["times"] + rows["models"]:
        assert 0 < row["figures"]["busy ms"] and row["figures"]["kernels"] > 100 and row["figures"]["step ms"] > 0
    assert rows["models"][0]["targets"] == {"step ms": 1.5} and "(target 1.5: " in said
    assert 0 < rows["times"][0]["figures"]["share of the products' rate"] < 1
    assert rows["train"][0]["figures"]["steps"] == 4


def test_what_the_parts_measure_on_a_gpu():
    there = Place("cuda", "nowhere")
    names = {part: [name for name, _ in measurements(part, there)] for part in PARTS}
    assert len(names["agree"]) == len(names["resume"]) == len(CASES) == 18 and len(names["train"]) == 4
    assert len(names["times"]) == 12 and len(names["compiled"]) == 8
    assert {"enumerate, --guide search", "enumerate, 3D scenes", "vimco"} <= set(names["models"])


def documented():
    """Of each configuration in the table of determinism, whether the three comparisons are equal."""
    section = (ROOT / "docs" / "performance.md").read_text().partition("### Determinism")[2].partition("\n## ")[0]
    table = {}
    for line in section.splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("| ").split("|")]
        if len(cells) == 4 and set(cells[1:]) <= {"yes", "no"}:
            estimators, _, rest = cells[0].replace(";", ",").rpartition(", ")
            if cells[0].startswith("3D scenes"):
                estimators, rest = cells[0].partition("; ")[2], "3D scenes"
            for estimator in estimators.split(", "):
                table[f"{estimator}, {rest}"] = cells[1:]
    return table


def test_what_must_be_equal_is_what_the_documentation_says():
    table = documented()
    assert {case.name for case in CASES} == table.keys()
    for case in CASES:
        assert [("yes" if name in case.same else "no") for name in EVERYTHING] == table[case.name], case.name


def test_what_differs_although_it_is_documented_as_the_same_is_a_failure(monkeypatch, capsys):
    row = Row("case", {WRITTEN: False, TWICE: True, RESUMED: False})
    assert judged(row, (TWICE,)).fault == "" and WRITTEN in judged(row, EVERYTHING).fault
    draws = iter(range(100))
    monkeypatch.setattr(gpu_parts, "CASES", [Case("vimco, bf16", "vimco", {}, (RESUMED,))])
    monkeypatch.setattr(gpu_parts, "state_of", lambda trainer: [torch.tensor(next(draws))])
    with pytest.raises(SystemExit) as ended:
        main(["resume", "--device", "cpu"])
    assert ended.value.code == "gpu_check: 1 measurements failed"
    assert f"FAILED: documented as the same bit for bit: {RESUMED}" in capsys.readouterr().out


def test_a_measurement_that_fails_is_a_row_and_the_others_go_on(monkeypatch, capsys):
    def fail(*what):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(gpu_parts, "step_times", fail)
    monkeypatch.setattr(gpu_parts, "resume", lambda case, place: Row(case.name, {RESUMED: True}))
    with pytest.raises(SystemExit) as ended:
        main(["times", "resume", "--device", "cpu"])
    said = capsys.readouterr().out
    assert ended.value.code == "gpu_check: 1 measurements failed"
    assert "FAILED: RuntimeError: out of memory" in said and said.count(f"{RESUMED}: yes") == 2


def script(code):
    return [sys.executable, "-c", f"import os, sys, time\n{code}"]


def test_a_part_that_takes_too_long_is_stopped_and_keeps_its_rows(tmp_path):
    child = f"import subprocess; subprocess.Popen(['sleep', '60']); open({str(tmp_path / 'ready')!r}, 'w')"
    told = "print('noise'); print('row: ' + '{\"name\": \"one\", \"figures\": {\"ms\": 1.5}}', flush=True)"
    start = time.monotonic()
    rows = list(rows_of_process(script(f"{child}\n{told}\ntime.sleep(60)"), 1.5, {}))
    assert rows == [Row("one", {"ms": 1.5}), Row("the rest", fault="stopped after 1.5 s")]
    assert time.monotonic() - start < 20  # its own processes, which hold its output, are stopped as well


def test_a_part_whose_process_dies_says_its_last_words():
    rows = list(rows_of_process(script("sys.exit('CUDA error: an illegal memory access')"), 20, {}))
    assert rows == [Row("the rest", fault="the process ended with code 1: CUDA error: an illegal memory access")]
    assert list(rows_of_process(script("print(os.environ['CACHE'])"), 20, {"CACHE": "x"})) == []


def test_on_a_gpu_a_part_is_measured_by_a_process_of_its_own(monkeypatch, capsys):
    """The command is looked at, and what it runs is run here."""
    seen = []
    monkeypatch.setattr(gpu_check, "rows_of_process", lambda *given: seen.append(given) or iter([Row("x")]))
    assert list(gpu_check.measured("agree", Place("cuda", "/data"), "/scratch")) == [Row("x")]
    (command, seconds, environment), = seen
    assert command[0] == sys.executable and command[1] == "-c" and seconds == PARTS["agree"]
    assert environment["XDG_CACHE_HOME"].startswith("/scratch")
    monkeypatch.setattr(gpu_check, "rows", lambda part, place: [Row(f"{part} on {place.device}, {place.root}")])
    monkeypatch.setattr(sys, "argv", command[1:2] + command[3:])
    exec(command[2], {})
    assert json.loads(capsys.readouterr().out.removeprefix("row: "))["name"] == "agree on cuda, /data"


def test_without_mnist_only_sprites_train(tmp_path):
    row = gpu_parts.training("multi-mnist", "enumerate", "fp32", Place("cuda", str(tmp_path)))
    assert row.fault == "" and "no MNIST under" in row.figures["skipped"] and "--data-root" in row.figures["skipped"]


def test_the_first_line_that_counts_enough_right(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert gpu_parts.first_enough(log) is None
    lines = [json.dumps({"step": step, "seconds": step / 100, "held_out": {"count_accuracy_map": right}})
             for step, right in ((100, 0.9), (200, 0.981), (300, 0.99))]
    log.write_text("\n".join(lines[:2]))  # the second is being written
    assert gpu_parts.first_enough(log) is None
    log.write_text("\n".join(lines) + "\n")
    assert gpu_parts.first_enough(log) == {"step": 200, "seconds": 2.0}


def test_a_row_says_whether_its_targets_are_met():
    line = as_line(Row("name", {"step ms": 0.55, "graph ms": 0.5, "same": True, "98%": "not reached"},
                       {"step ms": 0.6, "absent": 1.0}))
    assert line.split() == ("name step ms: 0.55 (target 0.6: met), graph ms: 0.5, same: yes, 98%: not reached").split()
    assert "(target 0.5: missed)" in as_line(Row("name", {"ms": 0.55}, {"ms": 0.5}))


def test_wrong_arguments_are_explained(tmp_path, capsys):
    for arguments, words in ((["all"], "no part named all; choose from agree"), ([], "torch sees no CUDA device"),
                             (["--device", "cpu", "--json", str(tmp_path)], "cannot be written (Is a directory)")):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and words in capsys.readouterr().err
