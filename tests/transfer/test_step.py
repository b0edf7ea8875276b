"""One training step: parts, mixed precision, and the stop before a number that is not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from transfer.engines.step import SMALLEST_SCALE, Step, naming_iteration

SCALE = 256.0


class Detector(nn.Module):
    """Two losses of a batch, a list of vectors; ``spoil`` multiplies the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.head = nn.Linear(3, 2)
        self.spoil = 1.0

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        x = self.layer(torch.stack(batch)).relu()
        y = self.head(x)
        return {"loss_a": y[:, 0].float().exp().mean(), "loss_b": (y**2).mean() * self.spoil}


def make(dtype: torch.dtype | None = None, parts: int = 1) -> tuple[Detector, Step]:
    torch.manual_seed(0)
    model = Detector()
    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), dtype, parts)
    if dtype is torch.float16:  # the usual first scale is too large for gradients near 1
        step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": SCALE})
    return model, step


def batch(count: int = 6, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, generator=generator) for _ in range(count)]


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def slow(model: Detector, samples: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """Gradients by torch.autograd, without Step."""
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        losses = model(samples)
        total = losses["loss_a"] + losses["loss_b"]
    return list(torch.autograd.grad(total, list(model.parameters())))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_gradients_and_losses_are_the_means_over_the_parts(
    parts: int, dtype: torch.dtype | None
) -> None:
    model, step = make(dtype, parts)
    samples = batch()
    size = 6 // parts
    pieces = [samples[i : i + size] for i in range(0, 6, size)]
    each = [slow(model, piece, dtype) for piece in pieces]
    expected = [sum(g) / parts for g in zip(*each, strict=True)]
    losses = step.backward(samples)
    scale = SCALE if dtype is torch.float16 else 1.0
    tolerance = 1e-6 if dtype is None else 1e-2 if dtype is torch.bfloat16 else 2e-3
    for found, gradient in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found / scale, gradient, rtol=tolerance, atol=tolerance)
    if dtype is None:  # the loss is a mean over the images: equal to that of the whole batch
        whole = slow(model, samples, None)
        for found, gradient in zip(gradients(model), whole, strict=True):
            torch.testing.assert_close(found, gradient)
        assert step.check(losses)["loss_b"] == pytest.approx(model(samples)["loss_b"].item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_used_and_the_update_is_unscaled(dtype: torch.dtype) -> None:
    model, step = make(dtype)
    before = [p.detach().clone() for p in model.parameters()]
    expected = slow(model, batch(), dtype)
    single = slow(model, batch(), None)
    assert any(not torch.equal(a, b) for a, b in zip(expected, single, strict=True))
    step.check(step.backward(batch()))
    step.update()
    for old, new, gradient in zip(before, model.parameters(), expected, strict=True):
        torch.testing.assert_close((old - new) / 0.1, gradient, rtol=5e-3, atol=5e-4)


def test_an_overflow_under_float16_skips_the_step_and_halves_the_scale() -> None:
    model, step = make(torch.float16)
    before = [p.detach().clone() for p in model.parameters()]
    model.head.weight.register_hook(lambda gradient: gradient * torch.inf)
    step.check(step.backward(batch()))
    step.update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    state = step.state_dict()
    assert state["grad_scaler"]["scale"] == SCALE / 2
    _, resumed = make(torch.float16)
    resumed.load_state_dict(state)
    assert resumed.scaler.get_scale() == SCALE / 2
    for _ in range(24):  # 2^7 to 2^-17
        losses = step.backward(batch())
        step.check(losses)
        step.update()
    assert step.scaler.get_scale() == SMALLEST_SCALE / 2
    with pytest.raises(FloatingPointError, match="overflow float16 at every scale"):
        step.check(losses)


def test_what_is_not_finite_stops_before_the_update() -> None:
    model, step = make()
    before = [p.detach().clone() for p in model.parameters()]
    model.spoil = float("nan")
    with pytest.raises(FloatingPointError, match=r"a loss is not finite \(loss_a .*, loss_b nan"):
        step.check(step.backward(batch()))
    model.spoil = 1.0
    model.head.bias.register_hook(lambda gradient: gradient * torch.nan)
    with (
        pytest.raises(FloatingPointError, match=r"at iteration 7: the gradient of head\.bias is"),
        naming_iteration(7),
    ):
        step.check(step.backward(batch()))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model, _ = make()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    step = Step(wrapped, torch.optim.SGD(model.parameters(), lr=0.1), None, parts=2)
    losses = step.check(step.backward(batch(4, seed=rank)))
    result = {"losses": losses, "gradients": gradients(model), "stopped": []}
    step.update()
    for kind in ("loss", "gradient"):
        if rank == 1 and kind == "loss":
            model.spoil = float("nan")
        if rank == 1 and kind == "gradient":  # of the loss, in rank 1 alone
            model.spoil = 1.0
            model.head.weight.register_hook(lambda gradient: gradient * torch.nan)
        try:
            step.check(step.backward(batch(4, seed=rank)))
        except FloatingPointError as error:
            result["stopped"].append(str(error))
    result["finite"] = all(p.isfinite().all() for p in model.parameters())
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_stop_together_and_average_once(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    model, _ = make()
    halves = [slow(model, batch(4, seed=rank)[i : i + 2], None) for rank in (0, 1) for i in (0, 2)]
    for result in both:
        for found, gradient in zip(result["gradients"], zip(*halves, strict=True), strict=True):
            torch.testing.assert_close(found, sum(gradient) / 4)
        assert len(result["stopped"]) == 2
        assert "loss_b nan" in result["stopped"][0]
        assert result["stopped"][1].startswith("the gradient of ")
        assert result["finite"]
    assert both[0]["losses"] == both[1]["losses"]
    assert both[0]["stopped"] == both[1]["stopped"]
