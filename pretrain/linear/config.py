"""The recipe of a linear evaluation or fine-tuning: every key, its default, and what it means.

Defaults are the linear protocol of MoCo (section 4.1) and, where the paper is silent, of its
official code (``main_lincls.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from pretrain.checks import RULES, Rule
from pretrain.source.images import ImageSource
from pretrain.source.shard_cache import DEFAULT_GIB
from pretrain.views import ViewRecipe
from runtime.config import merge
from runtime.errors import InputError

# Keys that may differ between a run and its continuation: where and how, never what.
NOT_PART_OF_THE_RECIPE = (
    *("WEIGHTS", "DATA.TRAIN", "DATA.TEST", "DATA.NUM_WORKERS"),  # their contents are compared
    *("DATA.SHARD_CACHE", "DATA.SHARD_CACHE_GIB"),
    *("OUTPUT_DIR", "DEVICE", "LOG_PERIOD"),
)
RANDOM = "random"  # as WEIGHTS: the control arm

LINEAR_RULES = RULES | {  # what a value may be; most keys are those of pretraining
    "MODE": Rule("be linear or finetune", lambda value: value in ("linear", "finetune")),
    "WEIGHTS": Rule("name a checkpoint, or be random for the control arm", bool),
    "DATA.TRAIN": RULES["DATA.ROOT"],
    "DATA.TEST": RULES["DATA.ROOT"],
    "DATA.ALLOW_SEEN": RULES["DATA.ROOT"],
    "KNN.K": Rule("be at least 0", lambda value: value >= 0),
    "KNN.TEMPERATURE": RULES["MODEL.TEMPERATURE"],
}


def default_cfg() -> CfgNode:
    """A new configuration with every key at its default."""
    return CfgNode(
        {
            "MODE": "linear",  # on frozen features; or finetune: every layer is trained
            "WEIGHTS": "",  # any checkpoint that tools/convert_to_d2.py reads, or random
            "MODEL": {"ARCH": ""},  # read off the checkpoint; needed for random weights only
            "DATA": {
                "TRAIN": "",  # one sub-folder a class, or another source with labels
                "TEST": "",  # the same classes, other images
                "PIPELINE": "fast",  # how training views are made; see pretrain/augment
                "ALLOW_SEEN": False,  # test on images of the pretraining, which is too easy
                "NUM_WORKERS": -1,  # -1: one a core, at most 16
                "SHARD_CACHE": "",  # of shards behind URLs; "": in the user's cache
                "SHARD_CACHE_GIB": DEFAULT_GIB,
            },
            "VIEWS": {
                "CROP_SIZE": 224,  # tests: short side CROP_SIZE * 8 / 7 (256), central crop
                "CROP_SCALE": [0.08, 1.0],  # share of the area of training crops
                "FLIP_PROB": 0.5,
            },
            "SOLVER": {
                "BATCH_SIZE": 256,  # of all processes together
                "BASE_LR": 30.0,
                "MILESTONES": [60, 80],  # epochs
                "GAMMA": 0.1,
                "MOMENTUM": 0.9,
                "WEIGHT_DECAY": 0.0,
                "EPOCHS": 100,
            },
            "KNN": {"K": 20, "TEMPERATURE": 0.07},  # K 0: no kNN; Wu et al. take 200 on ImageNet
            "LOG_PERIOD": 20,  # steps between log lines
            "SEED": 0,
            "DEVICE": "auto",  # cuda where there is one
            "OUTPUT_DIR": "",
        }
    )


def load_cfg(path: str, weights: str, overrides: Sequence[str]) -> CfgNode:
    """The recipe in the file ``path`` with KEY VALUE overrides, for ``weights``.

    InputError for a wrong key.
    """
    cfg = default_cfg()
    merge(path, overrides, cfg)
    cfg.WEIGHTS = weights
    return cfg


def view_recipe(cfg: CfgNode) -> ViewRecipe:
    """Training views: random resized crop and flip, nothing else."""
    return ViewRecipe(
        crop_size=cfg.VIEWS.CROP_SIZE,
        crop_scale=tuple(cfg.VIEWS.CROP_SCALE),
        flip_prob=cfg.VIEWS.FLIP_PROB,
        jitter_prob=0.0,
        grayscale_prob=0.0,
        blur_prob=0.0,
    )


def check(cfg: CfgNode, train: ImageSource, world_size: int) -> None:
    """Refuse a recipe that does not fit the images or the processes. One line each."""
    batch = cfg.SOLVER.BATCH_SIZE
    train.check_any_order("training on DATA.TRAIN")
    if batch > len(train.files):
        raise InputError(
            f"SOLVER.BATCH_SIZE {batch} exceeds the {len(train.files)} images of "
            f"{train.place!r}: lower it"
        )
    if batch % world_size:
        raise InputError(f"SOLVER.BATCH_SIZE {batch} does not divide into {world_size} processes")
