import pytest

from experiments.tables import REACHED, SHORT_OVERVIEW, WITH_TRUTH, overview, runs_table, summary


@pytest.fixture
def result():
    """Makes a result with a MAP accuracy; None: an aborted run."""
    def make(seed, accuracy):
        metrics = None if accuracy is None else dict(
            count_accuracy_map=accuracy, count_accuracy_sampled=accuracy, count_accuracy_refined=accuracy, box_iou=0.5,
            box_ap50=0.5, elbo=600.0 + seed, log_likelihood=650.0, kl_pres=1.0, kl_where=2.0, kl_what=3.0,
            iw_bound=610.0, steps=10, seconds=1.0, confusion=[[4 + seed, 0], [1, 2]])
        return {"seed": seed, "metrics": metrics, "device": "chip", "threads": 2, "jobs": 1, "torch": "x",
                "commit": "c"}
    return make


def cells(markdown):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line.startswith("|")]


def by_row(markdown):
    """First cell -> heading -> cell."""
    rows = cells(markdown)
    return {row[0]: dict(zip(rows[0], row)) for row in rows}


def test_aborted_and_failed_runs_are_rows(result):
    text = runs_table([result(0, 0.99), result(1, 0.5), result(2, None)])
    rows = {row[0]: row[1:] for row in cells(text)}
    assert rows["0"][0] == "99.00" and rows["1"][0] == "50.00" and set(rows["2"]) == {"-"}
    assert rows["mean"][0] == "74.50" and rows["worst"][0] == "50.00" and rows["worst"][5] == "600.0"
    assert "1 of 3 runs" in text and "with 0 objects, by MAP count, all runs: 0: 9, 1: 0." in text
    assert text.splitlines()[-1] == "* chip, threads a run: 2, runs at a time: 1, torch x, commit c."


def test_unseen_counts_have_columns_if_they_were_measured(result):
    runs = [result(0, 0.9), result(1, 0.9)]
    assert "unseen" not in runs_table(runs).lower()
    for run, share in zip(runs, (0.25, 0.75)):
        run["metrics"]["unseen"] = {"count_accuracy_map": share, "count_accuracy_refined": 1.0, "box_iou": 0.5,
                                    "confusion": [[0, 0], [3, 1]]}
    text = runs_table(runs)
    rows = by_row(text)
    assert [rows[name]["unseen counts, MAP %"] for name in ("0", "1", "mean", "sd", "worst")] == [
        "25.00", "75.00", "50.00", "35.36", "25.00"]
    assert "* Unseen scenes with 1 objects, by MAP count, all runs: 0: 6, 1: 2." in text
    table = summary({"a": runs, "b": [result(0, 0.5)]}, ("unseen_count_accuracy_map", "box_iou"))
    assert table.splitlines()[2:] == ["| `a` | 2 | 50.00 (25.00) | 0.500 (0.500) |", "| `b` | 1 | - | 0.500 (0.500) |"]


def test_the_count_error_is_shown_where_it_was_measured(result):
    """Result files from before it existed have no value; the worst is the largest."""
    old, new = [result(0, 0.9)], [result(0, 0.9), result(1, 0.9)]
    for run, error in zip(new, (0.25, 0.75)):
        run["metrics"]["count_error"] = error
    assert "count error" not in runs_table(old)
    assert by_row(runs_table(new))["worst"]["count error"] == "0.750"
    mixed = by_row(runs_table([*old, new[1]]))
    assert (mixed["0"]["count error"], mixed["1"]["count error"], mixed["mean"]["count error"]) == ("-", "0.750", "-")
    table = summary({"old": old, "new": new}, ("count_accuracy_map", "count_error"))
    assert table.splitlines()[2:] == ["| `old` | 1 | 90.00 (90.00) | - |",
                                      "| `new` | 2 | 90.00 (90.00) | 0.500 (0.750) |"]


def test_scenes_in_3d_have_columns_of_their_own(result):
    """The worst of several errors is the largest; a metric that was not measured has no column."""
    runs = [result(seed, 0.9) for seed in range(2)]
    for run, place in zip(runs, (0.01, 0.03)):
        del run["metrics"]["count_accuracy_refined"]
        run["metrics"] |= {"identity_accuracy": 1 - place, "place_error": place, "rotation_error": 100 * place}
        run["metrics"]["unseen"] = {"count_accuracy_map": 0.5, "box_iou": 0.5, "identity_accuracy": 0.75,
                                    "place_error": place, "confusion": [[0, 0], [3, 1]]}
    rows = by_row(runs_table(runs))
    assert "refined %" not in rows["seed"] and "unseen, refined %" not in rows["seed"]
    worst = rows["worst"]
    assert (worst["shapes %"], worst["place %"], worst["rotation, °"]) == ("97.00", "3.00", "3.0")
    assert (rows["mean"]["place %"], rows["1"]["unseen, place %"]) == ("2.00", "3.00")
    table = summary({"a": runs}, ("place_error", "unseen_identity_accuracy"))
    assert table.splitlines()[2] == "| `a` | 2 | 2.00 (3.00) | 75.00 (75.00) |"


def test_scenes_without_true_counts_have_no_accuracy_and_no_success(result):
    runs = [result(seed, 0.9) for seed in range(2)]
    for run, error in zip(runs, (0.02, 0.03)):
        for name in (*WITH_TRUTH, "confusion"):
            run["metrics"].pop(name, None)
        run["metrics"] |= {"mean_count": 2.5, "squared_error": [0.1, error], "counted": [1, 4]}
    text = runs_table(runs)
    rows = by_row(text)
    assert rows["1"]["mean count"] == "2.50" and rows["1"]["error after 1, x1000"] == "30.0"
    assert rows["mean"]["error after 1, x1000"] == "25.0" and rows["worst"]["ELBO"] == "600.0"
    assert rows["worst"]["error after 1, x1000"] == "30.0" and rows["worst"]["error after 2, x1000"] == "-"
    assert rows["worst"]["mean count"] == "-"
    assert not set(rows["seed"]) & {column.heading for column in {**WITH_TRUTH, **REACHED}.values()}
    assert "by MAP count, all runs: 0: 2, 1: 8." in text and "runs count at least" not in text
    table = summary({"a": [*runs, result(2, None)]}, ("elbo", "squared_error_1", "squared_error_2"))
    assert table.splitlines()[2] == "| `a` | 3 | 600.5 (600.0) | 25.0 (30.0) | - |"


def test_the_overview_counts_aborted_and_failed_runs_as_never_reaching_a_milestone(result):
    fast = result(0, 0.99)
    fast["metrics"] |= {"steps_to_98": 300, "seconds_to_98": 6.0}
    runs = [fast, result(1, 0.5), result(2, None)]
    row = by_row(overview({"a": runs}))["`a`"]
    assert list(row.values())[1:6] == ["1/3", "74.50", "50.00", "-", "-"] and row["ELBO"] == "600.5"
    row = by_row(overview({"a": [fast, fast, runs[1]]}, SHORT_OVERVIEW))["`a`"]
    assert row == {"experiment": "`a`", "success": "2/3", "MAP %, mean": "82.67", "worst": "50.00",
                   "steps to 98%, median": "300"}
    row = by_row(overview({"a": [result(2, None)]}))["`a`"]
    assert list(row.values())[1:7] == ["0/1", "0.00", "0.00", "-", "-", "-"]
