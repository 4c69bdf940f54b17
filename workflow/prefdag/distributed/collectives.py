"""Collectives of the ranks of one training; without other ranks they return their argument.

Every rank must call each of these, in the same order: otherwise all of them wait for ever.
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
    """Join the process group, once. Each rank uses the GPU of its local rank."""
    if num_ranks() == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(dist.destroy_process_group)


def all_gather_objects(value: T) -> list[T]:
    """Return every rank's value, in rank order. Values are pickled, so keep them small."""
    if num_ranks() == 1:
        return [value]
    values: list[T | None] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def gather_concat(values: Tensor) -> Tensor:
    """Concatenate every rank's values [n], n differing by rank, in rank order: [sum of n]. No gradient flows back."""
    if num_ranks() == 1:
        return values
    sizes = all_gather_objects(len(values))
    padded = torch.cat([values, values.new_zeros(max(sizes) - len(values))])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def all_reduce_sum(tensor: Tensor) -> None:
    """Replace a tensor of any shape by the sum over ranks, with the same bits on all of them."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)
