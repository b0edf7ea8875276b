"""How the encoders compute: in mixed precision, and compiled. What they are stays as it is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torchvision.models.resnet import ResNet


def set_computation(model: nn.Module, amp: str, compiled: bool, backend: str = "inductor") -> None:
    """Let the encoders of ``model`` compute as ``SOLVER.AMP`` and ``SOLVER.COMPILE`` say, in place.

    ``amp`` "bf16": convolutions and matrix products in bfloat16 (``torch.autocast``); parameters,
    BN statistics and what comes out of the encoder stay float32, and so the logits, the loss and
    the queue. bfloat16 has float32's range: no loss scaling is needed. ``compiled``:
    ``torch.compile`` of each encoder. The names in the state dict stay.
    """
    for encoder in _encoders(model):
        if amp == "bf16":
            _in_bfloat16(encoder)
        if compiled:
            encoder.compile(backend=backend)


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` computes in bfloat16 rather than emulating it.

    A CPU without such instructions took 25 times as long as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _encoders(model: nn.Module) -> Iterator[ResNet]:
    return (module for module in model.modules() if isinstance(module, ResNet))


def _in_bfloat16(encoder: ResNet) -> None:
    forward = encoder.forward

    def forward_in_bfloat16(images: torch.Tensor) -> torch.Tensor:
        # no cache of cast weights: the key encoder's change in place between two calls
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            return forward(images).float()

    encoder.forward = forward_in_bfloat16
