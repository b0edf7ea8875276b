"""One optimiser step: what it may not do."""

from __future__ import annotations

import pytest
import torch
from tiny_training import global_batch, new_method, tiny_cfg

from pretrain.step import Step, top1


@pytest.mark.parametrize("overrides", [(), ("METHOD", "supervised")], ids=["moco", "supervised"])
def test_the_host_never_waits_for_the_device(overrides: tuple[str, ...]) -> None:
    """On the meta device tensors have no values: whoever asked for one would fail."""
    cfg = tiny_cfg("SOLVER.ACCUMULATE", 2, *overrides)
    method = new_method(cfg)
    method.model.to("meta")
    optimizer = torch.optim.SGD([p for p in method.model.parameters() if p.requires_grad], 0.1)
    step = Step(method, method.model, optimizer, torch.device("meta"), parts=2)
    result = step(global_batch(cfg, 0, method.view_count))
    assert result.loss.is_meta
    assert result.accuracy.is_meta
    with pytest.raises(RuntimeError, match="meta"):
        float(result.loss)


def test_accuracy_is_argmaxs_and_a_tie_is_a_pick_among_equals() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 7, generator=generator)
    targets = torch.randint(7, (50,), generator=generator)
    right = (logits.argmax(1) == targets).float().mean() * 100
    torch.testing.assert_close(top1(logits, targets), right)
    collapsed = torch.ones(50, 8)  # the positive is the first: argmax found it always
    assert float(top1(collapsed, torch.zeros(50, dtype=torch.long))) == 100 / 8
    rows = torch.tensor([[2.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    assert float(top1(rows, torch.zeros(2, dtype=torch.long))) == 25
