"""Mixed precision and compiled encoders against the plain ones, step by step."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT

from pretrain.checks import doubts
from pretrain.config import load_cfg
from pretrain.loading.batches import Batch
from pretrain.methods import MoCoMethod
from pretrain.precision import has_bfloat16, set_computation
from pretrain.step import Step

CPU = torch.device("cpu")
TINY = """
MODEL.ARCH resnet18w0.25x MODEL.DIM 16 MODEL.QUEUE_SIZE 64 MODEL.BN_GROUP_SIZE 8
SOLVER.BATCH_SIZE 16 SOLVER.BASE_LR 0.01 DEVICE cpu
""".split()


def train(amp: str = "", compiled: bool = False, steps: int = 3) -> tuple[MoCoMethod, list[float]]:
    """A few steps on noise; the method after them, and their losses."""
    cfg = load_cfg(str(ROOT / "configs/moco_v2_R50_200ep.yaml"), TINY)
    torch.manual_seed(0)
    method = MoCoMethod(cfg)
    method.model.to(memory_format=torch.channels_last).train()
    set_computation(method.model, amp, compiled, backend="aot_eager")
    parameters = [p for p in method.model.parameters() if p.requires_grad]
    step = Step(method, method.model, torch.optim.SGD(parameters, lr=0.01, momentum=0.9), CPU)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        shape = (2, 16, 3, 64, 64)
        queries, others = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        batch = Batch((queries, others), torch.full((16,), -1), torch.arange(16))
        losses.append(float(step(batch).loss))
    return method, losses


def test_bf16_is_close_to_float32_and_keeps_what_must_be_exact() -> None:
    plain, expected = train()
    mixed, losses = train("bf16")
    assert losses != expected  # it is another arithmetic
    assert losses == pytest.approx(expected, rel=0.02)
    state = mixed.model.state_dict()
    assert state.keys() == plain.model.state_dict().keys()
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    images = torch.randn(8, 3, 64, 64)
    encoder = mixed.moco.encoder_q
    seen: list[torch.dtype] = []
    encoder.layer1.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    logits, _ = mixed.model(images, torch.nn.functional.normalize(torch.randn(8, 16)))
    assert (seen, logits.dtype) == ([torch.bfloat16], torch.float32)


def test_key_encoder_in_bf16_follows_its_momentum_update() -> None:
    """Weights cast for an earlier call must not be used again."""
    method, _ = train("bf16", steps=1)
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        before = method.moco.encoder_k(images)
        method.moco.encoder_k.fc[2].weight.mul_(2)
        after = method.moco.encoder_k(images)
    bias = method.moco.encoder_k.fc[2].bias
    torch.testing.assert_close(after - bias, 2 * (before - bias), rtol=0.02, atol=0.02)


def test_compiled_encoders_are_equal_and_keep_their_names() -> None:
    plain, expected = train()
    compiled, losses = train(compiled=True)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()


def test_bf16_without_its_instructions_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*TINY, "SOLVER.AMP", "bf16"]
    cfg = load_cfg(str(ROOT / "configs/moco_v2_R50_200ep.yaml"), overrides)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert not has_bfloat16(CPU)
    assert ["no bfloat16" in line for line in doubts(cfg, 100)] == [True]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert list(doubts(cfg, 100)) == []
