"""Small networks whose BN has seen data, and files of any kind."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import torch
from layouts import State
from safetensors.torch import save_file

from convert.architecture import Architecture
from pretrain.encoder import build_encoder

ARCH = "resnet18w0.25x"


@functools.cache
def network(seed: int, arch: str = ARCH) -> torch.nn.Module:
    """An encoder in evaluation whose BN is not at its initial values."""
    torch.manual_seed(seed)
    model = build_encoder(arch, 3).eval()
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value += 7
        elif name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.1)
        elif "bn" in name or "downsample.1" in name:
            value.uniform_(0.5, 1.5)
    return model


def backbone(seed: int, arch: str = ARCH) -> State:
    state = network(seed, arch).state_dict()
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def write(content: Any, file: Path) -> Path:
    if file.suffix == ".pkl":
        file.write_bytes(pickle.dumps(content, protocol=4))
    elif file.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in content.items()}, file)
    else:
        torch.save(content, file)
    return file


def resnext(groups: int, out: int = 32) -> State:
    """A narrow ResNe(X)t-50: 8 channels in the 3x3 convolutions of res2."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, shape in Architecture(50, 8, 8, groups, out).shapes().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
        elif len(shape) == 4:
            scale = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
            state[name] = torch.randn(shape, generator=generator) * scale
        else:
            low = 0.5 if name.endswith(("weight", "var")) else -0.5
            state[name] = torch.rand(shape, generator=generator) + low
    return state
