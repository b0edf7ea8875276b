"""Each image goes only to the rank that encodes it, with the result of gathering them all."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import ROOT
from processes import run_processes

from pretrain.shuffled_bn import exchange, permutation
from runtime.distributed import all_gather, rank, world_size

SIZE, COUNT = 8, 3


def compare(order: torch.Tensor) -> bool:
    """On one rank: is the exchange equal to all images, gathered and indexed?"""
    generator = torch.Generator().manual_seed(rank())
    images = torch.randint(256, (COUNT, 3, 4, 4), dtype=torch.uint8, generator=generator)
    mine = order[rank() * COUNT : (rank() + 1) * COUNT]
    return torch.equal(exchange(images, order), all_gather(images)[mine])


def exchange_all(orders: list[torch.Tensor]) -> list[bool]:
    return [compare(order) for order in orders]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_exchange_equals_gathering(world: int) -> None:
    """Some orders leave a rank without anything to send to another."""
    size = COUNT * world
    orders = [torch.arange(size), torch.arange(size).flip(0)]
    orders += [permutation(1, step, size) for step in range(10)]
    ranks = run_processes(exchange_all, world, orders) if world > 1 else [exchange_all(orders)]
    assert ranks == [[True] * len(orders)] * world


def received() -> tuple[int, int, list[int]]:
    sys.path.insert(0, str(ROOT))
    from benchmarks.shuffle_bytes import measure

    order = permutation(0, 0, world_size() * COUNT)
    owners = order[rank() * COUNT : (rank() + 1) * COUNT] // COUNT
    return *measure(SIZE, COUNT), owners.tolist()


@pytest.mark.parametrize("world", [2, 4])
def test_received_bytes(world: int) -> None:
    """Images of other ranks once, as uint8, and their keys once; and that the results agree."""
    image, key = 3 * SIZE * SIZE, 4 * 128
    for number, (official, ours, owners) in enumerate(run_processes(received, world)):
        others = COUNT * (world - 1)
        assert official == others * (4 * image + 2 * key)
        assert ours == sum(owner != number for owner in owners) * image + others * key
