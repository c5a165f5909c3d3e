#!/usr/bin/env python
"""Write the tables and plots of all results into RESULTS.md, the README and docs/.

    python -m experiments.report

Reads the result files of `experiments.run` and of the studies; trains and measures nothing. A table replaces what
stands between <!-- begin: NAME --> and <!-- end: NAME --> in its page; the text around them is left alone. No page is
written unless all of them have the markers.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from air.files import atomic_write
from experiments.catalogue import EXPERIMENTS, GROUPS
from experiments.plots import plot_errors
from experiments.records import MAP, REFINED, ROOT, SEVERAL_ARI, load_results
from experiments.studies import codes, crowds, gradient_variance, mosaics, representations, single_object
from experiments.tables import (
    ERRORS,
    SHAPES,
    SHORT_OVERVIEW,
    UNSEEN_COLUMNS,
    WRONG,
    ResultsByName,
    overview,
    runs_table,
    summary,
)

README, DOCS, RESULTS_PAGE = ROOT / "README.md", ROOT / "docs", Path(__file__).parent / "RESULTS.md"
README_ROWS = ("strict-enumerate", "search-strict", "sprites-enumerate", "loose-enumerate", "five-digits",
               "search-five-digits", "noise")
# Groups with a table of their own in docs/: the page and the metrics, each as mean and worst.
SUMMARIES = {"unseen-counts": ("experiments.md", (MAP, "box_iou", *list(UNSEEN_COLUMNS)[:3])),
             "any-size": ("experiments.md", (MAP, "count_error", "box_iou", "box_ap50", *WRONG)),
             "backdrops": ("experiments.md", (MAP, REFINED, "box_iou", "box_ap50")),
             "layers": ("layers.md", (SEVERAL_ARI, MAP, "mask_iou", "box_ap50", f"unseen_{MAP}",
                                      f"unseen_{SEVERAL_ARI}")),
             "omniglot": ("experiments.md", ("elbo", "iw_bound", "mean_count", *ERRORS)),
             "one-object-3d": ("scenes.md", (MAP, *SHAPES, "box_iou")),
             "several-objects-3d": ("scenes.md", (MAP, *SHAPES, "box_iou")),
             "unseen-counts-3d": ("scenes.md", (MAP, f"unseen_{MAP}", "unseen_identity_accuracy",
                                                "unseen_place_error"))}

NOT_RUN = "Not run yet."  # in place of the table of a study without results
CROWDS_PLOT = "![Share of test scenes counted right over the number of digits, a line per training set](crowds.png)"


class ReportError(Exception):
    """A page lacks the markers of a section; the message says which."""


class Section(NamedTuple):
    """What belongs between a pair of markers."""

    page: Path
    name: str
    content: str


def build_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def main(argv: Sequence[str] | None = None) -> None:
    """Write all pages and plots, and print their paths."""
    build_parser().parse_args(argv)
    results_by_name = {name: results for name in EXPERIMENTS if (results := load_results(name))}
    try:
        pages = fill([*experiment_sections(results_by_name), *study_sections()])
    except ReportError as error:
        sys.exit(f"experiments.report: {error}")
    for page, text in pages.items():
        with atomic_write(page) as file:
            file.write(text.encode())
    for path in (*pages, *write_plots(results_by_name)):
        print(path)


def experiment_sections(results_by_name: ResultsByName) -> Iterator[Section]:
    """The tables of experiments. A group without results has no section: its page stays as it is."""
    by_group = {key: {name: results_by_name[name] for name in group.experiments if name in results_by_name}
                for key, group in GROUPS.items()}
    tables = {key: summary(here, SUMMARIES[key][1]) if key in SUMMARIES else overview(here)
              for key, here in by_group.items() if here}
    yield Section(RESULTS_PAGE, "experiments",
                  "\n\n".join(f"## {GROUPS[key].title}\n\n{table}" for key, table in tables.items()))
    yield Section(RESULTS_PAGE, "runs", "\n\n".join(
        f"### {name}\n\n`python -m experiments.run {name}`: `python train.py {EXPERIMENTS[name].arguments}`\n\n"
        f"{runs_table(results)}" for name, results in results_by_name.items()))
    yield Section(README, "results", overview({name: results_by_name[name] for name in README_ROWS
                                               if name in results_by_name}, SHORT_OVERVIEW))
    for key, (page, _) in SUMMARIES.items():
        if key in tables:
            yield Section(DOCS / page, key, tables[key])


def study_sections() -> Iterator[Section]:
    """The tables of studies, from their latest results."""
    crowded, large = crowds.load_records(), mosaics.load_records()
    yield Section(DOCS / "experiments.md", "crowds",
                  f"{crowds.table(crowded)}\n\n{CROWDS_PLOT}" if crowded else NOT_RUN)
    yield Section(DOCS / "experiments.md", "mosaics", mosaics.table(large) if large else NOT_RUN)
    yield Section(DOCS / "experiments.md", "representations", representations.table(representations.load_records()))
    for dataset in codes.PROPERTIES:
        yield Section(DOCS / "experiments.md", f"codes-{dataset}", codes.table(codes.load_report(dataset)))
    yield Section(DOCS / "scenes.md", "single-object", single_object.table(single_object.load_records()))
    moments = gradient_variance.load_moments()
    middle = list(moments)[len(moments) // 2]
    yield Section(DOCS / "recipe.md", "gradient-variance", gradient_variance.table({middle: moments[middle]}))


def fill(sections: Sequence[Section]) -> dict[Path, str]:
    """The text of each page with all of its sections in place.

    Raises:
        ReportError: a page does not have the section's two markers, once each and in this order.
    """
    pages: dict[Path, str] = {}
    for page, name, content in sections:
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        text = pages.get(page, page.read_text())
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end) or text.count(begin) + text.count(end) > 2:
            raise ReportError(f"{page.name} needs the markers {begin} and {end} once each, in this order, around the "
                              f"place of its table {name!r}; nothing was written")
        pages[page] = f"{before}{begin}\n{content}\n{end}{after}"
    return pages


def write_plots(results_by_name: ResultsByName) -> list[Path]:
    """Draw every run of the recipe and of the generalisation experiments; gives the files written."""
    plots = []
    for file, groups, key in ((DOCS / "runs.png", ("recipe", "robustness"), MAP),
                              (DOCS / "generalisation.png", ("unseen-counts",), f"unseen_{MAP}")):
        chosen = {name: results_by_name[name] for group in groups for name in GROUPS[group].experiments
                  if name in results_by_name}
        if chosen:
            plot_errors(chosen, file, key)
            plots.append(file)
    return plots


if __name__ == "__main__":
    main()
