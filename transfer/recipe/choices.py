"""Values that the embedded engine implements, for the keys that take one of a few."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from fvcore.common.config import CfgNode

from runtime.config import get

_NORMS = ("", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN", "LN")
_POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool")
# The MoCo paper's dilated-C5, a backbone of ours in both engines.
DC5_NAME = "build_resnet_dc5_backbone"
DC5_CHANNELS = 512
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")

CHOICES: dict[str, tuple[object, ...]] = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.BACKBONE.NAME": ("build_resnet_backbone", "build_resnet_fpn_backbone", DC5_NAME),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": _NORMS,
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_HEADS.NAME": ("Res5ROIHeads", "Res5ROIHeadsExtraNorm", "StandardROIHeads"),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "FastRCNNConvFCHead"),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_BOX_HEAD.NORM": _NORMS,
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_MASK_HEAD.NORM": _NORMS,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ("KRCNNConvDeconvUpsampleHead",),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": _POOLERS,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
}

# All that Detectron2 has, so both engines.
SOLVER_CHOICES: dict[str, tuple[str, ...]] = {
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
}


def contradictions(cfg: CfgNode) -> Iterator[str]:
    """What is wrong with keys that are fine one by one, a line each; Detectron2 refuses it too."""
    resnet, head = cfg.MODEL.RESNETS, cfg.MODEL.ROI_HEADS.NAME
    if resnet.DEPTH < 50:
        if resnet.RES2_OUT_CHANNELS != resnet.STEM_OUT_CHANNELS:
            yield (
                f"MODEL.RESNETS.DEPTH {resnet.DEPTH} needs RES2_OUT_CHANNELS equal to "
                f"STEM_OUT_CHANNELS, got {resnet.RES2_OUT_CHANNELS} and "
                f"{resnet.STEM_OUT_CHANNELS}; the standard net has 64 for both"
            )
        if resnet.RES5_DILATION != 1 or resnet.NUM_GROUPS != 1:
            yield (
                f"MODEL.RESNETS.DEPTH {resnet.DEPTH} has neither dilation nor groups: "
                "set RES5_DILATION 1 and NUM_GROUPS 1, or DEPTH 50 or more"
            )
    yield from dc5_contradictions(cfg)
    if head == "StandardROIHeads" and not cfg.MODEL.ROI_BOX_HEAD.NAME:
        yield (
            "MODEL.ROI_BOX_HEAD.NAME is empty, but StandardROIHeads needs a box head: "
            "set it to FastRCNNConvFCHead"
        )
    if head != "StandardROIHeads" and cfg.MODEL.KEYPOINT_ON:
        yield f"MODEL.KEYPOINT_ON needs StandardROIHeads: {head} has no keypoint branch"
    if len(cfg.MODEL.PIXEL_MEAN) != len(cfg.MODEL.PIXEL_STD):
        yield "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD need one number a channel each"
    yield from solver_contradictions(cfg)


def solver_contradictions(cfg: CfgNode) -> Iterator[str]:
    """What neither engine can train with, a line each."""
    for key, allowed in SOLVER_CHOICES.items():
        if (value := get(cfg, key)) not in allowed:
            yield f"{key} {value!r} is unknown: choose from {', '.join(map(repr, allowed))}"
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        if not 0 <= solver.BASE_LR_END <= solver.BASE_LR or not solver.BASE_LR:
            yield (
                f"SOLVER.BASE_LR_END {solver.BASE_LR_END} must be from 0 to SOLVER.BASE_LR "
                f"{solver.BASE_LR}, which must not be 0: the cosine falls from one to the other"
            )
    elif solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
        if not 0 < solver.NUM_DECAYS < solver.MAX_ITER or solver.GAMMA <= 0:
            yield (
                f"SOLVER.NUM_DECAYS {solver.NUM_DECAYS} and SOLVER.GAMMA {solver.GAMMA}: "
                "WarmupStepWithFixedGammaLR needs from 1 decay to MAX_ITER - 1, by a positive "
                "factor"
            )
    elif not all(a < b for a, b in pairwise((0, *solver.STEPS))) or solver.MAX_ITER in solver.STEPS:
        yield (
            f"SOLVER.STEPS {tuple(solver.STEPS)} must rise from more than 0, and a step at "
            f"MAX_ITER {solver.MAX_ITER} itself is not defined: leave it out"
        )
    if clip.ENABLED and not clip.CLIP_VALUE > 0:
        yield f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE {clip.CLIP_VALUE} must be more than 0"
    if solver.NESTEROV and not solver.MOMENTUM > 0:
        yield "SOLVER.NESTEROV needs SOLVER.MOMENTUM more than 0"


def dc5_contradictions(cfg: CfgNode) -> Iterator[str]:
    """What is wrong with a recipe for the paper's dilated-C5, in either engine."""
    if cfg.MODEL.BACKBONE.NAME == DC5_NAME and "res5" not in cfg.MODEL.RESNETS.OUT_FEATURES:
        yield (
            f"MODEL.RESNETS.OUT_FEATURES is {list(cfg.MODEL.RESNETS.OUT_FEATURES)}, but {DC5_NAME} "
            "builds on res5: name it there"
        )
