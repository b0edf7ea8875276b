"""Names of a ResNet's tensors: every toolkit's → torchvision's, and torchvision's → Detectron2's.

A naming is a function from a tensor's name to torchvision's name of it, or to None where the tensor
is no part of the backbone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Naming = Callable[[str], str | None]

# torchvision's names → Detectron2's (both projects' own converters agree on these)
RENAMES = (
    (re.compile(r"^(conv1|bn1)\."), r"stem.\1."),
    (re.compile(r"^layer([1-4])\."), lambda match: f"res{int(match[1]) + 1}."),
    (re.compile(r"\bdownsample\.0\."), "shortcut."),
    (re.compile(r"\bdownsample\.1\."), "shortcut.norm."),
    (re.compile(r"\bbn([1-3])\."), r"conv\1.norm."),
)
HEADS = ("fc.", "head.", "classifier.", "projection_head.", "prototypes.", "linear.")
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_TRANSFORMERS = re.compile(
    r"encoder\.stages\.(\d)\.layers\.(\d+)\.(?:shortcut|layer\.(\d))\.(convolution|normalization)\.(.+)"
)
_BLOBS = re.compile(r"(conv1|res_conv1|res([2-5])_(\d+)_branch(1|2a|2b|2c))_(.+)")
_BLOB_PARTS = {"1": "downsample", "2a": "1", "2b": "2", "2c": "3"}
_BLOB_TENSORS = {
    **{"bn_s": "weight", "bn_gamma": "weight", "bn_b": "bias", "bn_beta": "bias"},
    **{"bn_rm": "running_mean", "bn_running_mean": "running_mean"},
    **{"bn_riv": "running_var", "bn_running_var": "running_var"},
}


def detectron2_name(name: str) -> str:
    """Detectron2's name of a torchvision ResNet tensor."""
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def torchvision(name: str) -> str | None:
    """torchvision's ``ResNet``, as most toolkits keep it."""
    return None if name.startswith(HEADS) else name


def sequential(name: str) -> str | None:
    """``nn.Sequential(*list(resnet.children())[:-1])``: stem and stages by their number."""
    number, _, rest = name.partition(".")
    return f"{_CHILDREN[number]}.{rest}" if number in _CHILDREN else None


def detectron2(name: str) -> str | None:
    """Detectron2's ResNet. The official converters make ``stem.fc`` of the head."""
    if not re.match(r"(stem|res[2-5])\.(?!fc\.)", name):
        return None
    name = re.sub(r"^stem\.conv1\.norm\.", "bn1.", name)
    name = re.sub(r"^stem\.", "", name)
    name = re.sub(r"^res([2-5])\.", lambda match: f"layer{int(match[1]) - 1}.", name)
    name = re.sub(r"\bshortcut\.norm\.", "downsample.1.", name)
    name = re.sub(r"\bshortcut\.", "downsample.0.", name)
    return re.sub(r"\bconv([1-3])\.norm\.", r"bn\1.", name)


def detector(name: str) -> str | None:
    """The ResNet in a detector of Detectron2: alone, below an FPN, or with res5 in the RoI head."""
    found = re.fullmatch(
        r"(?:backbone\.bottom_up|backbone|roi_heads)\.((stem|res\d\.\d+)\..+)", name
    )
    return detectron2(found[1]) if found else None


def caffe2(name: str) -> str | None:
    """Blobs of Caffe2's Detectron (``detectron2/checkpoint/c2_model_loading.py``).

    ``conv1_b`` of MSRA's ResNet-50 is left out, as Detectron2 leaves it out.
    """
    found = _BLOBS.fullmatch(name)
    if found is None or found[5].endswith("_momentum") or name == "conv1_b":
        return None
    _, stage, block, branch, tensor = found.groups()
    where = f"layer{int(stage) - 1}.{block}." if stage else ""
    part = _BLOB_PARTS[branch] if branch else "1"
    shortcut = part == "downsample"
    if tensor in _BLOB_TENSORS:
        norm = "downsample.1" if shortcut else f"bn{part}"
        return f"{where}{norm}.{_BLOB_TENSORS[tensor]}"
    conv = "downsample.0" if shortcut else f"conv{part}"
    return f"{where}{conv}." + {"w": "weight", "b": "bias"}.get(tensor, tensor)


def transformers(name: str) -> str | None:
    """Hugging Face's ``ResNetModel``."""
    stem = {"embedder.embedder.convolution.": "conv1.", "embedder.embedder.normalization.": "bn1."}
    for theirs, ours in stem.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    found = _TRANSFORMERS.fullmatch(name)
    if found is None:
        return None
    stage, block, number, kind, tensor = found.groups()
    norm = kind == "normalization"
    if number is None:
        part = f"downsample.{int(norm)}"
    else:
        part = f"{'bn' if norm else 'conv'}{int(number) + 1}"
    return f"layer{int(stage) + 1}.{block}.{part}.{tensor}"
