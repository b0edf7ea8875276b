"""Values that the embedded engine implements, for the keys that take one of a few."""

from __future__ import annotations

from collections.abc import Iterator

from fvcore.common.config import CfgNode

_NORMS = ("", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN")
_POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool")
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")

CHOICES: dict[str, tuple[object, ...]] = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.BACKBONE.NAME": ("build_resnet_backbone", "build_resnet_fpn_backbone"),
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
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR",),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
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
    if head == "StandardROIHeads" and not cfg.MODEL.ROI_BOX_HEAD.NAME:
        yield (
            "MODEL.ROI_BOX_HEAD.NAME is empty, but StandardROIHeads needs a box head: "
            "set it to FastRCNNConvFCHead"
        )
    if head != "StandardROIHeads" and cfg.MODEL.KEYPOINT_ON:
        yield f"MODEL.KEYPOINT_ON needs StandardROIHeads: {head} has no keypoint branch"
    if len(cfg.MODEL.PIXEL_MEAN) != len(cfg.MODEL.PIXEL_STD):
        yield "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD need one number a channel each"
