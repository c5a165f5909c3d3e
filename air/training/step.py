"""One training step on its device: forward, backward, optimiser; on CUDA replayed as one graph of kernels."""

import ctypes
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from air.distributed import world_size
from air.inference.elbo import Metrics
from air.inference.estimator import Estimator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
WARM_UP = 3  # steps before a graph is captured, in which allocators, libraries and the compiler settle

T = TypeVar("T")
Result = tuple[Tensor, Metrics]  # an objective's loss and metrics


class CompileError(ValueError):
    """torch.compile does not work here; the message says what to do."""


class TrainStep:
    """Takes steps on batches of the images, which stay on the device; owns the optimiser and its learning rates.

    A step is hundreds of small kernels; on CUDA, launching them takes longer than running them. So after a few steps it
    is captured as a CUDA graph and replayed from then on: what changes from step to step (indices, rates, exploration)
    is written into the same memory, the random numbers go on from replay to replay, and nothing waits for the device.
    Several processes run each step uncaptured.
    """

    def __init__(self, objective: Estimator, images: Tensor, lr: float = 1e-3, baseline_lr: float = 1e-2,
                 shift: int = 0, precision: str = "fp32", compiled: bool = False, crop: int = 0,
                 sizes: Tensor | None = None) -> None:
        """Build the optimiser.

        Args:
            objective: on its device.
            images: (M, C, H, W) uint8, on the same device.
            lr, baseline_lr: Adam's learning rates, see `Estimator.parameter_groups`; `__call__` scales them.
            shift: pixels, see `random_shift`.
            precision: "fp32"; "tf32" for the matrix products and convolutions on CUDA; or "bf16" for the layers.
            compiled: whether to torch.compile the objective.
            crop: side in pixels of the random crops that are trained on, see `random_crop`; 0: whole images.
            sizes: (M, 2), heights and widths of the pictures in the images, on the same device; for crops.
        Raises:
            ValueError: tf32 on the CPU.
        """
        self.images, self.device, self.shift, self.bf16 = images, images.device, shift, precision == "bf16"
        self.crop, self.sizes = crop, sizes
        groups = objective.parameter_groups(lr, baseline_lr)
        self.base_lrs = [group["lr"] for group in groups]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        set_arithmetic(self.device, precision == "tf32")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.forward: Callable[[Tensor], Result] = objective
        if world_size() > 1:
            self.forward = DistributedDataParallel(objective)
        if compiled:
            self.forward = torch.compile(self.forward)
        self.indices = torch.empty(0)  # of the batch; where a graph reads them
        self.stream: torch.cuda.Stream | None = None  # of the steps before a graph's capture, and of the capture
        self.capture_steps(self.device.type == "cuda" and world_size() == 1)

    def capture_steps(self, captures: bool) -> None:
        """Choose whether steps are captured as a graph; if so, WARM_UP ordinary steps come first."""
        self.captures = captures
        self.taken = 0
        self.replay: Callable[[], Result] | None = None
        for group in self.optimizer.param_groups:  # a graph reads the learning rates from tensors
            lr = float(group["lr"])
            group["lr"] = torch.tensor(lr, device=self.device) if captures else lr
            group["capturable"] = captures

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the moments of what `state_dict` gave, on this or on another device; the settings are this step's."""
        self.optimizer.load_state_dict({**state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.capture_steps(self.captures)  # a graph captured before reads the old state

    def __call__(self, indices: Tensor, lr_scale: float = 1.0) -> Result:
        """Take a step on the images at these indices.

        Args:
            indices: (B,), on the device.
            lr_scale: multiplies the learning rates.
        Returns:
            The objective's loss and metrics, on the device; a graph writes the next step's into the same memory.
        """
        self._set_lrs(lr_scale)
        self.taken += 1
        if not self.captures:
            self.indices = indices
            return self._take()
        if self.stream is None:
            self.stream = torch.cuda.Stream(self.device)
        if self.taken == 1:
            self.indices = indices.clone()
        self.indices.copy_(indices)
        if self.taken <= WARM_UP:
            return on_stream(self.stream, self._take)
        if self.replay is None:
            self.replay = capture(self.stream, self._take)
        return self.replay()

    def _take(self) -> Result:
        # Each weight is cast once: the cache of casts is emptied at the end of this context. A graph holds the whole
        # context, so it begins with an empty cache and casts the changed weights at each replay.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss, metrics = self.forward(self._batch())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), metrics

    def _batch(self) -> Tensor:
        if self.crop:
            assert self.sizes is not None
            return random_crop(self.images, self.sizes, self.indices, self.crop)
        return random_shift(self.images[self.indices], self.shift)

    def _set_lrs(self, scale: float) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            if self.captures:
                group["lr"].fill_(base * scale)
            else:
                group["lr"] = base * scale


def check_compiler() -> None:
    """Raises CompileError: torch finds no C++ compiler, which `--compile` needs on the CPU."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler  # private; where it is missing, the first step tells
    except ImportError:
        return
    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise as_compile_error(error) or error from None


def as_compile_error(error: RuntimeError) -> CompileError | None:
    """What a failure of torch.compile means in words; None for other errors."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    if "InvalidCxxCompiler" in f"{type(error).__name__}: {error}":
        return CompileError("--compile needs a C++ compiler, and torch finds none: install one, or leave out --compile")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return CompileError(f"--compile: torch.compile fails ({reason}): leave out --compile")


def keep_freed_memory() -> None:
    """Let the process keep memory that it frees: glibc returns large blocks to the system, and a step that allocates
    them again faults on every page. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        most = 2**31 - 1  # bytes, a C int
        mallopt(M_MMAP_THRESHOLD, most)
        mallopt(M_TRIM_THRESHOLD, most)


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Shift each image, (B, C, H, W), by an independent draw from -pixels..pixels along x and y; black moves in."""
    if not pixels:
        return images
    corner = torch.randint(2 * pixels + 1, (2, len(images), 1), device=images.device)
    rows, columns = corner + torch.arange(images.shape[-1], device=images.device)  # (B, H) each
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return F.pad(images, [pixels] * 4)[image, :, rows[:, :, None], columns[:, None]].movedim(-1, 1)


def random_crop(images: Tensor, sizes: Tensor, indices: Tensor, side: int) -> Tensor:
    """Cut a square out of each chosen picture, at a place that is uniform over all where it lies inside the picture.

    Args:
        images: (M, C, H, W); nothing but the crops is copied.
        sizes: (M, 2) int64, heights and widths of the pictures, which lie in the upper left corners of the images; at
            least `side`.
        indices: (B,), of the pictures.
        side: of the crops, in pixels.
    Returns:
        (B, C, side, side).
    """
    room = sizes[indices] - side + 1  # (B, 2)
    corner = (torch.rand(room.shape, dtype=torch.float64, device=room.device) * room).long()
    rows, columns = (corner[..., None] + torch.arange(side, device=room.device)).unbind(1)  # (B, side) each
    return images[indices[:, None, None], :, rows[:, :, None], columns[:, None]].movedim(-1, 1)


def set_arithmetic(device: torch.device, tf32: bool) -> None:
    """Set how matrix products and convolutions are computed on CUDA.

    Convolutions add up in the same order each time, so that a run can be repeated. torch's defaults for float32 differ:
    products in float32, cuDNN's convolutions in TensorFloat-32; here both are alike.

    Args:
        device: of the run.
        tf32: round the inputs of float32 products and convolutions to TensorFloat-32.
    Raises:
        ValueError: tf32 on the CPU.
    """
    if device.type != "cuda":
        if tf32:
            raise ValueError("--precision tf32 needs a CUDA device: use fp32 or bf16 on the CPU")
        return
    with warnings.catch_warnings():
        # torch 2.9 announces the end of these two settings. torch 2.4 has no others, and newer ones must not be mixed
        # with them.
        warnings.filterwarnings("ignore", "Please use the new API settings")
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = True


def on_stream(stream: torch.cuda.Stream, run: Callable[[], T]) -> T:
    """Run on this stream, as CUDA graphs require of the steps before their capture, in order with the current one."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = run()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def capture(stream: torch.cuda.Stream, run: Callable[[], T]) -> Callable[[], T]:
    """Record the kernels that `run` launches, without running them; the function returned launches them all at once.

    On the stream of the steps before, the libraries have their workspaces, and gradients are accumulated where they
    were before.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = run()

    def replay() -> T:
        graph.replay()
        return result
    return replay
