"""Markdown tables of results."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from air.evaluation import failures
from experiments.records import (
    MAP,
    MILESTONES,
    MOST_ERRORS,
    REFINED,
    SEVERAL_ARI,
    SUCCESS,
    UNSEEN,
    Metrics,
    Result,
    finished,
    flat_metrics,
    knows_counts,
    succeeded,
)

ResultsByName = Mapping[str, Sequence[Result]]


class Column(NamedTuple):
    """How a metric is shown."""

    heading: str
    factor: float = 1  # shown is factor times the metric
    digits: int = 1  # after the decimal point
    worst: Callable[[Iterable[float]], float] = min
    ranked: bool = True  # False: it makes no sense to call one run's value the worst

    def unseen(self) -> "Column":
        """The column of the same metric on scenes whose counts training has not shown."""
        return self._replace(heading=f"unseen{' counts' if self.heading == 'MAP %' else ''}, {self.heading}")


WITH_TRUTH = {MAP: Column("MAP %", 100, 2), "count_accuracy_sampled": Column("sampled %", 100, 2),
              REFINED: Column("refined %", 100, 2), "count_error": Column("count error", 1, 3, max),
              "box_iou": Column("box IoU", 1, 3), "box_ap50": Column("AP50", 1, 3)}
SHAPES = {"identity_accuracy": Column("shapes %", 100, 2), "place_error": Column("place %", 100, 2, max),
          "rotation_error": Column("rotation, °", 1, 1, max)}  # of 3D scenes
MASKS = {SEVERAL_ARI: Column("FG-ARI, 2 or more %", 100, 2), "fg_ari": Column("FG-ARI, all %", 100, 2),
         "mask_iou": Column("mask IoU %", 100, 2)}  # of scenes with true masks
WRONG = {f"wrong_{kind}": Column(f"wrong: {kind} %", 100, 2, max) for kind in failures.WRONG}  # shares of all scenes
UNSEEN_COLUMNS = {f"unseen_{key}": {**WITH_TRUTH, **SHAPES, **MASKS}[key].unseen() for key in UNSEEN}
ERRORS = {f"squared_error_{n}": Column(f"error after {n}, x1000", 1000, 1, max) for n in range(MOST_ERRORS)}
WITHOUT_TRUTH = {"mean_count": Column("mean count", 1, 2, ranked=False), **ERRORS}
REACHED = {f"{unit}_to_{percent}": Column(f"{short} to {percent}%", 1, 0, max)
           for unit, short in (("steps", "steps"), ("seconds", "s")) for percent in MILESTONES}
COLUMNS = {**WITH_TRUTH, **MASKS, **SHAPES, **UNSEEN_COLUMNS, **WITHOUT_TRUTH, **WRONG, "elbo": Column("ELBO"),
           "log_likelihood": Column("log p(x given z)", ranked=False), "kl_pres": Column("KL pres", ranked=False),
           "kl_where": Column("KL where", ranked=False), "kl_what": Column("KL what", ranked=False),
           "iw_bound": Column("IW-100"), **REACHED, "steps": Column("steps", 1, 0, ranked=False),
           "seconds": Column("s", 1, 0, ranked=False)}
# The columns of `overview` behind the success rate: heading, metric, and how the runs are combined.
SHORT_OVERVIEW = (("MAP %, mean", MAP, "mean"), ("worst", MAP, "worst"),
                  ("steps to 98%, median", "steps_to_98", "median"))
FULL_OVERVIEW = (*SHORT_OVERVIEW, ("s to 98%, median", "seconds_to_98", "median"),
                 *((COLUMNS[key].heading, key, "mean") for key in (
                     "count_accuracy_sampled", REFINED, "box_iou", "box_ap50", "elbo", "iw_bound", "steps",
                     "seconds")))


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first row is the heading."""
    heading, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join((heading, "|" + " --- |" * (heading.count(" | ") + 1), *body))


def cell(key: str, value: float) -> str:
    """A metric's value as its column shows it; "-" for inf and nan."""
    _, factor, digits, *_ = COLUMNS[key]
    return f"{factor * value:.{digits}f}" if math.isfinite(value) else "-"


