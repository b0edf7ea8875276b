"""Checkpoints that look trained, for the tests of the converter."""

from __future__ import annotations

import torch


def trained(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Different values everywhere, so that a swapped tensor shows; none overflows."""
    torch.manual_seed(0)
    return {name: _value(name, value) for name, value in state.items()}


def _value(name: str, value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value + 7
    if name.endswith("running_var"):
        return torch.rand_like(value) + 0.5
    return torch.randn_like(value) / max(1, value[:1].numel()) ** 0.5
