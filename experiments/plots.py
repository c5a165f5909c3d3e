"""Plots of results."""

from pathlib import Path

from matplotlib.figure import Figure

from experiments.records import MAP, flat_metrics
from experiments.tables import ResultsByName

TICKS, LEAST_WRONG = (100, 30, 10, 3, 1, 0.3, 0.1, 0.03), 0.03  # %


def plot_errors(results_by_name: ResultsByName, file: Path, key: str = MAP) -> None:
    """Draw the share of scenes that each run counts wrong: one row an experiment, one dot a run, a cross if aborted.

    Args:
        file: a PNG file to write.
        key: the metric of the share counted right: MAP, or "unseen_" + MAP.
    """
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(results_by_name)), layout="constrained")
    axis = figure.subplots()
    kinds = list(dict.fromkeys(name.split("-")[0] for name in results_by_name))  # air, dair, search: one colour each
    for place, (name, results) in enumerate(results_by_name.items()):
        wrong = [100 - 100 * flat_metrics(result)[key] for result in results if result["metrics"]]
        axis.scatter([max(LEAST_WRONG, each) for each in wrong], [place] * len(wrong), s=24, alpha=0.6, linewidths=0,
                     color=f"C{kinds.index(name.split('-')[0])}")
        aborted = len(results) - len(wrong)
        axis.scatter([100] * aborted, [place] * aborted, marker="x", color="black")
    names = [f"{name} ({len(results)})" for name, results in results_by_name.items()]
    axis.set_yticks(range(len(names)), names)
    scenes = "held-out scenes" if key == MAP else "scenes with counts not seen in training,"
    axis.set(xlabel=f"{scenes} counted wrong, MAP, %", xscale="log", xlim=(110, LEAST_WRONG))
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110)
