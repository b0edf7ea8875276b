"""SyncBN over two real processes against plain batch norm on the joined input."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from transfer.engines.embedded.solver import NORMS
from transfer.engines.sync_bn import SyncBatchNorm, synchronise_on_cpu

CHANNELS = 5
SHARES = {  # positions of both processes
    "unequal": ((2, CHANNELS, 4, 4), (5, CHANNELS, 3, 7)),
    "empty on one": ((3, CHANNELS, 4, 4), (0, CHANNELS, 4, 4)),
    "one position each": ((1, CHANNELS, 1, 1), (1, CHANNELS, 1, 1)),
}


def inputs(name: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(name))
    return [
        torch.randn(shape, generator=generator) * (1 + index) + 3 * index
        for index, shape in enumerate(SHARES[name])
    ]


def steps(norm: nn.Module, parts: list[Tensor], count: int = 3) -> dict[str, Tensor]:
    """Everything that ``count`` training steps give; the parts are normalised together."""
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, CHANNELS))
        norm.bias.copy_(torch.linspace(-1, 1, CHANNELS))
    parts = [part.clone().requires_grad_() for part in parts]
    flat = [part.permute(1, 0, 2, 3).reshape(1, CHANNELS, -1, 1) for part in parts]
    for _ in range(count):
        y = norm(torch.cat(flat, dim=2) if len(flat) > 1 else parts[0])
    (y**3).sum().backward()
    result = {"y": y.detach(), "weight": norm.weight.grad, "bias": norm.bias.grad}
    result |= {f"x{i}": part.grad for i, part in enumerate(parts)}
    return result | {name: buffer.clone() for name, buffer in norm.named_buffers()}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    results = {name: steps(SyncBatchNorm(CHANNELS), [inputs(name)[rank]]) for name in SHARES}
    half = SyncBatchNorm(CHANNELS)(inputs("unequal")[rank].bfloat16())
    assert half.dtype == torch.bfloat16
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in SHARES:
        whole = steps(nn.BatchNorm2d(CHANNELS), inputs(name))
        first, second = (results[name] for results in both)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(first[key], second[key]), (name, key)
            torch.testing.assert_close(first[key], whole[key], rtol=1e-6, atol=1e-6)
        for key in ("weight", "bias"):  # DistributedDataParallel adds these up
            torch.testing.assert_close(first[key] + second[key], whole[key], rtol=1e-5, atol=1e-4)
        for index, part in enumerate((first, second)):
            torch.testing.assert_close(part["x0"], whole[f"x{index}"], rtol=1e-4, atol=1e-4)
        y = [part["y"].permute(1, 0, 2, 3).reshape(1, CHANNELS, -1, 1) for part in (first, second)]
        torch.testing.assert_close(torch.cat(y, dim=2), whole["y"], rtol=1e-5, atol=1e-5)


def test_one_process_is_plain_batch_norm_bit_for_bit() -> None:
    (x, _) = inputs("unequal")
    ours, plain = steps(SyncBatchNorm(CHANNELS), [x]), steps(nn.BatchNorm2d(CHANNELS), [x])
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_a_model_of_torchs_layers_keeps_its_parameters_and_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.BatchNorm2d(4))
    before = dict(model.named_parameters())
    state = list(model.state_dict())
    synchronise_on_cpu(model)
    assert isinstance(model[1], SyncBatchNorm)
    assert isinstance(model[1], NORMS)  # for the weight decay of norms
    assert type(model[2]) is nn.BatchNorm2d
    assert list(model.state_dict()) == state
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
