"""What the processes of one training tell each other; in a job of one process, nothing.

Every rank must call each of these, in the same order.
"""

import atexit
import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prefdag.distributed.ranks import num_ranks

T = TypeVar("T")


def join() -> None:
    """Meet the other ranks, once. On a GPU each rank has the one of its place on its node."""
    if num_ranks() == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(dist.destroy_process_group)


def all_gather_objects(value: T) -> list[T]:
    """Every rank's value, in the ranks' order. For small things: they are pickled."""
    if num_ranks() == 1:
        return [value]
    found: list[T | None] = [None] * num_ranks()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def gather_concat(values: Tensor) -> Tensor:
    """Every rank's values [n], however many, one after the other in the ranks' order; without gradient."""
    if num_ranks() == 1:
        return values
    sizes = all_gather_objects(len(values))
    padded = torch.cat([values, values.new_zeros(max(sizes) - len(values))])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def all_reduce_sum(tensor: Tensor) -> None:
    """Replace the tensor by the sum of every rank's: the same bits on all of them."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)
