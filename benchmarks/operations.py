"""Count the operations that one training step dispatches: exact, without a clock.

    python -m benchmarks.operations                     # every estimator and guide, with the largest groups
    python -m benchmarks.operations --check             # exit with code 1 if a count exceeds its recorded number
    python -m benchmarks.operations --record            # record today's numbers

Counted are the operations of forward, backward and optimiser that compute or copy something; views and allocations are
left out. On a GPU each is at least one kernel to launch, on a CPU each costs a few microseconds whatever its size.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from air.config import default_config, with_settings
from air.data import Dataset, load_dataset
from air.recipe import resolve
from air.training.trainer import Trainer
from benchmarks.bench_step import synthetic_scenes

RECORDED = Path(__file__).parent / "results" / "operations.json"
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh",
               "_unsafe_view", "_record_function_enter_new", "_record_function_exit"}  # the last two mark a profile
GROUPS = 8  # of the same operation, the largest ones printed

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> data set, estimator, settings
    "enumerate": ("multi-mnist", "enumerate", {}),
    "nvil": ("multi-mnist", "nvil", {}),
    "vimco": ("multi-mnist", "vimco", {}),
    "difference": ("multi-mnist", "enumerate", {"model.guide": "difference"}),
    "search": ("multi-mnist", "enumerate", {"model.guide": "search"}),
    "background": ("multi-mnist", "enumerate", {"model.background": True}),
    "scenes-single": ("scenes-single", "enumerate", {}),
    "scenes-table": ("scenes-table", "enumerate", {}),
}


class OperationLog(TorchDispatchMode):
    """Counts the operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        is_view = bool(returns) and all(each.alias_info is not None and not each.alias_info.is_write
                                        for each in returns)
        name = func.overloadpacket.__name__
        if not is_view and name not in ALLOCATIONS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def make_trainer(case: str, device: str = "cpu") -> Trainer:
    """The trainer of a case, on synthetic scenes; it writes no files before its run() is called."""
    name, estimator, changes = CASES[case]
    config = with_settings(default_config(name, estimator), {"run.device": device, **changes})
    if name == "multi-mnist":
        scenes = synthetic_scenes(4 * config.optim.batch_size)
        dataset = Dataset("synthetic", scenes, scenes)
    else:
        config = with_settings(config, {"data.train_scenes": 256, "data.held_out_scenes": 8})
        dataset = load_dataset(config.data)
    return Trainer(resolve(config, dataset), dataset, Path())


def count(case: str) -> Counter[str]:
    """The operations of a training step, by name, after two steps in which optimiser and caches settle."""
    trainer = make_trainer(case)
    for _ in range(2):
        trainer.train_step()
    with OperationLog() as log:
        trainer.train_step()
    return log.counts


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--check", action="store_true", help="compare with the recorded numbers")
    parser.add_argument("--record", action="store_true", help="record the numbers")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Count, print, and compare or record."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if unknown := set(args.cases) - CASES.keys():
        parser.error(f"no case named {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    counts = {case: count(case) for case in args.cases or CASES}
    for case, groups in counts.items():
        largest = ", ".join(f"{name} {number}" for name, number in groups.most_common(GROUPS))
        print(f"{case:16}{groups.total():6}   {largest}")
    totals = {case: groups.total() for case, groups in counts.items()}
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if args.record:
        RECORDED.write_text(json.dumps({**recorded, **totals}, indent=2) + "\n")
    if args.check:
        grown = {case: (recorded.get(case, 0), total) for case, total in totals.items()
                 if total > recorded.get(case, 0)}
        if grown:
            sys.exit("benchmarks.operations: " + ", ".join(f"{case} grew from {before} to {now} operations"
                                                           for case, (before, now) in grown.items()))


if __name__ == "__main__":
    main()
