"""Which scenes each training step sees, and averages of the metrics over steps."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from air import distributed


class EpochSampler:
    """Batches of scene indices: each epoch is a permutation that follows from the seed and the epoch's number.

    Where scenes are pictures to be cropped, an epoch has each of them several times.

    So the batch of a step is a function of the step, and a resumed run needs no state.
    """

    def __init__(self, scenes: int, batch_size: int, seed: int, device: torch.device, copies: Tensor | None = None
                 ) -> None:
        """Lay out an epoch.

        Args:
            scenes: how many there are, at least a batch.
            batch_size: of all processes together.
            seed, device: of the indices.
            copies: (scenes,), how often an epoch has each scene, or a multiple of that where a batch needs more; None:
                once.
        """
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.places = torch.arange(scenes)  # an epoch before it is permuted
        if copies is not None:
            self.places = self.places.repeat_interleave(copies)
            self.places = self.places.repeat(math.ceil(batch_size / len(self.places)))
        self._epoch, self._order = -1, torch.empty(0)  # the permutation of the current epoch

    def indices(self, step: int) -> Tensor:
        """This process's share of the batch of a step, on the device."""
        epoch, place = divmod(step, len(self.places) // self.batch_size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.places), generator=generator)
            self._epoch, self._order = epoch, self.places[order].to(self.device)
        start = place * self.batch_size
        batch = self._order[start:start + self.batch_size]
        return batch[distributed.rank()::distributed.world_size()]


class RunningMeans:
    """Means of the training metrics since the last reset; sums stay on the device, so that adding does not wait."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums, self._steps = torch.empty(0), 0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add one step's metrics, scalars of the same names each time."""
        if self._steps and self._names != list(metrics):
            warnings.warn("the checkpoint's training metrics are not those of this run: their means start anew",
                          stacklevel=2)
            self._steps = 0
        values = torch.stack(list(metrics.values()))
        self._names, self._sums = list(metrics), self._sums + values if self._steps else values
        self._steps += 1

    def pop(self) -> dict[str, float]:
        """The means over the steps and the processes; starts anew."""
        means = {name: value / self._steps
                 for name, value in zip(self._names, distributed.mean(self._sums).tolist())}
        self._steps = 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, on the CPU."""
        return {"names": self._names, "sums": self._sums.cpu(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from what `state_dict` gave."""
        self._names, self._sums, self._steps = state["names"], state["sums"].to(device), state["steps"]
