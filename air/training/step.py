"""One training step on its device: forward, backward, optimiser; on CUDA replayed as one graph of kernels."""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from air.distributed import size
from air.inference.elbo import Metrics
from air.inference.estimators import Estimator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
WARM_UP = 3  # steps before a graph is captured, in which allocators, libraries and the compiler settle

Result = tuple[Tensor, Metrics]  # an objective's loss and metrics


class Stepper:
    """Takes steps on batches of the images, which lie on the device as they are.

    On CUDA a step is hundreds of small kernels, whose launches would take longer than they do. So after a few steps the
    whole of one is captured as a CUDA graph, and replayed from then on: what it reads (indices, rates, exploration) is
    written into the same places, its random numbers go on from replay to replay, and nothing in it waits for the
    device. Several processes take each step as it is written.
    """

    def __init__(self, objective: Estimator, groups: list[dict[str, Any]], images: Tensor, shift: int = 0,
                 precision: str = "fp32", compiled: bool = False) -> None:
        """Args:
            objective: on its device.
            groups: for Adam, as of `Estimator.parameter_groups`.
            images: (M, C, H, W) uint8, on the same device.
            shift: pixels, see `shifted`.
            precision: "fp32"; "tf32" for the matrix products on CUDA; or "bf16" for the layers.
            compiled: whether to torch.compile the objective.
        Raises:
            ValueError: tf32 was asked for where there is none.
        """
        self.images, self.device, self.shift, self.bf16 = images, images.device, shift, precision == "bf16"
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.captures = self.device.type == "cuda" and size() == 1
        self.settle()
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        elif precision == "tf32":
            raise ValueError("precision tf32 is for CUDA devices: take fp32 or bf16 on the CPU")
        else:
            keep_pages()
        self.forward: Callable[[Tensor], Result] = objective
        if size() > 1:
            self.forward = DistributedDataParallel(objective)
        if compiled:
            self.forward = torch.compile(self.forward)
        self.taken = 0
        self.indices = torch.empty(0)  # of the batch; the place where a graph reads them
        self.replay: Callable[[], Result] | None = None

    def settle(self) -> None:
        """To be called when the optimiser's state has been loaded: its rates have to lie where a graph reads them."""
        for group in self.optimizer.param_groups:
            rate = float(group["lr"])
            group["lr"] = torch.tensor(rate, device=self.device) if self.captures else rate
            group["capturable"] = self.captures

    def set_rates(self, share: float) -> None:
        """Every group's rate: this share of its `initial_lr`."""
        for group in self.optimizer.param_groups:
            rate = group["initial_lr"] * share
            if self.captures:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def __call__(self, indices: Tensor) -> Result:
        """Take a step on the images at these indices, (B,) on the device.

        Returns:
            the objective's loss and metrics, on the device; a graph writes the next ones into the same places.
        """
        self.taken += 1
        if not self.captures:
            self.indices = indices
            return self._take()
        if self.taken == 1:
            self.indices = indices.clone()
        self.indices.copy_(indices)
        if self.taken <= WARM_UP:
            return aside(self._take)
        if self.replay is None:
            self.replay = capture(self._take)
        return self.replay()

    def _take(self) -> Result:
        # A graph must not remember a cast of weights that it changes.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=not self.captures):
            loss, metrics = self.forward(shifted(self.images[self.indices], self.shift))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), metrics


def keep_pages() -> None:
    """Let the process keep the memory that it frees: glibc gives large blocks back to the system, and a step that takes
    them anew waits for every page. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        most = 2**31 - 1  # bytes, a C int
        mallopt(M_MMAP_THRESHOLD, most)
        mallopt(M_TRIM_THRESHOLD, most)


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image, (B, C, H, W), moved by up to `most` pixels along x and along y, drawn anew; black moves in."""
    if not most:
        return images
    corner = torch.randint(2 * most + 1, (2, len(images), 1), device=images.device)
    rows, columns = corner + torch.arange(images.shape[-1], device=images.device)  # (B, H) each
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return F.pad(images, [most] * 4)[image, :, rows[:, :, None], columns[:, None]].movedim(-1, 1)


def aside(run: Callable[[], Result]) -> Result:
    """Run on a stream of its own, as what is to be captured has to be beforehand."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = run()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def capture(run: Callable[[], Result]) -> Callable[[], Result]:
    """The kernels that `run` would launch, none of which has run yet, as a function that launches them all at once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Result:
        graph.replay()
        return result
    return replay
