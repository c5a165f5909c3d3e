"""What a run reports while it trains: a progress bar or plain lines, metrics.jsonl, TensorBoard."""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from air.files import CheckpointError, atomic_write

METRICS_FILE = "metrics.jsonl"


class RunLogger:
    """Writes into a run's folder, and to the terminal."""

    def __init__(self, out: Path, logged: Sequence[bytes], start: int, steps: int) -> None:
        """Open the files.

        Args:
            out: the run's folder.
            logged: lines of metrics.jsonl that stay, from `entries_before`.
            start: the step that a resumed run continues from; later entries are removed.
            steps: the last step.
        """
        self.metrics_file = out / METRICS_FILE
        with atomic_write(self.metrics_file) as file:
            file.writelines(logged)
        purged = start + (start < steps) if start else None  # a final evaluation is made again
        self.writer = SummaryWriter(str(out), purge_step=purged)
        self.start, self.steps, self.began, self.described = start, steps, time.monotonic(), 0.0
        self.bar = tqdm(total=steps, initial=start, unit="step", disable=not sys.stderr.isatty(), smoothing=0.05)

    def step(self, elbo: Tensor) -> None:
        """Report one training step."""
        if not self.bar.disable:
            self.bar.update()
            if time.monotonic() - self.described > 1:  # rarely: reading the ELBO waits for a GPU
                self.described = time.monotonic()
                self.bar.set_description(f"elbo {elbo.item():.1f}", refresh=False)

    def evaluation(self, step: int, seconds: float, train: Mapping[str, float], held_out: Mapping[str, Any],
                   pictures: Mapping[str, Tensor]) -> None:
        """Log an evaluation: a line of metrics.jsonl, TensorBoard, and a line or the bar's postfix in the terminal."""
        with self.metrics_file.open("a") as file:
            line = {"step": step, "seconds": seconds, "train": dict(train), "held_out": dict(held_out)}
            file.write(json.dumps(line) + "\n")
        for group, metrics in (("train", train), ("held_out", held_out)):
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(f"{group}/{name}", value, step)
        self._histogram("held_out/count", held_out["counted"], step)
        self._histogram("sizes", held_out["size_histogram"], step)
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, step)
        self.writer.flush()
        counts = f"mean count {held_out['mean_count']:.2f}"  # the true counts may be unknown
        if "count_accuracy_map" in held_out:
            counts = f"counts right {100 * held_out['count_accuracy_map']:.2f}%"
        if self.bar.disable:
            pace = (time.monotonic() - self.began) / max(1, step - self.start)
            print(f"step {step}/{self.steps}  elbo {held_out['elbo']:.1f}  {counts}  "
                  f"{(self.steps - step) * pace:.0f} s left", flush=True)
        else:
            self.bar.set_postfix_str(f"held out: {counts}")

    def close(self) -> None:
        """Close the progress bar and the events file."""
        self.bar.close()
        self.writer.close()

    def _histogram(self, tag: str, numbers: Sequence[int], step: int) -> None:
        """Write how often the values 0, 1, 2, ... occur to TensorBoard, which has no empty histograms."""
        if any(numbers):
            values = torch.arange(len(numbers)).repeat_interleave(torch.tensor(numbers))
            self.writer.add_histogram(tag, values, step, bins=[value - 0.5 for value in range(len(numbers) + 1)])


class NoOpLogger:
    """For processes other than rank 0: writes nothing."""

    def step(self, elbo: Tensor) -> None:
        """Does nothing."""

    def evaluation(self, *what: Any) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def entries_before(out: Path, step: int) -> list[bytes]:
    """The lines of a run's metrics.jsonl of steps before this one; a last line that a kill cut short does not count.

    Raises:
        CheckpointError: a line is not an entry.
    """
    path, entries = out / METRICS_FILE, []
    if not path.exists():
        return []
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            logged = json.loads(line)["step"]
            if not isinstance(logged, int):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise CheckpointError(f"{path}, line {number}: expected a JSON object with a step; remove the line, or the "
                                  "file") from None
        if logged < step:
            entries.append(line + b"\n")
    return entries


@contextmanager
def quiet_events_writer() -> Iterator[None]:
    """Keep TensorBoard's writer, a thread, from printing a traceback where the disk is full: the run says so."""
    previous = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard.")):
            previous(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous
