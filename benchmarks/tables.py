"""Tables and plots of the runs in benchmarks/results/, as `python benchmarks/seeds.py --tables` writes them."""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import EXPERIMENTS, GROUPS, MAIN, ROBUSTNESS
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
RESULTS_FILE = Path(__file__).parent / "RESULTS.md"
README = ROOT / "README.md"
DOCS = ROOT / "docs"
MILESTONES = (90, 95, 98)  # percent of the held-out scenes that an evaluation on the way takes
TICKS, LEAST_WRONG = (100, 30, 10, 3, 1, 0.3, 0.1, 0.03), 0.03  # of the plots, in %
SUCCESS = 0.95  # held-out MAP count accuracy
SEEN, REFINED = "count_accuracy_map", "count_accuracy_refined"
UNSEEN = {SEEN: "unseen counts, MAP %", REFINED: "unseen, refined %", "box_iou": "unseen, box IoU",
          "identity_accuracy": "unseen, shapes %", "place_error": "unseen, place %"}  # where asked for
ERRORS = {f"squared_error_{n}": (f"error after {n}, x1000", 1000, 1) for n in range(5)}
# Metrics by name: heading, factor, digits. Where counts are known, of unseen ones, and where they are not:
WITH_TRUTH = {SEEN: ("MAP %", 100, 2), "count_accuracy_sampled": ("sampled %", 100, 2),
              REFINED: ("refined %", 100, 2), "box_iou": ("box IoU", 1, 3), "box_ap50": ("AP50", 1, 3)}
OF_SHAPES = {"identity_accuracy": ("shapes %", 100, 2), "place_error": ("place %", 100, 2),
             "rotation_error": ("rotation, °", 1, 1)}  # of 3D scenes; a place's error as a share of the table's width
OF_UNSEEN = {f"unseen_{key}": (name, *{**WITH_TRUTH, **OF_SHAPES}[key][1:]) for key, name in UNSEEN.items()}
WITHOUT_TRUTH = {"mean_count": ("mean count", 1, 2), **ERRORS}
MILESTONES_REACHED = {f"{unit}_to_{percent}": (f"{short} to {percent}%", 1, 0)
                      for unit, short in (("steps", "steps"), ("seconds", "s")) for percent in MILESTONES}
COLUMNS = {**WITH_TRUTH, **OF_SHAPES, **OF_UNSEEN, **WITHOUT_TRUTH,
           "elbo": ("ELBO", 1, 1), "log_likelihood": ("log p(x given z)", 1, 1), "kl_pres": ("KL pres", 1, 1),
           "kl_where": ("KL where", 1, 1), "kl_what": ("KL what", 1, 1), "iw_bound": ("IW-100", 1, 1),
           **MILESTONES_REACHED, "steps": ("steps", 1, 0), "seconds": ("s", 1, 0)}
# Means over the runs.
OVERVIEW = {"sampled %": "count_accuracy_sampled", "refined %": REFINED, "box IoU": "box_iou",
            "AP50": "box_ap50", "ELBO": "elbo", "IW-100": "iw_bound", "steps": "steps", "s": "seconds"}
# Tables of mean and worst, by the title of a group: the page in DOCS, what is told.
SUMMARIES = {"Counts that training does not show": ("experiments.md", (SEEN, "box_iou", *list(OF_UNSEEN)[:3])),
             "Backdrops": ("experiments.md", (SEEN, REFINED, "box_iou", "box_ap50")),
             "Omniglot": ("experiments.md", ("elbo", "iw_bound", "mean_count", *ERRORS)),
             "One object in 3D": ("scenes.md", (SEEN, *OF_SHAPES, "box_iou")),
             "Several objects in 3D": ("scenes.md", (SEEN, *OF_SHAPES, "box_iou")),
             "Counts in 3D that training does not show": (
                 "scenes.md", (SEEN, *(f"unseen_{key}" for key in (SEEN, "identity_accuracy", "place_error"))))}


def load_results(name: str) -> list[dict[str, Any]]:
    """The results of an experiment, by seed."""
    results = [json.loads(file.read_text()) for file in (RESULTS / name).glob("seed*.json")]
    return sorted(results, key=lambda result: result["seed"])


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """A run's metrics, the errors after n objects and those of unseen counts by names of their own; none where train.py
    had to stop it.
    """
    metrics = result["metrics"] or {}
    unseen = metrics.get("unseen", {})
    return {**metrics, **dict(zip(ERRORS, metrics.get("squared_error", ()))),
            **{f"unseen_{key}": unseen[key] for key in UNSEEN if key in unseen}}


def cell(key: str, value: float) -> str:
    """A metric as COLUMNS has it, - where there is none."""
    _, scale, digits = COLUMNS[key]
    return f"{scale * value:.{digits}f}" if math.isfinite(value) else "-"


