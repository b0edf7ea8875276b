"""The few collective operations that are needed here; they work without a process group, too."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    """Number of processes of this run; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes the files and the log."""
    return rank() == 0


@torch.no_grad()
def all_gather(x: torch.Tensor) -> torch.Tensor:
    """Concatenate ``x`` (N x ..., same shape everywhere) of all ranks along dimension 0, in order.

    No gradient flows. Returns W·N x ...; ``x`` itself for one process.
    """
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _AllGather(torch.autograd.Function):
    """Backward: the gradients that all ranks have for this rank's rows, summed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return all_gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def all_gather_with_gradient(x: torch.Tensor) -> torch.Tensor:
    """:func:`all_gather`, but gradients flow back to the rank whose rows they belong to.

    They are summed over the ranks: the gradient of the sum of all ranks' losses.
    """
    return _AllGather.apply(x) if world_size() > 1 else x


@torch.no_grad()
def all_to_all(x: torch.Tensor, to_each: list[int], from_each: list[int]) -> torch.Tensor:
    """Send the first ``to_each[0]`` rows of ``x`` to rank 0, the next ``to_each[1]`` to rank 1, ...

    ``from_each[r]`` says how many come from rank r. No gradient flows. Returns them in the order of
    the ranks, sum(from_each) x ...; ``x`` itself for one process.
    """
    if world_size() == 1:
        return x
    received = x.new_empty(sum(from_each), *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), from_each, to_each)
    return received


@torch.no_grad()
def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Sum of ``x`` over all ranks in their order, bit for bit the same on each."""
    return all_gather(x[None]).sum(0) if world_size() > 1 else x


@torch.no_grad()
def mean_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Mean of ``x`` over all ranks, the same on each; a new tensor."""
    total = x.clone()
    if world_size() > 1:
        dist.all_reduce(total)
        total /= world_size()
    return total


@torch.no_grad()
def broadcast_(x: torch.Tensor) -> None:
    """Overwrite ``x`` by that of rank 0."""
    if world_size() > 1:
        dist.broadcast(x, src=0)


def from_main(value: Any) -> Any:
    """The main process's ``value`` (any plain object), on every process."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def all_gather_objects(value: Any) -> list[Any]:
    """The plain object ``value`` of every process, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all ranks; nothing for one process."""
    if world_size() > 1:
        dist.barrier()


def bare(model: nn.Module) -> nn.Module:
    """The model that :func:`data_parallel` was given, with its own parameter names."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def data_parallel(model: nn.Module) -> nn.Module:
    """``model`` with its gradients averaged over the processes; itself for one process.

    Buffers stay each process's own: what must be equal is equal by construction (the queue), and
    what is not synchronised on purpose (BN statistics of a group) must not be overwritten.
    """
    if world_size() == 1:
        return model
    with warnings.catch_warnings():  # torch deprecates the option, and advises to keep it for this
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)
