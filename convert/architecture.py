"""Which ResNet is this? Read off the tensors, in torchvision's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from runtime.errors import InputError

BLOCKS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
BN_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Architecture:
    """A ResNet that Detectron2 can represent.

    Attributes:
        depth: 18, 34, 50, 101 or 152.
        stem: channels of conv1.
        planes: channels of the 3x3 convolutions of res2 (64 in the standard nets).
    """

    depth: int
    stem: int
    planes: int

    @property
    def bottleneck(self) -> bool:
        """Whether blocks are 1x1-3x3-1x1 (depth 50 and above)."""
        return self.depth >= 50

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks of the four stages."""
        return next(
            blocks
            for (bottleneck, blocks), depth in BLOCKS.items()
            if depth == self.depth and bottleneck == self.bottleneck
        )

    @property
    def name(self) -> str:
        """``resnet50``, or with another width ``resnet50w2x``."""
        width = "" if self.planes == 64 else f"w{self.planes / 64:g}x"
        return f"resnet{self.depth}{width}"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every backbone tensor, in torchvision's names and order."""
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "conv1.weight", (self.stem, 3, 7, 7)
        yield from _bn("bn1", self.stem)
        channels = self.stem
        for stage, count in enumerate(self.blocks):
            width = self.planes * 2**stage
            out = width * 4 if self.bottleneck else width
            for block in range(count):
                name = f"layer{stage + 1}.{block}"
                yield from self._block(name, channels, width, out)
                if channels != out or (block == 0 and stage > 0):
                    yield f"{name}.downsample.0.weight", (out, channels, 1, 1)
                    yield from _bn(f"{name}.downsample.1", out)
                channels = out

    def _block(
        self, name: str, channels: int, width: int, out: int
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        convolutions = (
            [(width, channels, 1), (width, width, 3), (out, width, 1)]
            if self.bottleneck
            else [(width, channels, 3), (out, width, 3)]
        )
        for i, (to, from_, kernel) in enumerate(convolutions, start=1):
            yield f"{name}.conv{i}.weight", (to, from_, kernel, kernel)
            yield from _bn(f"{name}.bn{i}", to)


def _bn(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for tensor in BN_TENSORS:
        yield f"{name}.{tensor}", () if tensor == "num_batches_tracked" else (channels,)


def identify(state: Mapping[str, torch.Tensor], source: str) -> Architecture:
    """The architecture of a state dict in torchvision's names.

    Raises InputError, naming ``source``, where it is no ResNet that Detectron2 can represent.
    """
    if "conv1.weight" not in state or "layer1.0.conv1.weight" not in state:
        raise InputError(f"{source} holds no ResNet: conv1.weight or layer1.0.conv1.weight missing")
    bottleneck = "layer1.0.conv3.weight" in state
    blocks = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    depth = BLOCKS.get((bottleneck, blocks))
    if depth is None:
        kind = "bottleneck" if bottleneck else "basic"
        raise InputError(f"{source} is no ResNet-18/34/50/101/152: {blocks} {kind} blocks a stage")
    middle = "layer1.0.conv2.weight"
    planes = state[middle].shape[0] if middle in state else 0
    return Architecture(depth, state["conv1.weight"].shape[0], planes)
