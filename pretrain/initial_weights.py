"""Go on from published weights with one's own images (``MODEL.INIT``): what is taken, what is new.

Names, shapes and values are demanded of the whole backbone, by the rules of the converter. A head
is taken where all of it fits; the dictionary always starts anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torchvision.models.resnet import ResNet

from convert.completeness import check_complete
from convert.conventions import IMAGENET_RGB
from convert.source import Source, read_source
from pretrain.encoder import load_backbone
from pretrain.moco import MoCo
from runtime.errors import InputError

KEY_ENCODER = "module.encoder_k."


def load_initial_weights(model: nn.Module, arch: str, path: str) -> list[str]:
    """Start ``model`` (of MODEL.ARCH ``arch``) from a checkpoint that the converter reads.

    Returns what was loaded and what is new, a line each. Raises InputError where the file is no
    complete ResNet of that architecture, or was trained on other pixels than ours.
    """
    source = read_source(path)
    _check_fits(source, arch, path)
    return list(_load(model, source, path))


def _check_fits(source: Source, arch: str, path: str) -> None:
    if source.architecture.name != arch:
        raise InputError(
            f"MODEL.INIT {path!r} holds a {source.architecture.name}, but MODEL.ARCH is {arch!r}: "
            f"set MODEL.ARCH {source.architecture.name}"
        )
    for name, ours in IMAGENET_RGB.items():
        theirs = getattr(source.conventions, name)
        if theirs != ours:
            raise InputError(
                f"MODEL.INIT {path!r} was trained with {name} {theirs}, pretraining has {ours}: "
                "take weights of torchvision's conventions"
            )


def _load(model: nn.Module, source: Source, path: str) -> Iterator[str]:
    query = getattr(model, "encoder_q", model)
    branch = f", {source.format.branch}" if source.format.branch else ""
    load_backbone(query, source.backbone, path)
    yield (
        f"MODEL.INIT {path} ({source.format.name}{branch}): {source.architecture.name}, all "
        f"{len(source.backbone)} backbone tensors loaded"
    )
    problem = _load_head(query, source.head)
    taken = f"loaded, {len(source.head)} tensors" if problem is None else f"new ({problem})"
    yield f"MODEL.INIT head: {taken}"
    if isinstance(model, MoCo):
        yield _load_key_encoder(model, source, path)
    if query is not model:
        yield "MODEL.INIT dictionary: new"


def _load_key_encoder(model: MoCo, source: Source, path: str) -> str:
    """The file's own key encoder where it has one: it lags behind the queries as it should."""
    model.encoder_k.load_state_dict(model.encoder_q.state_dict())
    theirs = {
        name.removeprefix(KEY_ENCODER): tensor
        for name, tensor in source.tensors.items()
        if name.startswith(KEY_ENCODER)
    }
    if not theirs:
        return "MODEL.INIT key encoder: a copy of the query encoder"
    head = {name: tensor for name, tensor in theirs.items() if name.startswith("fc.")}
    backbone = {name: tensor for name, tensor in theirs.items() if name not in head}
    check_complete(backbone, source.architecture, f"{path}, {KEY_ENCODER[:-1]}")
    load_backbone(model.encoder_k, backbone, path)
    if _load_head(model.encoder_k, head) is None:
        return "MODEL.INIT key encoder: the file's encoder_k"
    return "MODEL.INIT key encoder: the file's encoder_k, its head a copy of the query encoder's"


def _load_head(encoder: ResNet, head: Mapping[str, torch.Tensor]) -> str | None:
    """Load all of ``head`` into ``fc``; or nothing, and return why it does not fit."""
    own = {n: t for n, t in encoder.state_dict().items() if n.startswith("fc.")}
    if own.keys() != head.keys():
        return f"the file has {', '.join(head) or 'none'}, this model {', '.join(own)}"
    for name, tensor in head.items():
        if tensor.shape != own[name].shape:
            return f"{name} is {tuple(tensor.shape)} there, {tuple(own[name].shape)} here"
        if not torch.isfinite(tensor).all():
            return f"{name} has values that are not finite"
    encoder.load_state_dict(dict(head), strict=False)
    return None
