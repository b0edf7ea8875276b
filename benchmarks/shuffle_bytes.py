#!/usr/bin/env python
"""Bytes that a rank receives in one step for shuffled BN: all-to-all against all-gather.

Starts 2, 4 and 8 real Gloo processes, lets each scheme shuffle and restore a batch, counts what the
other ranks' tensors in the collectives hold, and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pretrain.loading.batches import normalise
from pretrain.shuffled_bn import encode_shuffled, permutation
from runtime.distributed import all_gather, rank, world_size

DIM = 128  # of a key
HEADER = """| processes | all-gather, float32 | all-to-all, uint8 | ratio |
|---:|---:|---:|---:|"""


@contextmanager
def counted() -> Iterator[list[int]]:
    """Within the block, the bytes of each received tensor of another rank join the list."""
    received: list[int] = []
    gather, exchange = dist.all_gather, dist.all_to_all_single

    def all_gather(outputs: list[torch.Tensor], x: torch.Tensor) -> None:
        received.extend(o.nbytes for r, o in enumerate(outputs) if r != dist.get_rank())
        gather(outputs, x)

    def all_to_all_single(
        output: torch.Tensor, x: torch.Tensor, from_each: list[int], to_each: list[int]
    ) -> None:
        row = output[:1].nbytes
        received.extend(row * n for r, n in enumerate(from_each) if r != dist.get_rank())
        exchange(output, x, from_each, to_each)

    with patch.multiple(dist, all_gather=all_gather, all_to_all_single=all_to_all_single):
        yield received


def gathered(
    encoder: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """The scheme of the official code: all images to all ranks, then all keys, and once more.

    Returns the keys of the global batch, as :func:`pretrain.shuffled_bn.encode_shuffled` does.
    """
    mine = slice(rank() * len(images), (rank() + 1) * len(images))
    keys = encoder(all_gather(images)[order[mine]])
    own = all_gather(keys)[order.argsort()][mine]  # unshuffle
    return all_gather(own)  # enqueue


def measure(size: int, images: int) -> tuple[int, int]:
    """Bytes that this rank receives by (all-gather of float32, all-to-all of uint8)."""
    generator = torch.Generator().manual_seed(rank())
    views = torch.randint(256, (images, 3, size, size), dtype=torch.uint8, generator=generator)
    order = permutation(0, 0, world_size() * images)
    with counted() as official:
        expected = gathered(_encode, normalise(views), order)
    with counted() as ours:
        _, keys = encode_shuffled(lambda x: _encode(normalise(x)), views, order)
    assert torch.equal(keys, expected), "the two schemes disagree"
    return sum(official), sum(ours)


def _encode(x: torch.Tensor) -> torch.Tensor:
    """Any map from images to DIM numbers will do."""
    return x.flatten(1)[:, :DIM].contiguous()


def _process(rank: int, world: int, folder: str, size: int, images: int) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    official, ours = measure(size, images)
    totals = torch.tensor([official, ours], dtype=torch.float64)
    dist.all_reduce(totals)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        official, ours = (totals / world / 1e6).tolist()
        print(
            f"| {world} | {official:.2f} MB | {ours:.2f} MB | {official / ours:.1f} |", flush=True
        )


def main(args: argparse.Namespace) -> None:
    """Print the table."""
    print(f"Received by a rank in a step, {args.images} images of {args.size} px a rank.\n")
    print(HEADER, flush=True)
    for world in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_process, args=(world, folder, args.size, args.images), nprocs=world)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--images", type=int, default=32, help="a rank")
    main(parser.parse_args())
