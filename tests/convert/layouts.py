"""Checkpoints as each toolkit lays them out, from its own code (docs/formats.md says where).

Every layout is a function of two state dicts in torchvision's names, without ``fc``: that of the
encoder to be taken and that of the other one, where the toolkit keeps two.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

State = dict[str, torch.Tensor]
Layout = Callable[[State, State], dict[str, Any]]

HEAD = {"weight": torch.ones(4, 3), "bias": torch.ones(4)}
CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
LIGHTNING = {"pytorch-lightning_version": "2.0.0", "epoch": 1, "loops": {}, "callbacks": {}}


def under(prefix: str, *states: Mapping[str, torch.Tensor]) -> State:
    return {f"{prefix}{name}": value for state in states for name, value in state.items()}


def head(prefix: str) -> State:
    return under(f"{prefix}.", HEAD)


def numbered(state: State) -> State:
    """As nn.Sequential names the children of a ResNet."""
    return {
        f"{CHILDREN.index(name.split('.')[0])}.{name.partition('.')[2]}": value
        for name, value in state.items()
    }


def detectron2(state: State) -> dict[str, np.ndarray]:
    """The names of Detectron2's tools/convert-torchvision-to-d2.py, written once more."""
    out = {}
    for name, value in state.items():
        key = name if "layer" in name else f"stem.{name}"
        for i in (1, 2, 3, 4):
            key = key.replace(f"layer{i}", f"res{i + 1}")
        for i in (1, 2, 3):
            key = key.replace(f"bn{i}", f"conv{i}.norm")
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        out[key] = value.numpy()
    return out


def caffe2(state: State, folded: bool = False) -> dict[str, np.ndarray]:
    """Detectron's blobs. Folded BN has a scale and a shift only."""
    tensors = {"running_mean": "bn_running_mean", "running_var": "bn_running_var"}
    tensors |= {"weight": "bn_gamma", "bias": "bn_beta"}
    if folded:
        tensors = {"weight": "bn_s", "bias": "bn_b"}
    out = {"fc1000_w": np.ones((4, 3), np.float32), "conv1_w_momentum": np.ones(3, np.float32)}
    out["conv1_b"] = np.zeros(8, np.float32)  # Detectron2 has no place for it
    for name, value in state.items():
        *where, layer, tensor = re.sub(r"downsample\.(\d)", r"downsample\1", name).split(".")
        block = "" if not where else f"res{int(where[0][-1]) + 1}_{where[1]}_branch"
        branch = {"1": "2a", "2": "2b", "3": "2c"}[layer[-1]] if layer[-2] != "e" else "1"
        if layer.startswith("downsample"):
            branch = "1"
        prefix = block + branch if block else "conv1"
        if value.ndim == 4:
            out[f"{prefix}_w"] = value.numpy()
        elif tensor in tensors:
            out[f"{prefix if block else 'res_conv1'}_{tensors[tensor]}"] = value.numpy()
    return out


def lightning(**states: Any) -> dict[str, Any]:
    merged: State = {}
    for name, state in states.items():
        merged |= under(f"{name}.", state)
    return LIGHTNING | {"state_dict": merged, "optimizer_states": []}


def moco(q: State, k: State) -> dict[str, Any]:
    state = under("module.encoder_q.", q, head("fc")) | under("module.encoder_k.", k, head("fc"))
    return {"epoch": 9, "arch": "resnet18", "state_dict": state, "optimizer": {}}


def moco_v3(q: State, k: State) -> dict[str, Any]:
    state = under("module.base_encoder.", q, head("fc.0"))
    state |= under("module.momentum_encoder.", k, head("fc.0")) | head("module.predictor.0")
    return {"epoch": 9, "arch": "resnet50", "state_dict": state, "optimizer": {}, "scaler": {}}


