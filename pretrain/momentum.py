"""The momentum update of the key encoder (MoCo, section 3.2, equation 2)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def momentum_update_(key_encoder: nn.Module, query_encoder: nn.Module, momentum: float) -> None:
    """θ_k ← m·θ_k + (1 − m)·θ_q, in place, for all parameters.

    Parameters only: the key encoder keeps the BN statistics of its own batches, as in the official
    code.
    """
    keys: list[torch.Tensor] = list(key_encoder.parameters())
    queries: list[torch.Tensor] = list(query_encoder.parameters())
    torch._foreach_lerp_(keys, queries, 1 - momentum)
