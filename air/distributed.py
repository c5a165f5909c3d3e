"""One run in several processes, as `torchrun` starts them: who this one is, and what they tell one another.

`gather`, `mean`, `any_of` and `first_alone` are for all processes to call. In a process that stands alone, what they
tell is its own.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Which process this is, 0 to size() - 1; 0 writes what the run leaves behind."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join(device: str) -> torch.device:
    """Take one's place among the processes that torchrun started, if it did.

    Args:
        device: "cpu" or "cuda"; each process of a machine has a CUDA device of its own.
    Returns:
        the device of this process.
    Raises:
        ValueError: there are fewer CUDA devices than processes on this machine.
    """
    if not dist.is_torchelastic_launched():
        return torch.device(device)
    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(f"process {local} of this machine has no CUDA device of its own: there are "
                             f"{torch.cuda.device_count()}; start fewer, or use --device cpu")
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        # gloo beside nccl: what processes tell one another besides gradients lies on the CPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    return torch.device("cuda", local) if device == "cuda" else torch.device(device)


def leave() -> None:
    """Take leave of the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather(value: T) -> list[T]:
    """What each process has, by rank: plain containers, numbers, strings, tensors on the CPU."""
    values: list[Any] = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def mean(value: Tensor) -> Tensor:
    """The average over the processes, on the value's device."""
    if size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= size()
    return value


def any_of(flag: bool) -> bool:
    """Whether the flag is up in one of the processes."""
    if size() > 1:
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)
    return flag


def is_lost(error: RuntimeError) -> bool:
    """Whether this is what is raised where another process has died."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)  # gloo's own errors have no type


def first_alone(build: Callable[[], T]) -> T:
    """What `build` gives, in process 0 before the others: what it leaves in a cache or downloads serves them all."""
    if size() == 1:
        return build()
    if rank() == 0:
        try:
            return build()
        finally:
            dist.barrier()
    dist.barrier()
    return build()
