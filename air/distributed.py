"""One run in several processes, started by `torchrun`: ranks, and the few collectives that a run needs.

All processes must call `gather`, `mean`, `any_of` and `rank_zero_first`. Without torchrun they act on this process
alone.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """This process's rank, 0 to world_size() - 1; rank 0 writes the run's files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def setup(device: str) -> torch.device:
    """Join the process group if torchrun started this process, and choose its device.

    Args:
        device: "cpu", "cuda", or "auto": cuda where torch sees a device. Each process gets a CUDA device of its own.
    Returns:
        This process's device.
    Raises:
        ValueError: torch sees no CUDA device, or this machine has fewer of them than processes.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device; use --device cpu, or auto")
    if not dist.is_torchelastic_launched():
        return torch.device(device)
    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(f"process {local} of this machine has no CUDA device of its own: there are "
                             f"{torch.cuda.device_count()}; start fewer processes, or use --device cpu")
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        # Where NCCL fails or times out, torch would abort the process. With 2 it ends the collectives that wait, and
        # the next one raises an error, which `is_peer_failure` recognises.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
        # gloo beside nccl: only gradients and means of what is on the device are exchanged there.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    return torch.device("cuda", local) if device == "cuda" else torch.device(device)


def cleanup() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather(value: T) -> list[T]:
    """Every process's value, by rank: plain containers, numbers, strings, tensors on the CPU."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def mean(value: Tensor) -> Tensor:
    """The average over the processes, on the value's device."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if world_size() > 1:
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)
    return flag


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether this error means that another process has died."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)  # gloo's own errors have no type


def rank_zero_first(build: Callable[[], T]) -> T:
    """Call `build` in rank 0 before the others, which then find what it downloaded or cached; only rank 0 warns."""
    if world_size() == 1:
        return build()
    if rank() == 0:
        try:
            return build()
        finally:
            any_of(False)  # a barrier that never waits in NCCL, which gives up after ten minutes
    any_of(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()
