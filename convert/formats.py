"""Who wrote this checkpoint? A table of formats, detected from the content.

To add a toolkit, add a row to ``FORMATS``. A place is written ``entry/entry/prefix``: the entries
of the file that lead to a state dict, then what its backbone's names begin with. The ``module.``
and ``_orig_mod.`` that PyTorch's wrappers put before all names of a state dict are taken off first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from convert import naming
from convert.architecture import Architecture
from convert.conventions import (
    CONFIGURATIONS,
    FAIR_BGR,
    IMAGENET_RGB,
    MSRA_BGR,
    caffe2_conventions,
)
from convert.naming import Naming


@dataclass(frozen=True)
class Format:
    """One layout of checkpoints.

    Attributes:
        name: shown to the user, and the value of ``--format``; rows may share one.
        branches: place of each encoder that a file may hold. The first is taken, and must be there;
            ``--branch`` chooses another.
        marks: what tells the file from others with the same place: ``entry=value`` or
            ``entry~part of its text``, or a place that must exist.
        naming: of the backbone's tensors.
        conventions: of weights in this layout, or a function that finds them from the architecture
            and whether BN is folded; None where only a config.yaml beside the file can say.
        forced: never detected, only for ``--format``.
    """

    name: str
    branches: Mapping[str, str]
    marks: tuple[str, ...] = ()
    naming: Naming = naming.torchvision
    conventions: Mapping[str, Any] | Callable[[Architecture, bool], Mapping[str, Any]] | None = None
    forced: bool = False

    @property
    def option(self) -> str:
        """How ``--format`` writes it: ``official-moco``."""
        return option(self.name)

    @property
    def configurable(self) -> bool:
        """Whether its users choose mean and std themselves, and the file need not say which."""
        return self.name in CONFIGURABLE


def option(name: str) -> str:
    """A format's name in lower case, its words joined by hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def _row(name: str, branches: str | Mapping[str, str], *marks: str, **more: Any) -> Format:
    places = {"": branches} if isinstance(branches, str) else branches
    return Format(name, places, marks, **({"conventions": IMAGENET_RGB} | more))


CONFIGURABLE = frozenset(
    (
        *("OpenMMLab", "stable-pretraining", "solo-learn", "lightly", "timm", "torchvision"),
        *("transformers", "other"),
    )
)
OTHER = _row("other", "")  # only for --format: the one ResNet that a file holds, wherever it is
_MSRA = {"conventions": MSRA_BGR}
_SEQUENTIAL = {"naming": naming.sequential}
_LIGHTNING = "pytorch-lightning_version"
_MOCO = {"query": "state_dict/encoder_q.", "key": "state_dict/encoder_k."}
_OPENMMLAB = {
    "backbone": "state_dict/backbone.",
    "encoder_k": "state_dict/encoder_k.module.0.",
    "momentum_encoder": "state_dict/momentum_encoder.module.0.",
    "target_net": "state_dict/target_net.module.0.",
}
_LIGHTLY = {
    "backbone": "state_dict/backbone.",
    "momentum": "state_dict/backbone_momentum.",
    "key": "state_dict/key_backbone.",
    "teacher": "state_dict/teacher_backbone.",
    "student": "state_dict/student_backbone.",
}
_LIGHTLY_DINO = {
    "teacher": "state_dict/teacher_backbone.",
    "student": "state_dict/student_backbone.",
}
_LIGHTLY_TRAIN = "state_dict/{}embedding_model.wrapped_model."
_VISSL = "classy_state_dict/base_model/model/trunk/"

