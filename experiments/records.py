"""The result files of runs: one JSON file a seed in results/NAME/, written by `experiments.run`.

Files from before air/config.py existed hold the command line and the configuration of their time. Reports read
neither: the metrics, the machine and the commit have kept their names.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]
Metrics = dict[str, Any]

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
MAP, REFINED = "count_accuracy_map", "count_accuracy_refined"
MILESTONES = (90, 95, 98)  # % of held-out scenes counted right, MAP, by an evaluation during training
SUCCESS = 0.95  # MAP count accuracy on held-out scenes
SEVERAL_ARI = "fg_ari_several"
# reported for unseen counts as well
UNSEEN = (MAP, REFINED, "box_iou", "identity_accuracy", "place_error", SEVERAL_ARI)
MOST_ERRORS = 5  # reconstruction errors after n = 0, 1, ... objects


def load_results(name: str) -> list[Result]:
    """All results of an experiment, sorted by seed; empty if it has never been run."""
    results = [json.loads(file.read_text()) for file in (RESULTS / name).glob("seed*.json")]
    return sorted(results, key=lambda result: result["seed"])


def flat_metrics(result: Result) -> Metrics:
    """The final metrics of a run, flattened: `squared_error_n`, `wrong_KIND`, and `unseen_X` for X on unseen counts.

    Empty for a run that train.py aborted.
    """
    metrics = result["metrics"] or {}
    unseen = metrics.get("unseen", {})
    errors = {f"squared_error_{n}": error for n, error in enumerate(metrics.get("squared_error", ())[:MOST_ERRORS])}
    wrong = {f"wrong_{kind}": share for kind, share in metrics.get("wrong", {}).items()}
    return {**metrics, **errors, **wrong, **{f"unseen_{key}": unseen[key] for key in UNSEEN if key in unseen}}


def finished(results: Sequence[Result]) -> list[Metrics]:
    """The metrics of the runs that train.py did not abort."""
    return [flat_metrics(result) for result in results if result["metrics"]]


def knows_counts(results: Sequence[Result]) -> bool:
    """Whether the data set has true counts; assumed if no run finished."""
    done = finished(results)
    return not done or any(MAP in metrics for metrics in done)


def succeeded(results: Sequence[Result]) -> int:
    """The number of runs that count at least SUCCESS of the held-out scenes right; aborted runs have failed."""
    return sum(flat_metrics(result).get(MAP, 0) >= SUCCESS for result in results)
