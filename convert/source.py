"""A checkpoint of any known toolkit as one verified ResNet, for a detector or a new run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from convert import naming
from convert.architecture import BN_EPS, Architecture, identify, is_folded
from convert.completeness import check_complete
from convert.conventions import ASSUMED, Conventions, configuration, said_beside, said_inside
from convert.detect import Found, all_tensors, backbone_state, detect, head_tensors
from convert.foreign import arguments
from convert.hub_config import hub_config
from convert.reading import read_checkpoint
from convert.seen_images import SeenImages
from runtime.errors import InputError
from runtime.files import sha256

# Torchvision's names are also those of weights from Caffe (BGR, stride in the 1x1 convolution);
# transformers' without their config.json may have the stride there, too.
BARE = ("torchvision", "transformers", "other")
ASSUMED_OF_BARE = f"RGB, {ASSUMED}, and the stride in the 3x3 convolution"
# Parts of detectors: Detectron2's (C4 models have res5 there, too), MMDetection's, torchvision's
DETECTOR = re.compile(
    r"(^|\.)(proposal_generator|rpn(_head)?|roi_heads?(?!\.res5)|(bbox|mask|keypoint)_head)\."
)
BLURRED = re.compile("resnet(blur|aa)")
BN_WITH_EPS = re.compile(  # of OpenMMLab, in either order
    r"norm_cfg\s*=\s*dict\((?=[^()]*BN)[^()]*\beps\s*=\s*(\d+(?:\.\d+)?(?:e-?\d+)?)"
)
INVISIBLE = ("aa_layer", "act_layer", "output_stride")  # timm's options that no tensor shows


@dataclass(frozen=True)
class Source:
    """What a checkpoint holds.

    Attributes:
        backbone: every backbone tensor by torchvision's name, in torchvision's order.
        head: the tensors beside it (``fc.*``), by name without the format's prefix.
        architecture: read off the tensors.
        conventions: how pixels must look, and where the weights come from.
        format: the toolkit that wrote it, and the encoder taken.
        tensors: all tensors of the state dict that the backbone is in, by their own names.
        seen: the images that it was pretrained on; None where the file does not say.
        incomplete: name → "missing" or "untrained", what ``--allow-missing`` let pass.
    """

    backbone: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    architecture: Architecture
    conventions: Conventions
    format: Found
    tensors: dict[str, torch.Tensor]
    seen: SeenImages | None
    incomplete: Mapping[str, str]


def read_source(
    path: str | Path, allow_missing: bool = False, *, name: str = "", branch: str = ""
) -> Source:
    """Read, recognise and check a checkpoint.

    ``name`` forces a format and ``branch`` chooses the encoder (``--format``, ``--branch``).
    Raises InputError where it cannot be read, is of no known format, or is not a complete ResNet;
    ``allow_missing`` lets missing and untrained tensors pass.
    """
    source = recognise(path, name=name, branch=branch)
    architecture, state = source.architecture, source.backbone
    folded = source.conventions.frozen_bn
    incomplete = check_complete(state, architecture, str(path), allow_missing, folded)
    ordered = {name: state[name] for name in architecture.shapes() if name in state}
    return replace(source, backbone=ordered, incomplete=incomplete)


def recognise(path: str | Path, *, name: str = "", branch: str = "") -> Source:
    """Read and recognise a checkpoint without asking whether its backbone is complete."""
    source = str(path)
    content = read_checkpoint(path)
    found = detect(content, source, name, branch)
    state = backbone_state(content, found, source)
    _refuse_by_words(content, path)
    architecture = identify(state, source)
    tensors = all_tensors(content, found)
    folded = is_folded(state, found.format.naming in (naming.detectron2, naming.detector))
    conventions = _conventions(content, found, architecture, folded, path)
    part = next((name for name in tensors if DETECTOR.search(name)), "")
    return Source(
        backbone=state,
        head=head_tensors(content, found),
        architecture=architecture,
        conventions=conventions.of_detector(part) if part else conventions,
        format=found,
        tensors=tensors,
        seen=SeenImages.from_dict(content.get("seen_images"), source),
        incomplete={},
    )


def _refuse_by_words(content: Mapping[str, Any], path: str | Path) -> None:
    """What no tensor shows, but entries of the file, its name or the Hub's ``config.json`` say."""
    args, hub = arguments(content), hub_config(path)
    names = [content.get("arch"), hub.get("architecture"), Path(path).name]
    options = hub.get("model_args") or args.get("model_kwargs")
    options = options if isinstance(options, Mapping) else {}
    reasons = [
        f"{name} pools with a blur (anti-aliased)"
        for name in names
        if isinstance(name, str) and BLURRED.search(name)
    ]
    reasons += [f"{key} {options[key]!r}" for key in INVISIBLE if options.get(key)]
    if hub.get("downsample_in_first_stage"):  # transformers
        reasons.append("a stride of 2 in its first stage")
    if (activation := hub.get("hidden_act", "relu")) != "relu":
        reasons.append(f"hidden_act {activation!r}")
    found = BN_WITH_EPS.search(configuration(content))
    eps = float(found[1]) if found else args.get("bn_eps")
    if isinstance(eps, float) and eps != BN_EPS:
        reasons.append(f"BN with eps {eps}, and it has {BN_EPS}")
    if reasons:
        raise InputError(f"{path} cannot become a Detectron2 ResNet: {reasons[0]}")


def _conventions(
    content: Mapping[str, Any],
    found: Found,
    architecture: Architecture,
    folded: bool,
    path: str | Path,
) -> Conventions:
    """Those of the format, overridden by what the file itself says."""
    meta = content.get("meta")
    for entry in (content, meta if isinstance(meta, Mapping) else {}):
        if "conventions" in entry:  # a backbone.pkl of this toolkit, or its export for MMDetection
            carried = Conventions.from_dict(entry["conventions"], str(path))
            if carried.architecture != architecture:
                raise InputError(
                    f"{path} says that it is a {carried.architecture.name}, and its tensors are of "
                    f"a {architecture.name}: convert the original checkpoint again"
                )
            return carried
    usual = found.format.conventions
    if callable(usual):
        usual = usual(architecture, folded)
    said = said_inside(content, str(path))
    if usual is None:
        usual = said_beside(path)
    elif found.format.configurable and not said:
        said = {"assumed": ASSUMED_OF_BARE if found.name in BARE else ASSUMED}
    return Conventions(
        **{**usual, **said},
        depth=architecture.depth,
        stem_channels=architecture.stem,
        planes=architecture.planes,
        groups=architecture.groups,
        out_channels=architecture.out,
        frozen_bn=folded,
        source_format=found.name,
        branch=found.branch,
        source_sha256=sha256(path),
        pretraining=_pretraining(content),
    )


def _pretraining(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of its pretraining: plain values only."""
    keys = ("arch", "method", "epoch", "step", "config", "data", "versions")
    return {key: content[key] for key in keys if isinstance(content.get(key), str | int | dict)}
