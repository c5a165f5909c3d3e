import re
import statistics
from pathlib import Path

import pytest

from experiments import report
from experiments.catalogue import EXPERIMENTS
from experiments.records import MAP, flat_metrics, load_results
from experiments.report import ReportError, Section, fill

ROOT = Path(__file__).parent.parent
PAGES = (report.README, report.RESULTS_PAGE, *sorted(report.DOCS.glob("*.md")))


@pytest.fixture
def copies(monkeypatch, tmp_path):
    """Copies of the pages, which the report writes to: path -> the original's text."""
    (tmp_path / "docs").mkdir()
    texts = {tmp_path / page.relative_to(ROOT).name if page.parent != report.DOCS else tmp_path / "docs" / page.name:
             page.read_text() for page in PAGES}
    for page, text in texts.items():
        page.write_text(text)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(report, "RESULTS_PAGE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(report, "DOCS", tmp_path / "docs")
    return texts


def test_the_pages_show_the_results(copies, capsys):
    """Emptied sections are filled with what is committed, and nothing else changes."""
    for page, text in copies.items():
        page.write_text(re.sub(r"(<!-- begin: (.*?) -->\n).*?(?=<!-- end: \2 -->)", r"\1", text, flags=re.S))
    report.main([])
    assert {page: page.read_text() for page in copies} == copies
    written = capsys.readouterr().out.split()
    assert all(str(report.DOCS / plot) in written for plot in ("runs.png", "generalisation.png"))
    assert (report.DOCS / "runs.png").stat().st_size > 1000


def test_a_page_without_markers_is_named_and_nothing_is_written(copies):
    report.README.write_text("no table")
    next(iter(report.DOCS.glob("scenes.md"))).write_text("gone")
    before = {page: page.read_text() for page in copies}
    with pytest.raises(SystemExit) as ended:
        report.main([])
    assert "README.md needs the markers <!-- begin: results --> and <!-- end: results -->" in str(ended.value)
    assert {page: page.read_text() for page in copies} == before


def test_a_section_is_replaced_between_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# T\n\n<!-- begin: a -->\nold\n<!-- end: a -->\n\ntext\n<!-- begin: b -->\n<!-- end: b -->\n")
    assert fill([Section(page, "b", "two"), Section(page, "a", "one")]) == {
        page: "# T\n\n<!-- begin: a -->\none\n<!-- end: a -->\n\ntext\n<!-- begin: b -->\ntwo\n<!-- end: b -->\n"}


@pytest.mark.parametrize("text", ["", "<!-- begin: a -->", "<!-- end: a -->\n<!-- begin: a -->",
                                  "<!-- begin: a --><!-- end: a --><!-- begin: a --><!-- end: a -->"])
def test_markers_must_occur_once_and_in_order(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ReportError, match=r"page.md needs the markers <!-- begin: a --> and <!-- end: a --> once"):
        fill([Section(page, "a", "new")])


def brief(results):
    """MAP accuracy as pages quote it, such as "99.54% (worst 99.42%)"; aborted runs count as 0."""
    accuracies = [100 * flat_metrics(result).get(MAP, 0) for result in results]
    return f"{statistics.mean(accuracies):.2f}% (worst {min(accuracies):.2f}%)"


def test_figures_quoted_in_text_are_those_of_the_results():
    """Wherever a page says `NAME`: 99.54% (worst 99.42%)."""
    pattern = r"`([\w.-]+)`:\s([\d.]+%\s\(worst\s[\d.]+%\))"
    quoted = [(page, *match) for page in PAGES for match in re.findall(pattern, page.read_text())]
    assert len(quoted) >= 20
    for page, name, figures in quoted:
        assert name in EXPERIMENTS and " ".join(figures.split()) == brief(load_results(name)), (page, name)


def test_every_experiment_with_results_has_a_table_of_its_runs():
    text = report.RESULTS_PAGE.read_text()
    for name in EXPERIMENTS:
        assert (f"\n### {name}\n" in text) == bool(load_results(name))


def test_a_study_without_results_is_not_run_yet(monkeypatch):
    """Its table and plot appear with its first result."""
    def sections():
        return {section.name: section.content for section in report.study_sections()}

    crowd = {"kind": "1-5", "seed": 0, "records": [{"n": 1, "accuracy": 1.0, "count_error": 0.0}]}
    large = {"seed": 0, "threads": 1, "records": [{"true": 9, "found": 9, "error": 0.0, "ap50": 1.0, "seconds": 1.0}]}
    for study, results in ((report.crowds, [crowd]), (report.mosaics, [large])):
        name = study.__name__.rpartition(".")[2]
        monkeypatch.setattr(study, "load_records", list)
        assert sections()[name] == "Not run yet."
        monkeypatch.setattr(study, "load_records", lambda results=results: results)
        assert sections()[name].startswith("| ") and ("(crowds.png)" in sections()[name]) == (name == "crowds")
