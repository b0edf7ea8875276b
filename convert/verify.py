"""Does the converted file compute what the checkpoint computed? Features of both, compared.

Both are evaluated here, straight from the tensors: the checkpoint in torchvision's arrangement, the
file in Detectron2's. The tests hold the two evaluations against torchvision's models and
Detectron2's backbone bit for bit; importing those takes longer than a conversion, so that here
Detectron2's is used on request only.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convert.architecture import Architecture
from runtime.errors import InputError
from runtime.randomness import generator

STAGES = ("res2", "res3", "res4", "res5")  # in Detectron2's words
TOLERANCE = 1e-5
SIZE = (2, 3, 65, 97)  # odd, so that a stride in another place shows at the borders, too


@dataclass(frozen=True)
class Arrangement:
    """Where a library keeps the convolutions of a ResNet, each with its norm: pairs of names.

    ``{i}`` counts the convolutions of a block from 1.
    """

    stem: tuple[str, str]
    stages: tuple[str, str, str, str]
    convolution: tuple[str, str]
    shortcut: tuple[str, str]


TORCHVISION = Arrangement(
    stem=("conv1", "bn1"),
    stages=("layer1", "layer2", "layer3", "layer4"),
    convolution=("conv{i}", "bn{i}"),
    shortcut=("downsample.0", "downsample.1"),
)
DETECTRON2 = Arrangement(
    stem=("stem.conv1", "stem.conv1.norm"),
    stages=STAGES,
    convolution=("conv{i}", "conv{i}.norm"),
    shortcut=("shortcut", "shortcut.norm"),
)


@dataclass(frozen=True)
class Verification:
    """Largest difference of the features of each stage, relative to the largest feature.

    Attributes:
        differences: between file and checkpoint. Stages after a missing tensor are left out.
        detectron2: between Detectron2's own backbone and the checkpoint; None if not asked for.
    """

    differences: dict[str, float]
    detectron2: dict[str, float] | None = None

    @property
    def largest(self) -> float:
        """Over all stages and both comparisons."""
        return max([0.0, *self.differences.values(), *(self.detectron2 or {}).values()])

    def to_dict(self) -> dict[str, Any]:
        """For the ``verification`` entry of a ``backbone.pkl``."""
        return asdict(self) | {"tolerance": TOLERANCE, "input": list(SIZE)}


@torch.no_grad()
def features(
    tensors: Mapping[str, Tensor],
    arrangement: Arrangement,
    architecture: Architecture,
    stride_in_1x1: bool,
) -> dict[str, Tensor]:
    """Features of res2 .. res5 for :func:`images`; ends before a stage with a missing tensor."""
    return dict(_features(tensors, arrangement, architecture.blocks, stride_in_1x1))


def verify(
    arrays: Mapping[str, np.ndarray],
    expected: Mapping[str, Tensor],
    architecture: Architecture,
    keys: Mapping[str, Any],
    name: str,
    with_detectron2: bool = False,
) -> Verification:
    """Compare what ``arrays`` (Detectron2's names) compute with the checkpoint's features.

    ``keys`` are Detectron2's for these arrays. Raises InputError, naming the file ``name``, where a
    stage differs by more than ``TOLERANCE`` or says nothing.
    """
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    in_1x1 = keys["MODEL.RESNETS.STRIDE_IN_1X1"]
    found = features(tensors, DETECTRON2, architecture, in_1x1)
    theirs = detectron2_features(tensors, keys) if with_detectron2 else None
    result = Verification(
        _differences(found, expected, name),
        None if theirs is None else _differences(theirs, expected, name),
    )
    if not result.largest <= TOLERANCE:
        kinds = {"": result.differences, "Detectron2's ": result.detectron2 or {}}
        shown = ", ".join(f"{k}{s} {d:.1e}" for k, of in kinds.items() for s, d in of.items())
        raise InputError(
            f"{name}: the converted weights compute other features than the checkpoint, relative "
            f"differences {shown}, at most {TOLERANCE:g} expected; please report this file"
        )
    return result


def images() -> Tensor:
    """The fixed input: 2 x 3 x 65 x 97, as after normalisation."""
    return torch.from_numpy(generator(0, "verify").standard_normal(SIZE, dtype=np.float32))


def _differences(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str
) -> dict[str, float]:
    out = {}
    for stage, value in expected.items():
        largest = value.abs().max()
        if not torch.isfinite(largest) or largest == 0:
            raise InputError(
                f"{name}: all features of {stage} are zero: these weights compute nothing"
                if largest == 0
                else f"{name}: features of {stage} overflow: these weights are no trained network"
            )
        same = stage in found and found[stage].shape == value.shape
        out[stage] = float((found[stage] - value).abs().max() / largest) if same else float("inf")
    return out


def _features(
    tensors: Mapping[str, Tensor],
    arrangement: Arrangement,
    blocks: tuple[int, ...],
    stride_in_1x1: bool,
) -> Iterator[tuple[str, Tensor]]:
    try:
        x = F.relu(_convolution(images(), tensors, "", arrangement.stem, 2))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for res, stage, count in zip(STAGES, arrangement.stages, blocks, strict=True):
            for block in range(count):
                stride = 2 if block == 0 and res != "res2" else 1
                x = _block(x, tensors, arrangement, f"{stage}.{block}.", stride, stride_in_1x1)
            yield res, x
    except KeyError:  # a tensor whose absence --allow-missing excuses
        return


def _block(
    x: Tensor,
    tensors: Mapping[str, Tensor],
    arrangement: Arrangement,
    block: str,
    stride: int,
    stride_in_1x1: bool,
) -> Tensor:
    conv, norm = arrangement.convolution
    layers = [(conv.format(i=i), norm.format(i=i)) for i in (1, 2, 3)]
    if f"{block}{layers[2][0]}.weight" in tensors:
        strides = [stride, 1, 1] if stride_in_1x1 else [1, stride, 1]
    else:
        strides = [stride, 1]  # a basic block: two convolutions
    out = _convolution(x, tensors, block, layers[0], strides[0])
    for names, s in zip(layers[1:], strides[1:], strict=False):
        out = _convolution(F.relu(out), tensors, block, names, s)
    if f"{block}{arrangement.shortcut[0]}.weight" in tensors:
        x = _convolution(x, tensors, block, arrangement.shortcut, stride)
    return F.relu(out + x)


def _convolution(
    x: Tensor, tensors: Mapping[str, Tensor], block: str, names: tuple[str, str], stride: int
) -> Tensor:
    """Convolution without bias and BN by its running statistics, both in float32."""
    # Checkpoints keep channels_last: another kernel, which rounds otherwise, layer after layer.
    # Cloned, for a 1x1 weight counts as contiguous in either layout.
    weight = tensors[f"{block}{names[0]}.weight"].float()
    weight = weight.clone(memory_format=torch.contiguous_format)
    norm = block + names[1]
    groups = x.shape[1] // weight.shape[1]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
    return F.batch_norm(
        x,
        tensors[f"{norm}.running_mean"].float(),
        tensors[f"{norm}.running_var"].float(),
        tensors[f"{norm}.weight"].float(),
        tensors[f"{norm}.bias"].float(),
    )


@torch.no_grad()
def detectron2_features(
    tensors: Mapping[str, Tensor], keys: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Features of Detectron2's own ResNet, built from ``keys``, with all of ``tensors``.

    Raises InputError where Detectron2 is not installed or does not take the tensors.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise InputError("Detectron2 is not installed: make detectron2, or leave --detectron2 out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from detectron2.config import get_cfg
        from detectron2.layers import ShapeSpec
        from detectron2.modeling.backbone.resnet import build_resnet_backbone

    cfg = get_cfg()
    for key, value in {"MODEL.RESNETS.NORM": "BN", **keys}.items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    with torch.device("meta"):  # no time for random weights that are replaced at once
        model = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    found = model.load_state_dict(dict(tensors), strict=False, assign=True)
    left = [*found.missing_keys, *found.unexpected_keys]
    if wrong := [name for name in left if not name.endswith("num_batches_tracked")]:
        raise InputError(f"Detectron2's backbone and the file differ: {', '.join(wrong[:8])}")
    return model.eval()(images())