def worst(key: str, values: Sequence[float]) -> float:
    """The largest of errors and times, else the smallest."""
    return max(values) if key in {**ERRORS, **MILESTONES_REACHED} or key.endswith("_error") else min(values)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a run, then mean, sd and worst, and how many succeeded."""
    finished = [figures(result) for result in results if result["metrics"]]
    known = knows_counts(results)
    left_out = {*WITHOUT_TRUTH} if known else {*WITH_TRUTH, *MILESTONES_REACHED}
    left_out |= {key for key in (*OF_SHAPES, *OF_UNSEEN, REFINED) if not any(key in metrics for metrics in finished)}
    columns = {key: column for key, column in COLUMNS.items() if key not in left_out}
    lines = ["| seed | " + " | ".join(name for name, _, _ in columns.values()) + " |",
             "| --- |" + " --- |" * len(columns)]

    def row(name: str, values: Mapping[str, float]) -> str:
        return f"| {name} | " + " | ".join(cell(key, values.get(key, math.nan)) for key in columns) + " |"

    lines += [row(str(result["seed"]), figures(result)) for result in results]
    if finished:
        by_column = {key: [metrics[key] for metrics in finished] for key in COLUMNS
                     if all(key in metrics for metrics in finished)}
        lines.append(row("mean", {key: statistics.mean(values) for key, values in by_column.items()}))
        if len(finished) > 1:
            lines.append(row("sd", {key: statistics.stdev(values) for key, values in by_column.items()}))
        lines.append(row("worst", {key: worst(key, values) for key, values in by_column.items()
                                   if key.startswith(("count", "box", "elbo", "iw", "squared", "steps_", "seconds_",
                                                      "unseen", *OF_SHAPES))}))
    lines += ["", *(confusion_lines(finished) if known else [counted_line(finished)])]
    if known:
        lines += [f"* {succeeded(results)} of {len(results)} runs count at least {100 * SUCCESS:.0f}% of held-out "
                  "scenes right."]
    by = " and ".join(sorted({f"{result['device']}, threads a run: {result['threads']}, runs at a time: "
                              f"{result['jobs']}, torch {result['torch']}" for result in results}))
    commits = ", ".join(sorted({result["commit"] for result in results}))
    lines.append(f"* {by}, commit {commits}.")
    return "\n".join(lines)


def knows_counts(results: Sequence[dict[str, Any]]) -> bool:
    """Whether the scenes' counts are known, as far as any run can tell."""
    finished = [figures(result) for result in results if result["metrics"]]
    return not finished or any(SEEN in metrics for metrics in finished)


def succeeded(results: Sequence[dict[str, Any]]) -> int:
    """How many runs count at least SUCCESS of the held-out scenes right."""
    return sum(figures(result).get(SEEN, 0) >= SUCCESS for result in results)


def confusion_lines(finished: Sequence[Mapping[str, Any]]) -> list[str]:
    """All runs' confusion matrices, added up, a line for each true count that occurs; those of unseen counts last."""
    lines = []
    for which, of in (("Scenes", finished), ("Unseen scenes", [metrics["unseen"] for metrics in finished
                                                               if "unseen" in metrics])):
        for truth, rows in enumerate(zip(*(metrics["confusion"] for metrics in of))):
            counted = [sum(column) for column in zip(*rows)]
            if any(counted):
                lines.append(f"* {which} with {truth} objects, by MAP count, all runs: {by_count(counted)}.")
    return lines


def counted_line(finished: Sequence[Mapping[str, Any]]) -> str:
    """All runs' scenes by their MAP count."""
    counted = [sum(column) for column in zip(*(metrics["counted"] for metrics in finished))]
    return f"* Scenes by MAP count, all runs: {by_count(counted)}."


def by_count(scenes: Sequence[int]) -> str:
    """Numbers of scenes with 0, 1, ... objects, in words."""
    return ", ".join(f"{n}: {number}" for n, number in enumerate(scenes))