def densecl(q: State, k: State) -> dict[str, Any]:
    state = under("encoder_q.0.", q) | under("encoder_k.0.", k) | under("backbone.", q)
    state |= {"queue": torch.ones(2, 2), "queue2": torch.ones(2, 2)}
    return {"meta": {"epoch": 1, "mmcv_version": "1"}, "state_dict": state}


def pixpro(q: State, k: State) -> dict[str, Any]:
    model = under("module.encoder.", q) | under("module.encoder_k.", k) | head("module.projector")
    return {"opt": argparse.Namespace(lr=1.0), "model": model, "optimizer": {}, "epoch": 1}


def swav(q: State, _: State) -> dict[str, Any]:
    state = q | head("projection_head.0") | {"prototypes.weight": torch.ones(2, 2)}
    return {"epoch": 1, "state_dict": under("module.", state), "optimizer": {}}


def dino(q: State, k: State) -> dict[str, Any]:
    student = under("module.backbone.", k) | head("module.head.mlp")
    teacher = under("module.backbone.", q) | head("module.head.mlp")
    return {"student": student, "teacher": teacher, "epoch": 1, "args": argparse.Namespace(lr=1.0)}


def barlow_twins(q: State, _: State) -> dict[str, Any]:
    model = under("module.backbone.", q) | head("module.projector.0")
    model |= {"module.bn.running_mean": torch.ones(4), "module.bn.running_var": torch.ones(4)}
    return {"epoch": 1, "model": model, "optimizer": {}}


def vicreg(q: State, _: State) -> dict[str, Any]:
    model = under("module.backbone.", q) | head("module.projector.0")
    return {"epoch": 1, "model": model, "optimizer": {}}


def byol_yaox12(q: State, k: State) -> dict[str, Any]:
    model = under("module.online_network.encoder.", numbered(q))
    model |= under("module.target_network.encoder.", numbered(k)) | head("module.predictor.l1")
    return {"config": {}, "epoch": 1, "model": model}


def byol_sthalles(q: State, k: State) -> dict[str, Any]:
    return {
        "online_network_state_dict": under("encoder.", numbered(q)) | head("projetion.net.0"),
        "target_network_state_dict": under("encoder.", numbered(k)) | head("projetion.net.0"),
        "optimizer_state_dict": {},
    }


def byol_lucidrains(q: State, k: State) -> dict[str, Any]:
    online = under("online_encoder.net.", q, head("fc")) | under("net.", q, head("fc"))
    return online | under("target_encoder.net.", k, head("fc")) | head("online_predictor.0")


def simsiam(q: State, _: State) -> dict[str, Any]:
    state = under("module.encoder.", q, head("fc.0")) | head("module.predictor.0")
    return {"epoch": 1, "arch": "resnet50", "state_dict": state, "optimizer": {}}


def simclr_sthalles(q: State, _: State) -> dict[str, Any]:
    state = under("backbone.", q, head("fc.0"), head("fc.2"))
    return {"epoch": 1, "arch": "resnet18", "state_dict": state, "optimizer": {}}


def simclr_spijkervet(q: State, _: State) -> dict[str, Any]:
    return under("encoder.", q) | head("projector.0")


def vissl(q: State, _: State) -> dict[str, Any]:
    model = {"trunk": under("_feature_blocks.", q), "heads": head("0.clf.0")}
    base = {"model": model, "meta": {"trunk": {}, "heads": []}}
    return {"phase_idx": 1, "loss": {}, "classy_state_dict": {"base_model": base, "optim": {}}}


def vissl_trunk(q: State, _: State) -> dict[str, Any]:
    return {"model_state_dict": under("_feature_blocks.", q)}


def openmmlab(q: State, k: State) -> dict[str, Any]:
    state = under("backbone.", q) | head("neck.mlp.0") | {"queue": torch.ones(2, 2)}
    state |= under("encoder_k.module.0.", k) | {"encoder_k.steps": torch.tensor(1)}
    return {"meta": {"epoch": 1, "cfg": "model = dict(type='MoCo')\n"}, "state_dict": state}