FORMATS = (
    _row("this toolkit, MoCo", _MOCO, "method=moco"),
    _row("this toolkit, supervised", "state_dict/", "method=supervised"),
    _row("this toolkit, backbone.pkl", "model/", "conventions/", naming=naming.detectron2),
    _row("this toolkit, for MMDetection", "state_dict/", "meta/conventions/"),
    _row("official MoCo", _MOCO),
    _row(
        "official MoCo v3",
        {"base": "state_dict/base_encoder.", "momentum": "state_dict/momentum_encoder."},
    ),
    _row(
        "DenseCL",
        {"query": "state_dict/encoder_q.0.", "key": "state_dict/encoder_k.0."},
        "state_dict/queue2",
    ),
    _row("DenseCL", "state_dict/", "author=DenseCL"),
    _row("PixPro", {"query": "model/encoder.", "key": "model/encoder_k."}),
    _row("SwAV", "state_dict/", "state_dict/prototypes."),
    _row("SwAV", "", "prototypes."),
    _row("DINO", {"teacher": "teacher/backbone.", "student": "student/backbone."}),
    _row("Barlow Twins", "model/backbone.", "model/bn.running_mean", "model/projector."),
    _row("VICReg", "model/backbone.", "model/projector."),
    _row(
        "BYOL",  # yaox12/BYOL-PyTorch
        {"online": "model/online_network.encoder.", "target": "model/target_network.encoder."},
        **_SEQUENTIAL,
    ),
    _row(
        "BYOL",  # sthalles/PyTorch-BYOL
        {
            "online": "online_network_state_dict/encoder.",
            "target": "target_network_state_dict/encoder.",
        },
        **_SEQUENTIAL,
    ),
    _row("BYOL", {"online": "online_encoder.net.", "target": "target_encoder.net."}),  # lucidrains
    _row(
        "solo-learn",  # before version 1.0.3
        {"encoder": "state_dict/encoder.", "momentum": "state_dict/momentum_encoder."},
        *(_LIGHTNING, "state_dict/classifier."),
    ),
    _row("SimSiam", "state_dict/encoder.", "state_dict/predictor."),
    _row("SimCLR", "encoder.", "projector."),  # Spijkervet/SimCLR
    _row("SimCLR", "state_dict/backbone.", "arch", "state_dict/backbone.fc.2."),  # sthalles/SimCLR
    _row("VISSL", f"{_VISSL}_feature_blocks."),
    _row("VISSL", f"{_VISSL}base_model._feature_blocks."),  # of a linear evaluation
    _row("VISSL", "model_state_dict/_feature_blocks."),
    _row("VISSL", "_feature_blocks."),
    *(
        _row("OpenMMLab, caffe style", _OPENMMLAB, f"meta/{entry}~style='caffe'", **_MSRA)
        for entry in CONFIGURATIONS
    ),
    _row("OpenMMLab", _OPENMMLAB, "meta/"),
    _row("OpenMMLab", "state_dict/", "author=MMSelfSup"),
    _row("OpenMMLab", "state_dict/", "author=OpenSelfSup"),
    _row(
        "stable-pretraining",
        {"teacher": "state_dict/backbone.teacher.", "student": "state_dict/backbone.student."},
    ),
    _row("stable-pretraining", "state_dict/backbone.", _LIGHTNING, "hyper_parameters/system."),
    _row(
        "solo-learn",
        {"backbone": "state_dict/backbone.", "momentum": "state_dict/momentum_backbone."},
        *(_LIGHTNING, "state_dict/classifier."),
    ),
    _row("lightly", _LIGHTLY, _LIGHTNING),
    _row("lightly", _LIGHTLY, _LIGHTNING, **_SEQUENTIAL),
    _row("lightly", _LIGHTLY_DINO, _LIGHTNING),
    _row("lightly", _LIGHTLY_DINO, _LIGHTNING, **_SEQUENTIAL),
    *(
        _row("lightly-train", places, "lightly_train")
        for net in ("_features.", "_model.")  # torchvision's ResNet, timm's
        for places in (
            _LIGHTLY_TRAIN.format("") + net,
            {
                "teacher": _LIGHTLY_TRAIN.format("teacher_") + net,
                "student": _LIGHTLY_TRAIN.format("student_") + net,
            },
        )
    ),
    _row("timm", {"ema": "state_dict_ema/", "model": "state_dict/"}),
    _row("timm", "state_dict/", "arch", "args", "version"),
    _row("torchvision", {"ema": "model_ema/module.", "model": "model/"}),
    _row("torchvision", "model/"),  # torchvision's training reference
    _row("torchvision", "state_dict/"),  # PyTorch's ImageNet example
    _row("torchvision", ""),  # timm's ResNets have the same names
    _row("transformers", "resnet.", naming=naming.transformers),
    _row("transformers", "", naming=naming.transformers),
    _row("Detectron2, torchvision", "model/", "__author__=torchvision", naming=naming.detectron2),
    _row("Detectron2, torchvision", "model/", "__author__=MOCO", naming=naming.detectron2),
    _row("Detectron2, torchvision", "model/", "__author__=PixPro", naming=naming.detectron2),
    _row("Detectron2", "model/", naming=naming.detectron2, conventions=None),
    _row("Detectron2", "model/", naming=naming.detector, conventions=None),
    *(
        _row(name, "model/", naming=names, conventions=conventions, forced=True)
        for names in (naming.detectron2, naming.detector)
        for name, conventions in (
            ("Detectron2, torchvision", IMAGENET_RGB),
            ("Detectron2, MSRA", MSRA_BGR),
            ("Detectron2, FAIR", FAIR_BGR),
        )
    ),
    _row("Caffe2", "blobs/", naming=naming.caffe2, conventions=caffe2_conventions),
    _row("Caffe2", "", naming=naming.caffe2, conventions=caffe2_conventions),
)