def runs_table(results: Sequence[Result]) -> str:
    """All runs of an experiment: one row a seed, then mean, sd and worst over the finished runs, and notes below."""
    done, known = finished(results), knows_counts(results)
    hidden = {*WITHOUT_TRUTH} if known else {*WITH_TRUTH, *REACHED}
    hidden |= {key for key in (*MASKS, *SHAPES, *UNSEEN_COLUMNS, *WRONG, REFINED, "count_error")
               if not any(key in metrics for metrics in done)}
    columns = {key: column for key, column in COLUMNS.items() if key not in hidden}

    def row(name: str, values: Mapping[str, float]) -> list[str]:
        return [name, *(cell(key, values.get(key, math.nan)) for key in columns)]

    rows = [["seed", *(column.heading for column in columns.values())],
            *(row(str(result["seed"]), flat_metrics(result)) for result in results)]
    if done:
        by_column = {key: [metrics[key] for metrics in done] for key in columns
                     if all(key in metrics for metrics in done)}
        rows.append(row("mean", {key: statistics.mean(values) for key, values in by_column.items()}))
        if len(done) > 1:
            rows.append(row("sd", {key: statistics.stdev(values) for key, values in by_column.items()}))
        rows.append(row("worst", {key: columns[key].worst(values) for key, values in by_column.items()
                                  if columns[key].ranked}))
    return "\n".join((markdown(rows), "", *notes(results)))


def notes(results: Sequence[Result]) -> list[str]:
    """Confusion matrix, successes and machine, one line each."""
    done = finished(results)
    if knows_counts(results):
        unseen = [metrics["unseen"] for metrics in done if "unseen" in metrics]
        lines = [*confusion_lines("Scenes", done), *confusion_lines("Unseen scenes", unseen),
                 f"* {succeeded(results)} of {len(results)} runs count at least {SUCCESS:.0%} of held-out "
                 "scenes right."]
    else:
        lines = [f"* Scenes by MAP count, all runs: {by_count(metrics['counted'] for metrics in done)}."]
    machines = sorted({f"{result['device']}, threads a run: {result['threads']}, runs at a time: {result['jobs']}, "
                       f"torch {result['torch']}" for result in results})
    commits = sorted({result["commit"] for result in results})
    return [*lines, f"* {' and '.join(machines)}, commit {', '.join(commits)}."]


def confusion_lines(scenes: str, done: Sequence[Metrics]) -> list[str]:
    """The sum of the runs' confusion matrices, one line for each true count that occurs."""
    by_truth = enumerate(zip(*(metrics["confusion"] for metrics in done)))
    return [f"* {scenes} with {truth} objects, by MAP count, all runs: {by_count(rows)}."
            for truth, rows in by_truth if any(map(any, rows))]


def by_count(rows: Iterable[Sequence[int]]) -> str:
    """Numbers of scenes by count, summed over the runs, such as "0: 12, 1: 3"."""
    return ", ".join(f"{n}: {sum(column)}" for n, column in enumerate(zip(*rows)))


def overview(results_by_name: ResultsByName, columns: Sequence[tuple[str, str, str]] = FULL_OVERVIEW) -> str:
    """One row an experiment: success rate, and statistics over its runs. For data sets with true counts.

    An aborted run counts as a failure and as never reaching a milestone; a milestone that was not reached counts as
    infinitely late in a median. Other statistics are over the finished runs.
    """
    rows = [["experiment", "success", *(heading for heading, _, _ in columns)]]
    for name, results in results_by_name.items():
        cells = []
        for _, key, statistic in columns:
            values = [metrics[key] for metrics in finished(results) if key in metrics]
            if statistic == "median":
                value = statistics.median([flat_metrics(result).get(key, math.inf) for result in results])
            elif not values:
                value = 0.0 if key == MAP else math.nan
            else:
                value = statistics.mean(values) if statistic == "mean" else COLUMNS[key].worst(values)
            cells.append(cell(key, value))
        rows.append([f"`{name}`", f"{succeeded(results)}/{len(results)}", *cells])
    return markdown(rows)


def summary(results_by_name: ResultsByName, keys: Sequence[str]) -> str:
    """One row an experiment: the mean of each metric and, in brackets, the worst. Aborted runs count as runs only."""
    rows = [["experiment", "runs", *(COLUMNS[key].heading for key in keys)]]
    for name, results in results_by_name.items():
        cells = []
        for key in keys:
            values = [metrics[key] for metrics in finished(results) if key in metrics]
            cells.append(f"{cell(key, statistics.mean(values))} ({cell(key, COLUMNS[key].worst(values))})" if values
                         else "-")
        rows.append([f"`{name}`", str(len(results)), *cells])
    return markdown(rows)
