"""In what a run differs from its recipe, and the hash by which two runs are of the same one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fvcore.common.config import CfgNode

from runtime.config import leaves
from transfer.recipe.defaults import default_cfg
from transfer.run.job import Options

# What may differ between the seeds of one comparison, and between machines.
NOT_PART_OF_THE_RECIPE = frozenset(
    (
        *("OUTPUT_DIR", "SEED", "VERSION", "MODEL.WEIGHTS", "MODEL.DEVICE"),
        *("DATALOADER.NUM_WORKERS", "CUDNN_BENCHMARK", "VIS_PERIOD", "SOLVER.CHECKPOINT_PERIOD"),
        *("TEST.EXPECTED_RESULTS", "SOLVER.REFERENCE_WORLD_SIZE"),
    )
)
# What may differ between its arms; the comparison looks at these by themselves.
CONVENTIONS = frozenset(
    ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1")
)


def deviations_from(
    original: dict[str, Any], cfg: CfgNode, stated: set[str], reasons: dict[str, str]
) -> tuple[str, ...]:
    """What differs from the recipe, a line each. What it leaves to the user is no deviation.

    ``original`` are the recipe's own values, ``stated`` the keys that file or user set, ``reasons``
    why a key was changed.
    """
    left_open = {
        key
        for key in (
            *("DATASETS.TRAIN", "DATASETS.TEST", "MODEL.ROI_HEADS.NUM_CLASSES"),
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
        )
        if key not in stated
    }
    return tuple(
        f"{key}: {original[key]!r} -> {value!r}" + (f" ({reasons[key]})" if key in reasons else "")
        for key, value in leaves(cfg)
        if key not in NOT_PART_OF_THE_RECIPE | left_open and original[key] != value
    )


def recipe_hash(cfg: CfgNode, options: Options) -> str:
    """SHA-256 over all keys that decide the result, the same for both engines."""
    keys = {key for key, _ in leaves(default_cfg())} - NOT_PART_OF_THE_RECIPE - CONVENTIONS
    values = {key: value for key, value in leaves(cfg) if key in keys}
    # --batch and its like are seen in the keys that they change
    for name in ("accumulate", "amp_dtype", "voc_metric"):
        if getattr(options, name) != getattr(Options, name):
            values[name] = getattr(options, name)
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode()).hexdigest()
