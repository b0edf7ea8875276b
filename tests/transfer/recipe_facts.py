"""What the sources state of each shipped recipe, in one place.

The page docs/recipes.md is made from it by ``make_recipes_doc.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

from facts import Fact, facts

# Sources. The text of the paper is that of the arXiv version with 24k iterations on VOC.
PAPER = "MoCo v1 paper"
OFFICIAL = "official MoCo configs (3b42c2a)"
D2 = "Detectron2 (02b5c4e)"
DETCO = "DetCo configs"
NOT_STATED = "not stated anywhere"

VOC_SIZES = tuple(range(480, 801, 32))
COCO_SIZES = tuple(range(640, 801, 32))
MEAN, STD = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375]
STAGES = ["res2", "res3", "res4", "res5"]


ALL = "voc coco lvis cityscapes keypoint custom"
PUBLISHED = "voc coco lvis keypoint"
FACTS: list[Fact] = [
    *facts(
        ALL,
        f"{PAPER}, section 4.2: tuned end to end, BN trained and synchronised; {OFFICIAL}",
        MODEL__META_ARCHITECTURE="GeneralizedRCNN",
        MODEL__BACKBONE__FREEZE_AT=0,
        MODEL__RESNETS__NORM="SyncBN",
        TEST__PRECISE_BN__ENABLED=True,
        SOLVER__WEIGHT_DECAY=0.0001,
        SOLVER__MOMENTUM=0.9,
    ),
    *facts(
        ALL,
        f"{OFFICIAL}: the conventions of torchvision-style weights",
        MODEL__PIXEL_MEAN=MEAN,
        MODEL__PIXEL_STD=STD,
        MODEL__RESNETS__STRIDE_IN_1X1=False,
        INPUT__FORMAT="RGB",
    ),
    *facts(PUBLISHED, OFFICIAL, SOLVER__IMS_PER_BATCH=16, SOLVER__BASE_LR=0.02),
    *facts(f"{PUBLISHED} cityscapes", PAPER, MODEL__RESNETS__DEPTH=50),
    *facts(
        "_C4",
        f"{PAPER}, appendix A.1; {OFFICIAL}",
        MODEL__ROI_HEADS__NAME="Res5ROIHeadsExtraNorm",
        MODEL__RPN__PRE_NMS_TOPK_TEST=6000,
        MODEL__RPN__POST_NMS_TOPK_TEST=1000,
    ),
    *facts(
        "_DC5",
        f"{PAPER}, appendix A.1: res5 dilated, 3x3 convolution with BN to 512, two hidden layers",
        MODEL__BACKBONE__NAME="build_resnet_dc5_backbone",
        MODEL__RESNETS__RES5_DILATION=2,
        MODEL__ROI_BOX_HEAD__NUM_FC=2,
    ),
    *facts(
        "_DC5",
        f"{D2}, Base-RCNN-DilatedC5.yaml",
        MODEL__RESNETS__OUT_FEATURES=["res5"],
        MODEL__RPN__PRE_NMS_TOPK_TEST=6000,
        MODEL__RPN__POST_NMS_TOPK_TEST=1000,
        MODEL__ROI_HEADS__NAME="StandardROIHeads",
        MODEL__ROI_BOX_HEAD__NAME="FastRCNNConvFCHead",
        MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION=7,
        MODEL__ROI_BOX_HEAD__FC_DIM=1024,
        MODEL__ROI_MASK_HEAD__NAME="MaskRCNNConvUpsampleHead",
        MODEL__ROI_MASK_HEAD__NUM_CONV=4,
        MODEL__ROI_MASK_HEAD__POOLER_RESOLUTION=14,
    ),
    *facts(
        "_DC5",
        "this project: the name of the new map",
        MODEL__RPN__IN_FEATURES=["dc5"],
        MODEL__ROI_HEADS__IN_FEATURES=["dc5"],
    ),
    *facts("_FPN", f"{PAPER}, section 4.2; moco issue 34", MODEL__FPN__NORM="SyncBN"),
    *facts(
        "_FPN",
        f"{D2}, Base-RCNN-FPN.yaml",
        MODEL__BACKBONE__NAME="build_resnet_fpn_backbone",
        MODEL__RESNETS__OUT_FEATURES=STAGES,
        MODEL__FPN__IN_FEATURES=STAGES,
        MODEL__ANCHOR_GENERATOR__SIZES=[[32], [64], [128], [256], [512]],
        MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS=[[0.5, 1.0, 2.0]],
        MODEL__RPN__IN_FEATURES=["p2", "p3", "p4", "p5", "p6"],
        MODEL__RPN__PRE_NMS_TOPK_TRAIN=2000,
        MODEL__RPN__PRE_NMS_TOPK_TEST=1000,
        MODEL__RPN__POST_NMS_TOPK_TEST=1000,
        MODEL__ROI_HEADS__NAME="StandardROIHeads",
        MODEL__ROI_HEADS__IN_FEATURES=["p2", "p3", "p4", "p5"],
        MODEL__ROI_BOX_HEAD__NAME="FastRCNNConvFCHead",
        MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION=7,
        MODEL__ROI_MASK_HEAD__NAME="MaskRCNNConvUpsampleHead",
        MODEL__ROI_MASK_HEAD__NUM_CONV=4,
        MODEL__ROI_MASK_HEAD__POOLER_RESOLUTION=14,
    ),
    *facts(
        "coco_R50_FPN lvis cityscapes custom_R50_FPN custom_R18",
        f"{D2}, Base-RCNN-FPN.yaml",
        MODEL__RPN__POST_NMS_TOPK_TRAIN=1000,
    ),
    *facts(
        "FPN_1x! FPN_2x! FPN_6x! FPN_12k! cityscapes custom_R50_FPN custom_R18",
        "moco issue 34: box and mask heads unchanged, without norm",
        MODEL__ROI_BOX_HEAD__NUM_CONV=0,
        MODEL__ROI_BOX_HEAD__NUM_FC=2,
        MODEL__ROI_BOX_HEAD__NORM="",
        MODEL__ROI_MASK_HEAD__NORM="",
    ),
    *facts(
        "4conv1fc",
        "configs of PyContrast (InfoMin), PixPro and DenseCL",
        MODEL__ROI_BOX_HEAD__NUM_CONV=4,
        MODEL__ROI_BOX_HEAD__NUM_FC=1,
        MODEL__ROI_BOX_HEAD__NORM="SyncBN",
        MODEL__ROI_MASK_HEAD__NORM="SyncBN",
    ),
    *facts(
        "voc",
        f"{PAPER}, section 4.2; {OFFICIAL}",
        MODEL__ROI_HEADS__NUM_CLASSES=20,
        INPUT__MIN_SIZE_TRAIN=VOC_SIZES,
        INPUT__MIN_SIZE_TEST=800,
        DATASETS__TEST=("voc_2007_test",),
    ),
    *facts("voc", OFFICIAL, SOLVER__WARMUP_ITERS=100),
    *facts(
        "voc_R50",
        f"{PAPER}, table 2; milestones: {OFFICIAL}",
        DATASETS__TRAIN=("voc_2007_trainval", "voc_2012_trainval"),
        SOLVER__MAX_ITER=24000,
        SOLVER__STEPS=(18000, 22000),
    ),
    *facts(
        "voc07",
        f"{PAPER}, table 4",
        DATASETS__TRAIN=("voc_2007_trainval",),
        SOLVER__MAX_ITER=9000,
    ),
    *facts("voc07", f"{NOT_STATED}: in proportion to 24k", SOLVER__STEPS=(6750, 8250)),
    *facts(
        "coco",
        f"{PAPER}, section 4.2; {OFFICIAL}; {D2}",
        MODEL__MASK_ON=True,
        INPUT__MIN_SIZE_TRAIN=COCO_SIZES,
        INPUT__MIN_SIZE_TEST=800,
        DATASETS__TRAIN=("coco_2017_train",),
        DATASETS__TEST=("coco_2017_val",),
        SOLVER__WARMUP_ITERS=1000,
    ),
    *facts(
        "coco_R50_C4_1x coco_R50_FPN_1x",
        f"{PAPER}, table 5; {D2}, 1x",
        SOLVER__MAX_ITER=90000,
        SOLVER__STEPS=(60000, 80000),
    ),
    *facts(
        "coco_R50_C4_2x coco_R50_FPN_2x",
        f"{PAPER}, table 5; {OFFICIAL}",
        SOLVER__MAX_ITER=180000,
        SOLVER__STEPS=(120000, 160000),
    ),
    *facts("6x", f"{PAPER}, appendix A.8: about 72 epochs", SOLVER__MAX_ITER=540000),
    *facts(
        "6x",
        f"not stated in the paper; PyContrast and {D2} for 6x",
        SOLVER__STEPS=(480000, 520000),
    ),
    *facts("12k", DETCO, SOLVER__MAX_ITER=12000, SOLVER__STEPS=(9000, 11000)),
    *facts(
        "lvis",
        f"{D2}, LVIS recipes",
        MODEL__MASK_ON=True,
        MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0001,
        TEST__DETECTIONS_PER_IMAGE=300,
        DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler",
        DATALOADER__REPEAT_THRESHOLD=0.001,
        INPUT__MIN_SIZE_TRAIN=COCO_SIZES,
        INPUT__MIN_SIZE_TEST=800,
        SOLVER__WARMUP_ITERS=1000,
    ),
    *facts(
        "lvis05",
        f"{PAPER}, appendix A.4",
        MODEL__ROI_HEADS__NUM_CLASSES=1230,
        DATASETS__TRAIN=("lvis_v0.5_train",),
        DATASETS__TEST=("lvis_v0.5_val",),
    ),
    *facts("lvis05_R50_FPN_1x", D2, SOLVER__MAX_ITER=90000, SOLVER__STEPS=(60000, 80000)),
    *facts(
        "lvis05_R50_FPN_2x lvis1",
        f"{D2}, 2x; its LVIS v1 recipe",
        SOLVER__MAX_ITER=180000,
        SOLVER__STEPS=(120000, 160000),
    ),
    *facts(
        "lvis1",
        D2,
        MODEL__ROI_HEADS__NUM_CLASSES=1203,
        DATASETS__TRAIN=("lvis_v1_train",),
        DATASETS__TEST=("lvis_v1_val",),
    ),
    *facts(
        "cityscapes",
        f"not stated in the paper; {D2} and {DETCO}",
        MODEL__MASK_ON=True,
        MODEL__ROI_HEADS__NUM_CLASSES=8,
        INPUT__MIN_SIZE_TRAIN=tuple(range(800, 1025, 32)),
        INPUT__MIN_SIZE_TEST=1024,
        INPUT__MAX_SIZE_TRAIN=2048,
        INPUT__MAX_SIZE_TEST=2048,
        DATASETS__TRAIN=("cityscapes_fine_instance_seg_train",),
        DATASETS__TEST=("cityscapes_fine_instance_seg_val",),
        SOLVER__IMS_PER_BATCH=8,
        SOLVER__BASE_LR=0.01,
        SOLVER__MAX_ITER=24000,
        SOLVER__STEPS=(18000,),
        SOLVER__WARMUP_ITERS=1000,
        TEST__EVAL_PERIOD=8000,
    ),
    *facts(
        "keypoint",
        f"{D2}, Base-Keypoint-RCNN-FPN.yaml",
        MODEL__ROI_HEADS__NUM_CLASSES=1,
        MODEL__ROI_BOX_HEAD__SMOOTH_L1_BETA=0.5,
        MODEL__RPN__POST_NMS_TOPK_TRAIN=1500,
        INPUT__MIN_SIZE_TRAIN=COCO_SIZES,
        INPUT__MIN_SIZE_TEST=800,
        SOLVER__WARMUP_ITERS=1000,
    ),
    *facts(
        "keypoint",
        f"{PAPER}, appendix A.2; milestones: {DETCO}",
        MODEL__KEYPOINT_ON=True,
        DATASETS__TRAIN=("keypoints_coco_2017_train",),
        DATASETS__TEST=("keypoints_coco_2017_val",),
        SOLVER__MAX_ITER=180000,
        SOLVER__STEPS=(120000, 160000),
    ),
]

# AP of random / supervised / MoCo v1 (IN-1M) initialisation; box, then mask where it is measured.
FIGURES: dict[str, tuple[str, str]] = {
    "voc_R50_C4": ("AP 33.8 / 53.5 / 55.9", f"{PAPER}, table 2; mean of 5"),
    "voc_R50_DC5": ("AP 37.9 / 54.0 / 54.6", f"{PAPER}, table 2; mean of 5"),
    "voc07_R50_C4": ("AP 16.8 / 42.4 / 46.6", f"{PAPER}, table 4; random: SimSiam, table 5"),
    "coco_R50_C4_1x": (
        "box 26.4 / 38.2 / 38.5, mask 29.3 / 33.3 / 33.6",
        f"{PAPER}, table 5 (the mask AP of random is printed so)",
    ),
    "coco_R50_C4_2x": ("box 35.6 / 40.0 / 40.7, mask 31.4 / 34.7 / 35.4", f"{PAPER}, table 5"),
    "coco_R50_FPN_1x": ("box 31.0 / 38.9 / 38.5, mask 28.5 / 35.4 / 35.1", f"{PAPER}, table 5"),
    "coco_R50_FPN_2x": ("box 36.7 / 40.6 / 40.8, mask 33.7 / 36.8 / 36.9", f"{PAPER}, table 5"),
    "coco_R50_FPN_6x": ("box 41.4 / 41.9 / 42.3, mask 37.6 / 38.0 / 38.3", f"{PAPER}, table A.1"),
    "coco_R50_C4_12k": ("box 7.9 / 27.1 / 26.9, mask 7.6 / 24.7 / 24.6", "DetCo"),
    "coco_R50_FPN_12k": ("box 10.7 / 28.4 / 25.6, mask 10.3 / 26.4 / 23.9", "DetCo"),
    "coco_R50_FPN_1x_4conv1fc": (
        "box 32.8 / 39.7 / 39.4, mask 29.9 / 35.9 / 35.6",
        "PyContrast (InfoMin)",
    ),
    "coco_R50_FPN_2x_4conv1fc": (
        "box 38.4 / 41.6 / 41.7, mask 34.7 / 37.6 / 37.5",
        "PyContrast (InfoMin)",
    ),
    "lvis05_R50_FPN_1x": ("mask - / 23.5 / 23.2", f"{PAPER}, LVIS ablation; mean of 5"),
    "lvis05_R50_FPN_2x": (
        "mask 22.5 / 23.2 / 24.1",
        f"{PAPER}, table 6 and LVIS ablation; 24.4 supervised with frozen BN",
    ),
    "cityscapes_R50_FPN": ("mask 25.4 / 32.9 / 32.3", f"{PAPER}, table 6"),
    "keypoint_R50_FPN_2x": ("keypoints 65.9 / 65.8 / 66.8", f"{PAPER}, table 6"),
}


def facts_of(recipe: str) -> Iterator[Fact]:
    """The facts that concern ``recipe``; a part that ends in ``!`` must end its name."""
    for fact in FACTS:
        if any(recipe.endswith(p[:-1]) if p[-1] == "!" else p in recipe for p in fact.recipes):
            yield fact
