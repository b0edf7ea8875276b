"""Batch norm over two processes against Detectron2's ``NaiveSyncBatchNorm``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

pytest.importorskip("detectron2")

from detectron2.layers import get_norm as reference_norm

from transfer.engines.embedded.norms import get_norm

pytestmark = pytest.mark.detectron2


def step(norm: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and statistics of one training step."""
    x = x.clone().requires_grad_()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, 3))
    y = norm(x)
    (y**3).sum().backward()
    return [y.detach(), x.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()]


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(rank)
    results = {}
    for name in ("naiveSyncBN", "naiveSyncBN_N"):
        x = torch.randn(2 + 3 * rank, 3, 4, 4, generator=generator) + rank
        results[name] = (step(get_norm(name, 3), x), step(reference_norm(name, 3), x), x)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_unequal_batches(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in ("naiveSyncBN", "naiveSyncBN_N"):
        for results in both:
            ours, reference, _ = results[name]
            assert len(ours) == 7
            assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))
        # The statistics are those of both processes: equally weighted, or by images.
        inputs = [results[name][2] for results in both]
        means = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs])
        weights = torch.tensor([0.5, 0.5] if name == "naiveSyncBN" else [2 / 7, 5 / 7])
        torch.testing.assert_close(both[0][name][0][4], 0.1 * weights @ means)
