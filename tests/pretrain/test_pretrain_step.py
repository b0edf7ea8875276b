"""One optimiser step: what it may not do."""

from __future__ import annotations

import pytest
import torch
from tiny_training import global_batch, new_method, tiny_cfg

from pretrain.step import Step


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
