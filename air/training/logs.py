"""What a run reports while it trains: a progress bar or plain lines, metrics.jsonl, TensorBoard."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from air.files import atomic_write


class RunLogger:
    """Writes into a run's folder, and to the terminal."""

    def __init__(self, out: Path, start: int, steps: int) -> None:
        """Args: start: the step that a resumed run continues from; later entries are removed. steps: the last step."""
        self.metrics_file = out / "metrics.jsonl"
        with atomic_write(self.metrics_file) as file:
            file.writelines(line.encode() for line in self._lines_up_to(start))
        self.writer = SummaryWriter(str(out), purge_step=start + 1 if start else None)
        self.start, self.steps, self.began, self.described = start, steps, time.monotonic(), 0.0
        self.bar = tqdm(total=steps, initial=start, unit="step", disable=not sys.stderr.isatty(), smoothing=0.05)

    def _lines_up_to(self, step: int) -> list[str]:
        """What an earlier process logged up to a step; its last line may be truncated if it was killed."""
        if not self.metrics_file.exists():
            return []
        whole = [line for line in self.metrics_file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in whole if json.loads(line)["step"] <= step]

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
        inferred = torch.tensor(held_out["counted"])
        self.writer.add_histogram("held_out/count", torch.arange(len(inferred)).repeat_interleave(inferred), step,
                                  bins=[n - 0.5 for n in range(len(inferred) + 1)])
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


class NoOpLogger:
    """For processes other than rank 0: writes nothing."""

    def step(self, elbo: Tensor) -> None:
        """Does nothing."""

    def evaluation(self, *what: Any) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""