def openmmlab_caffe(q: State, _: State) -> dict[str, Any]:
    cfg = "model = dict(backbone=dict(style='caffe', type='ResNet'))\n"
    return {"meta": {"cfg": cfg}, "state_dict": under("backbone.", q) | head("head.fc")}


def mmselfsup_extracted(q: State, _: State) -> dict[str, Any]:
    return {"state_dict": q, "author": "MMSelfSup"}


def solo_learn(q: State, k: State) -> dict[str, Any]:
    return lightning(backbone=q, momentum_backbone=k, classifier=HEAD, projector=head("0"))


def solo_learn_old(q: State, k: State) -> dict[str, Any]:
    """BYOL; before version 1.0.3 the backbone was ``encoder``."""
    content = lightning(encoder=q, momentum_encoder=k, classifier=HEAD)
    content["state_dict"] |= head("projector.0") | head("predictor.0")
    return content


def lightly(q: State, k: State) -> dict[str, Any]:
    content = lightning(backbone=numbered(q), backbone_momentum=numbered(k))
    return content | {"hyper_parameters": {}}


def lightly_benchmark(q: State, k: State) -> dict[str, Any]:
    return lightning(backbone=q, key_backbone=k, online_classifier=HEAD)


def lightly_dino(q: State, k: State) -> dict[str, Any]:
    return lightning(teacher_backbone=numbered(q), student_backbone=numbered(k))


def lightly_train(q: State, _: State) -> dict[str, Any]:
    content = lightning(**{"embedding_model.wrapped_model._features": q, "projection_head": HEAD})
    normalize = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.25, 0.2)}
    return content | {"lightly_train": {"version": "0.18", "normalize_args": normalize}}


def lightly_train_dino(q: State, k: State) -> dict[str, Any]:
    """Of timm's ResNet; it also saves the networks themselves, as objects."""
    where = "embedding_model.wrapped_model._model"
    content = lightning(**{f"teacher_{where}": q, f"student_{where}": k, "student_head": HEAD})
    models = {"model": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU())}
    return content | {"lightly_train": {"version": "0.18", "models": models}}


def stable_pretraining_plain(q: State, _: State) -> dict[str, Any]:
    content = lightning(backbone=q, projector=HEAD)
    return content | {"hyper_parameters": {"system.working_dir": "/x"}}


def stable_pretraining(q: State, k: State) -> dict[str, Any]:
    return lightning(**{"backbone.student": k, "backbone.teacher": q, "projector": HEAD})


def timm_checkpoint(q: State, k: State) -> dict[str, Any]:
    rest = {"epoch": 1, "arch": "resnet18", "version": 2, "args": argparse.Namespace(mean=None)}
    return rest | {"state_dict": k | head("fc"), "state_dict_ema": q | head("fc")}


def torchvision_reference(q: State, _: State) -> dict[str, Any]:
    rest = {"optimizer": {}, "lr_scheduler": {}, "epoch": 1, "args": argparse.Namespace(lr=1.0)}
    return rest | {"model": q | head("fc")}


def imagenet_example(q: State, _: State) -> dict[str, Any]:
    state = under("module.", q, head("fc"))
    return {"epoch": 1, "arch": "resnet18", "state_dict": state, "best_acc1": torch.tensor(1.0)}


def detectron2_torchvision(q: State, _: State) -> dict[str, Any]:
    names = detectron2(q | head("fc"))
    return {"model": names, "__author__": "torchvision", "matching_heuristics": True}


