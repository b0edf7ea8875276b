"""Two real processes: figures of the global batch, features of all images, errors on both."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from pretrain.encoder import build_encoder
from pretrain.features import CentreCrops, embed, encoder_at_rest
from pretrain.monitor.signals import Signals
from pretrain.source.images import ImageFolder
from runtime.errors import InputError

N = 12


class Pairs:
    """Stands for a method: gives its observer the parts of a step."""

    def __init__(self) -> None:
        self.model, self.observer = nn.Linear(2, 1), None
        self.model(torch.ones(1, 2)).sum().backward()

    def watch(self, observer) -> None:
        self.observer = observer

    def keys_before(self, count: int) -> torch.Tensor:
        return pairs()[1].roll(1, 0)[:count]  # as the queue, the same on all ranks


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = F.normalize(torch.randn(N, 6, generator=generator), dim=1)
    return q, F.normalize(q + 0.9 * torch.randn(N, 6, generator=generator), dim=1)


def figures(rank: int, world: int, parts: int) -> dict[str, float]:
    method = Pairs()
    signals = Signals(method, None)
    signals.listen(True)
    for q, k in zip(*(x.chunk(world)[rank].chunk(parts) for x in pairs()), strict=True):
        method.observer(q, k)
    return signals.figures()


def crops(folder: str) -> CentreCrops:
    return CentreCrops(ImageFolder.scan(folder), 28)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return build_encoder("resnet18w0.125x", 8)


def process(rank: int, port: int, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mine = encoder()
    mine.bn1.running_mean.add_(2 * rank - 1)  # as of other BN groups; the mean is that of one rank
    found = embed(encoder_at_rest(mine), crops(folder))
    Path(folder, "b", "011.jpg").write_bytes(b"damaged")  # in the second rank's share only
    dist.barrier()
    try:
        embed(encoder_at_rest(mine), crops(folder))
        error = ""
    except InputError as problem:
        error = str(problem)
    result = {"figures": figures(rank, 2, 3), "found": found, "error": error}
    torch.save(result, f"{out}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_are_one(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "a" / "000.jpg").unlink()  # 23 images: the shares differ
    alone = embed(encoder_at_rest(encoder()), crops(str(image_folder)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(process, args=(port, str(image_folder), str(tmp_path)), nprocs=2)
    expected = figures(0, 1, 1)
    assert expected["grad_norm"] == pytest.approx(math.sqrt(3))
    for rank in (0, 1):
        result = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert result["figures"] == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(result["found"], alone, rtol=1e-4, atol=1e-5)
        assert "011.jpg" in result["error"]


def test_steps_that_are_not_logged_keep_nothing() -> None:
    method = Pairs()
    signals = Signals(method, None)
    signals.listen(True)
    method.observer(*pairs())
    signals.listen(False)
    assert method.observer is None
    assert signals.figures().keys() == {"grad_norm"}
