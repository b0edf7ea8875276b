"""The pretraining recipe: every key, its default, and what it means.

What a value may be is said in ``pretrain/checks.py``.

Defaults are MoCo v1 as published (section 4.1 of the paper and the official code).
"""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from pretrain.source.shard_cache import DEFAULT_GIB
from pretrain.views import ViewRecipe
from runtime.config import leaves, merge, set_value
from runtime.urls import shown

# Keys that may differ between a run and its continuation: where and how, never what.
NOT_PART_OF_THE_RECIPE = (
    *("OUTPUT_DIR", "DEVICE", "LOG_PERIOD"),
    *("DATA.ROOT", "DATA.NUM_WORKERS", "DATA.MAX_UNREADABLE"),
    *("DATA.SHARD_CACHE", "DATA.SHARD_CACHE_GIB"),
    *("SOLVER.ACCUMULATE", "SOLVER.COMPILE"),
    *("CHECKPOINT_PERIOD", "CHECKPOINT_STEPS", "CHECKPOINT_KEEP", "CHECKPOINT_KEEP_PERIOD"),
    *("MONITOR.PERIOD", "MONITOR.KNN_DATA", "MONITOR.RETRIEVAL_DATA"),
)


def default_cfg() -> CfgNode:
    """A new configuration with every key at its default."""
    return CfgNode(
        {
            "METHOD": "moco",  # moco, or supervised (cross-entropy on one sub-folder a class)
            "MODEL": {
                "ARCH": "resnet50",
                "INIT": "",  # checkpoint to go on from, any that tools/convert_to_d2.py reads
                "DIM": 128,  # of the output, L2-normalised
                "MLP": False,  # MoCo v2's two-layer head
                "DICTIONARY": "queue",  # or the paper's ablations: memory_bank, end_to_end
                "QUEUE_SIZE": 65536,  # K; of a memory bank: its sample; end_to_end: the batch
                "MOMENTUM": 0.999,  # of the key encoder; of a memory bank: of an image's entry
                "TEMPERATURE": 0.07,
                "BN_GROUP_SIZE": 32,  # images that share BN statistics (8 GPUs at batch 256)
                "RUNNING_STATS": "mean",  # over the BN groups, or "first": as official (rank 0's)
                "SHUFFLE_BN": True,  # False only to show how BN then betrays the positive key
            },
            "DATA": {
                "ROOT": "",
                "PIPELINE": "fast",  # how views are made; see pretrain/augment
                # In how many images shards are shuffled, read in the order of their bytes, for
                # disks with slow random access; 0: each epoch shuffles all images. Only for shards
                # whose images are mixed, as tools/make_shards.py makes them
                "SHUFFLE_WINDOW": 0,
                "NUM_WORKERS": -1,  # processes that make views; -1: one a core, at most 16
                # Shards behind a URL: the folder where they are kept ("": in the user's cache), and
                # how much of them, in GiB
                "SHARD_CACHE": "",
                "SHARD_CACHE_GIB": DEFAULT_GIB,
                # Share of unreadable images that stops the run, but at least 3 may be; 0: none may
                "MAX_UNREADABLE": 0.001,
            },
            "VIEWS": {
                "CROP_SIZE": 224,
                "CROP_SCALE": [0.2, 1.0],
                "JITTER": [0.4, 0.4, 0.4, 0.4],  # brightness, contrast, saturation, hue
                "JITTER_PROB": 1.0,
                "GRAYSCALE_PROB": 0.2,
                "GRAYSCALE_FIRST": True,  # v1: before the jitter; v2: after it
                "BLUR_PROB": 0.0,
                "BLUR_SIGMA": [0.1, 2.0],
                "FLIP_PROB": 0.5,
            },
            "SOLVER": {
                "BATCH_SIZE": 256,  # of all processes together
                "ACCUMULATE": 1,  # parts in which each process passes its share, to save memory
                "BASE_LR": 0.03,
                "SCHEDULE": "multistep",  # cosine or exponential; the rate changes once an epoch
                "MILESTONES": [120, 160],  # of multistep: epochs
                "DECAY_PERIOD": 1,  # of exponential: epochs
                "GAMMA": 0.1,  # of multistep and exponential
                "WARMUP_STEPS": 0,  # linear rise; the papers have none, short runs need some
                "MOMENTUM": 0.9,
                "WEIGHT_DECAY": 0.0001,  # of all parameters, BN and biases too
                "EPOCHS": 200,
                # Above 0: the run's length, instead of EPOCHS; MILESTONES and DECAY_PERIOD are
                # steps, and the rate changes with every step.
                "MAX_STEPS": 0,
                "AMP": "",  # bf16: the encoders in mixed precision
                "COMPILE": False,  # torch.compile of the encoders: minutes at the start
            },
            "MONITOR": {  # measured beside the training, which it does not change
                "PERIOD": 1,  # epochs between measurements
                "KNN_DATA": "",  # class folders of labelled images, or train/ and val/ of such
                "RETRIEVAL_DATA": "",  # images without labels, best none that are trained on
            },
            "CHECKPOINT_PERIOD": 1,  # epochs between checkpoints
            "CHECKPOINT_STEPS": 0,  # also after every so many steps; 0: only at ends of epochs
            "CHECKPOINT_KEEP": 3,  # the newest ones stay, and the final one; 0: all stay
            "CHECKPOINT_KEEP_PERIOD": 0,  # every so many epochs, one stays for good; 0: none
            "LOG_PERIOD": 20,  # steps between log lines
            "SEED": 0,
            "DEVICE": "auto",  # cuda where there is one
            "OUTPUT_DIR": "",
        }
    )


def load_cfg(path: str, overrides: Sequence[str]) -> CfgNode:
    """The recipe in the file ``path`` with KEY VALUE overrides. InputError for a wrong key."""
    cfg = default_cfg()
    merge(path, overrides, cfg)
    return cfg


def without_credentials(cfg: CfgNode) -> CfgNode:
    """A copy whose URLs have none, for files and logs."""
    copy = cfg.clone()
    for key, value in leaves(cfg):
        if isinstance(value, str):
            set_value(copy, key, shown(value))
    return copy


def view_recipe(cfg: CfgNode) -> ViewRecipe:
    """The recipe of the views, from the keys ``VIEWS.*``."""
    views = cfg.VIEWS
    return ViewRecipe(
        crop_size=views.CROP_SIZE,
        crop_scale=tuple(views.CROP_SCALE),
        jitter=tuple(views.JITTER),
        jitter_prob=views.JITTER_PROB,
        grayscale_prob=views.GRAYSCALE_PROB,
        grayscale_first=views.GRAYSCALE_FIRST,
        blur_prob=views.BLUR_PROB,
        blur_sigma=tuple(views.BLUR_SIGMA),
        flip_prob=views.FLIP_PROB,
    )