# Layout, file name, the format's name, the encoder that is taken, the other encoder.
def transformers(q: State, _: State) -> dict[str, Any]:
    """``ResNetForImageClassification``."""
    out: State = head("classifier.1")
    for name, value in q.items():
        *where, layer, tensor = re.sub(r"downsample\.(\d)", r"downsample\1", name).split(".")
        kind = "convolution" if value.ndim == 4 else "normalization"
        if not where:
            out[f"resnet.embedder.embedder.{kind}.{tensor}"] = value
            continue
        part = "shortcut" if "downsample" in layer else f"layer.{int(layer[-1]) - 1}"
        place = f"stages.{int(where[0][-1]) - 1}.layers.{where[1]}"
        out[f"resnet.encoder.{place}.{part}.{kind}.{tensor}"] = value
    return out


LAYOUTS: tuple[tuple[Layout, str, str, str, str], ...] = (
    (moco, "x.pth.tar", "official MoCo", "query", "key"),
    (moco_v3, "x.pth.tar", "official MoCo v3", "base", "momentum"),
    (densecl, "x.pth", "DenseCL", "query", "key"),
    (lambda q, _: {"state_dict": q, "author": "DenseCL"}, "x.pth", "DenseCL", "", ""),
    (pixpro, "x.pth", "PixPro", "query", "key"),
    (swav, "x.pth.tar", "SwAV", "", ""),
    (lambda q, k: swav(q, k)["state_dict"], "x.pth.tar", "SwAV", "", ""),
    (dino, "x.pth", "DINO", "teacher", "student"),
    (barlow_twins, "x.pth", "Barlow Twins", "", ""),
    (vicreg, "x.pth", "VICReg", "", ""),
    (byol_yaox12, "x.pth.tar", "BYOL", "online", "target"),
    (byol_sthalles, "x.pth", "BYOL", "online", "target"),
    (byol_lucidrains, "x.pt", "BYOL", "online", "target"),
    (simsiam, "x.pth.tar", "SimSiam", "", ""),
    (simclr_sthalles, "x.pth.tar", "SimCLR", "", ""),
    (simclr_spijkervet, "x.tar", "SimCLR", "", ""),
    (vissl, "x.torch", "VISSL", "", ""),
    (vissl_trunk, "x.torch", "VISSL", "", ""),
    (lambda q, _: under("_feature_blocks.", q), "x.torch", "VISSL", "", ""),
    (openmmlab, "x.pth", "OpenMMLab", "backbone", "encoder_k"),
    (openmmlab_caffe, "x.pth", "OpenMMLab, caffe style", "backbone", ""),
    (mmselfsup_extracted, "x.pth", "OpenMMLab", "", ""),
    (solo_learn, "x.ckpt", "solo-learn", "backbone", "momentum"),
    (solo_learn_old, "x.ckpt", "solo-learn", "encoder", "momentum"),
    (lightly, "x.ckpt", "lightly", "backbone", "momentum"),
    (transformers, "x.safetensors", "transformers", "", ""),
    (
        lambda q, k: {n[7:]: v for n, v in transformers(q, k).items() if n.startswith("resnet.")},
        *("x.bin", "transformers", "", ""),
    ),
    (lightly_benchmark, "x.ckpt", "lightly", "backbone", "key"),
    (lightly_dino, "x.ckpt", "lightly", "teacher", "student"),
    (lightly_train, "x.ckpt", "lightly-train", "", ""),
    (lightly_train_dino, "x.ckpt", "lightly-train", "teacher", "student"),
    (stable_pretraining, "x.ckpt", "stable-pretraining", "teacher", "student"),
    (stable_pretraining_plain, "x.ckpt", "stable-pretraining", "", ""),
    (timm_checkpoint, "x.pth.tar", "timm", "ema", "model"),
    (torchvision_reference, "x.pth", "torchvision", "", ""),
    (imagenet_example, "x.pth.tar", "torchvision", "", ""),
    (lambda q, _: q | head("fc"), "x.pth", "torchvision", "", ""),
    (lambda q, _: q | head("fc"), "x.safetensors", "torchvision", "", ""),
    (detectron2_torchvision, "x.pkl", "Detectron2, torchvision", "", ""),
)