def overview(results_by_name: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Markdown: a row an experiment, of those whose scenes' counts are known."""
    lines = ["| experiment | success | MAP %, mean | worst | steps to 98%, median | s to 98%, median | "
             f"{' | '.join(OVERVIEW)} |",
             "| --- |" + " --- |" * (5 + len(OVERVIEW))]
    for name, results in results_by_name.items():
        finished = [figures(result) for result in results if result["metrics"]]
        seen = [metrics[SEEN] for metrics in finished] or [0.0]
        cells = [f"{succeeded(results)}/{len(results)}", cell(SEEN, statistics.mean(seen)), cell(SEEN, min(seen))]
        for key in ("steps_to_98", "seconds_to_98"):
            # A run that never got there counts as slower than any other.
            cells.append(cell(key, statistics.median([figures(result).get(key, math.inf) for result in results])))
        cells += [cell(key, statistics.mean([metrics[key] for metrics in finished] or [math.nan]))
                  for key in OVERVIEW.values()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(results_by_name: Mapping[str, Sequence[dict[str, Any]]], keys: Sequence[str]) -> str:
    """Markdown: a row an experiment, the mean of each metric and in brackets its worst; a run that train.py had to stop
    is in the number of runs only.
    """
    lines = ["| experiment | runs | " + " | ".join(COLUMNS[key][0] for key in keys) + " |",
             "| --- |" + " --- |" * (1 + len(keys))]
    for name, results in results_by_name.items():
        cells = []
        for key in keys:
            values = [metrics[key] for result in results if key in (metrics := figures(result))]
            cells.append(f"{cell(key, statistics.mean(values))} ({cell(key, worst(key, values))})" if values else "-")
        lines.append(f"| `{name}` | {len(results)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results_by_name: Mapping[str, Sequence[dict[str, Any]]], file: Path, key: str = SEEN) -> None:
    """Every run's errors, a dot each, an experiment a row; a run that train.py had to stop is a cross at the left.

    Args: key: of the share counted right: SEEN, or "unseen_" and SEEN.
    """
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(results_by_name)), layout="constrained")
    axis = figure.subplots()
    kinds = list(dict.fromkeys(name.split("-")[0] for name in results_by_name))  # air, dair, search: a colour each
    for place, (name, results) in enumerate(results_by_name.items()):
        wrong = [100 - 100 * figures(result)[key] for result in results if result["metrics"]]
        axis.scatter([max(LEAST_WRONG, each) for each in wrong], [place] * len(wrong), s=24, alpha=0.6, linewidths=0,
                     color=f"C{kinds.index(name.split('-')[0])}")
        stopped = len(results) - len(wrong)
        axis.scatter([100] * stopped, [place] * stopped, marker="x", color="black")
    names = [f"{name} ({len(results)})" for name, results in results_by_name.items()]
    axis.set_yticks(range(len(names)), names)
    scenes = "held-out scenes" if key == SEEN else "scenes with counts that training did not show,"
    axis.set(xlabel=f"{scenes} counted wrong, MAP, %", xscale="log", xlim=(110, LEAST_WRONG))
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110)


def brief(results: Sequence[dict[str, Any]]) -> str:
    """MAP accuracy in words, for a sentence; a run that train.py had to stop counts as 0."""
    accuracies = [100 * figures(result).get(SEEN, 0) for result in results]
    return f"{statistics.mean(accuracies):.2f}% (worst {min(accuracies):.2f}%)"


def write_tables() -> str:
    """RESULTS.md: overviews, every run; the README's overview of the first two groups; the tables and plots of DOCS."""
    results_by_name = {name: results for name in EXPERIMENTS if (results := load_results(name))}
    by_group = {title: {name: results_by_name[name] for name in group if name in results_by_name}
                for title, group in GROUPS.items()}
    parts = ["# Results\n\nWritten by `python benchmarks/seeds.py --tables` from the files in `benchmarks/results/`. "
             "The columns are explained in the README."]
    for title, here in by_group.items():
        if here:
            of_group = summary(here, SUMMARIES[title][1]) if title in SUMMARIES else overview(here)
            parts.append(f"\n## {title}\n\n{of_group}")
    for name, results in results_by_name.items():
        parts.append(f"\n### {name}\n\n`python benchmarks/seeds.py {name}`: `python train.py "
                     f"{EXPERIMENTS[name].arguments}`\n\n{table(results)}")
    text = "\n".join(parts) + "\n"
    RESULTS_FILE.write_text(text)
    plotted = {name: results_by_name[name] for name in (*MAIN, *ROBUSTNESS) if name in results_by_name}
    if plotted:
        replace_table(README, "## Results", overview(plotted))
        plot(plotted, DOCS / "runs.png")
    for title, (page, keys) in SUMMARIES.items():
        if by_group[title]:
            replace_table(DOCS / page, f"## {title}", summary(by_group[title], keys))
    unseen = by_group["Counts that training does not show"]
    if unseen:
        plot(unseen, DOCS / "generalisation.png", f"unseen_{SEEN}")
    return text


def replace_table(page: Path, heading: str, new: str) -> None:
    """Put a table in the place of the one that begins with "| experiment |" in a section.

    Raises:
        ValueError: the page has no such section, or that has no such table.
    """
    sections = re.split(r"(?m)^(?=## )", page.read_text())
    for place, section in enumerate(sections):
        if section.startswith(heading + "\n") and "| experiment |" in section:
            sections[place] = re.sub(r"\| experiment \|.*?(?=\n\n)", lambda _: new, section, count=1, flags=re.S)
            page.write_text("".join(sections))
            return
    raise ValueError(f"{page.name} has no table of experiments under {heading!r}")
