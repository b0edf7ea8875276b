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
COUNTER = "num_batches_tracked"  # files of PyTorch before 0.4.1 and of Caffe2 have none
BN_EPS = 1e-5
BN_TENSORS = ("weight", "bias", "running_mean", "running_var", COUNTER)


@dataclass(frozen=True)
class Architecture:
    """A ResNet that Detectron2 can represent.

    Attributes:
        depth: 18, 34, 50, 101 or 152.
        stem: channels of conv1.
        planes: channels of the 3x3 convolutions of res2 (64 in the standard nets).
        groups: of the 3x3 convolutions; 1 but in a ResNeXt.
        out: channels that res2 puts out; 0 stands for the standard: four times ``planes`` with
            bottlenecks, else ``planes``.
    """

    depth: int
    stem: int
    planes: int
    groups: int = 1
    out: int = 0

    def __post_init__(self) -> None:
        if self.out == 0:
            object.__setattr__(self, "out", self.planes * (4 if self.bottleneck else 1))

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
        """``resnet50``, ``resnet50w2x`` (all twice as wide), ``resnext50_32x4d`` or
        ``wide_resnet50_2`` (twice as wide between the blocks' 1x1 convolutions).
        """
        if self.groups > 1:
            return f"resnext{self.depth}_{self.groups}x{self.planes // self.groups}d"
        if self.bottleneck and self.out != 4 * self.planes:
            return f"wide_resnet{self.depth}_{4 * self.planes / self.out:g}"
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
            width, out = self.planes * 2**stage, self.out * 2**stage
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
            [(width, channels, 1), (width, width // self.groups, 3), (out, width, 1)]
            if self.bottleneck
            else [(width, channels, 3), (out, width, 3)]
        )
        for i, (to, from_, kernel) in enumerate(convolutions, start=1):
            yield f"{name}.conv{i}.weight", (to, from_, kernel, kernel)
            yield from _bn(f"{name}.bn{i}", to)


def _bn(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for tensor in BN_TENSORS:
        yield f"{name}.{tensor}", () if tensor == COUNTER else (channels,)


def identify(state: Mapping[str, torch.Tensor], source: str) -> Architecture:
    """The architecture of a state dict in torchvision's names.

    Raises InputError, naming ``source``, where it is no ResNet that Detectron2 can represent.
    """
    if reason := _not_representable(state):
        raise InputError(f"{source} cannot become a Detectron2 ResNet: {reason}")
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
    stem, middle = state["conv1.weight"].shape[0], state.get("layer1.0.conv2.weight")
    if not bottleneck or middle is None or middle.ndim != 4 or 0 in middle.shape:
        return Architecture(depth, stem, 0 if middle is None else middle.shape[0])
    planes, group = middle.shape[:2]
    return Architecture(
        depth, stem, planes, planes // group, state["layer1.0.conv3.weight"].shape[0]
    )


def _not_representable(state: Mapping[str, torch.Tensor]) -> str:
    """Why no setting of Detectron2's ResNet gives this network; "" where nothing speaks against.

    Reasons that show in the tensors. Pooling without parameters (timm's ``resnetblur``) does not.
    """
    conv1 = state.get("conv1.weight")
    if any(name.startswith(("conv1.0.", "stem.0.")) for name in state):
        return "a deep stem of 3x3 convolutions (ResNet-C/D), and it has one of 7x7"
    if conv1 is not None and conv1.ndim == 4 and conv1.shape[2:] != (7, 7):
        kernel = "x".join(str(n) for n in conv1.shape[2:])
        return f"a {kernel} stem (for small images, as on CIFAR), and it has one of 7x7"
    if conv1 is not None and conv1.ndim == 4 and conv1.shape[1] != 3:
        return f"{conv1.shape[1]} input channels, and it has three"
    for name, value in state.items():
        if ".se." in name or ".se_module." in name:
            return f"squeeze-and-excitation ({name})"
        if name.endswith(".filt"):
            return f"anti-aliased pooling ({name})"
        if name.endswith(".downsample.1.weight") and value.ndim == 4:
            return f"average pooling in the shortcut (ResNet-D; {name} is a convolution)"
    if "bn1.weight" in state and not any(name.endswith(".running_mean") for name in state):
        return "norms without running statistics (GroupNorm or the like), and the recipes use BN"
    return ""


def merge_split_statistics(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One set of running statistics for BN that kept one for each split of its batch.

    Such a layer (lightly's and the MoCo demo's ``SplitBatchNorm``) has S x C statistics for C
    channels. Mean: the mean of the S means; variance: that of all splits taken together, the mean
    of the S variances plus the variance of the S means. Other tensors are passed on as they are.
    """
    out = dict(state)
    for name, weight in state.items():
        stem = name.removesuffix(".weight")
        mean, var = state.get(f"{stem}.running_mean"), state.get(f"{stem}.running_var")
        if weight.ndim != 1 or mean is None or var is None or mean.shape != var.shape:
            continue
        splits, rest = divmod(mean.numel(), max(weight.numel(), 1))
        if splits > 1 and rest == 0:
            means = mean.reshape(splits, -1)
            out[f"{stem}.running_mean"] = means.mean(0)
            spread = means.var(0, unbiased=False)
            out[f"{stem}.running_var"] = var.reshape(splits, -1).mean(0) + spread
    return out


def unfold(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BN that was folded into ``weight`` and ``bias``, as BN whose statistics change nothing.

    Mean 0 and variance 1 - 1e-5, as Detectron2's ``FrozenBatchNorm2d`` starts with: the division by
    the root of the variance plus 1e-5 is one by 1.
    """
    out = {}
    for name, value in state.items():
        out[name] = value
        if name.endswith(".bias") and f"{name[:-5]}.running_mean" not in state:
            out[f"{name[:-5]}.running_mean"] = torch.zeros_like(value)
            out[f"{name[:-5]}.running_var"] = torch.ones_like(value) - BN_EPS
    return out


def is_folded(state: Mapping[str, torch.Tensor], by_detectron2: bool = False) -> bool:
    """Whether all BN statistics are those of :func:`unfold`.

    ``by_detectron2``: or variance 1, which its ``FrozenBatchNorm2d`` takes where a file that it
    starts from has none, MSRA's ResNets for one. Its detectors then have it.
    """
    means = [value for name, value in state.items() if name.endswith(".running_mean")]
    variances = [value for name, value in state.items() if name.endswith(".running_var")]
    usual = (1 - BN_EPS, 1.0) if by_detectron2 else (1 - BN_EPS,)
    return (
        bool(means)
        and not any(mean.any() for mean in means)
        and any(all(var.eq(value).all() for var in variances) for value in usual)
    )
