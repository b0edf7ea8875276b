"""Results and run folders of a comparison that never ran, for the tests of the comparison."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CONVENTIONS = {
    "channel_order": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
    "depth": 50,
    "stem_channels": 64,
    "planes": 64,
    "source_format": "moco",
    "branch": "encoder_q",
    "source_sha256": "ab" * 32,
    "pretraining": {},
}


def module(name: str, loaded: int, initialised: int, frozen: int = 0) -> dict[str, Any]:
    return {
        "module": name,
        "loaded": loaded,
        "initialised": initialised,
        "norm": "SyncBN",
        "trainable": 0 if frozen else (loaded + initialised) // 2,
        "frozen": frozen,
    }


def load_report(random: bool) -> dict[str, Any]:
    sizes = {"stem": 6, "res2": 60, "res3": 78, "res4": 114}
    modules = [
        module(f"backbone.{stage}", 0 if random else size, size if random else 0)
        for stage, size in sizes.items()
    ]
    modules.append(module("roi_heads.res5", 0 if random else 60, 60 if random else 0))
    modules.append(module("roi_heads.res5.norm", 0, 5))
    modules.append(module("proposal_generator", 0, 6))
    modules.append(module("roi_heads.box_predictor", 0, 4))
    return {
        "loaded": sum(entry["loaded"] for entry in modules),
        "initialised": sum(entry["initialised"] for entry in modules),
        "modules": modules,
    }


def make_results(arm: str, seed: int, ap: float, **changes: Any) -> dict[str, Any]:
    """One fair run; ``changes`` replace top-level entries."""
    random = arm == "random"
    digest = hashlib.sha256(arm.encode("utf-8", "surrogatepass")).hexdigest()
    results: dict[str, Any] = {
        "format": 1,
        "arm": arm,
        "seed": seed,
        "engine": "embedded",
        "engine_reason": "detectron2 is not installed",
        "recipe": "transfer/voc_R50_C4.yaml",
        "recipe_hash": "5ec1be" * 10 + "abcd",
        "weights": None
        if random
        else {"path": f"weights/{arm}.pkl", "sha256": digest, "conventions": dict(CONVENTIONS)},
        "load_report": load_report(random),
        "deviations": [],
        "schedule": {
            "iterations": 24000,
            "images_per_batch": 16,
            "base_lr": 0.02,
            "epochs": 23.2,
        },
        "dataset": {
            "train": ["voc_2007_trainval", "voc_2012_trainval"],
            "test": ["voc_2007_test"],
            "train_images": 16551,
            "test_images": 4952,
            "classes": ["RBC", "WBC", "Platelets"],
        },
        "metric": "VOC AP (11-point), mean over IoU 0.50:0.95",
        "metrics": {"bbox": {"AP": ap, "AP50": ap + 25, "AP75": ap + 5}},
        "wall_time_s": 3723.4,
        "precision": "float32",
        "peak_memory_mb": 12345.6,
        "hardware": {"device": "cuda", "gpu": "NVIDIA H100 80GB", "gpus": 8},
        "versions": {"python": "3.11.9", "torch": "2.14.1", "torchvision": "0.29.1"},
        "finished": "2026-03-01T12:00:00+00:00",
    }
    return {**results, **changes}


def fair_results() -> list[dict[str, Any]]:
    """Three arms, three seeds, nothing to complain about."""
    aps = {
        "random": (33.5, 34.1, 33.8),
        "supervised": (53.3, 53.6, 53.8),
        "moco": (55.6, 56.05, 56.35),
    }
    return [make_results(arm, seed, aps[arm][seed - 1]) for seed in (1, 2, 3) for arm in aps]


def write_run(folder: Path, results: dict[str, Any], **files: Any) -> None:
    """A run folder: ``results.json``, and optionally ``metrics`` and ``detections``."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    if "metrics" in files:
        lines = "".join(json.dumps(line) + "\n" for line in files["metrics"])
        (folder / "metrics.json").write_text(lines)
    if "detections" in files:
        (folder / "inference").mkdir()
        path = folder / "inference" / "coco_instances_results.json"
        path.write_text(json.dumps(files["detections"]))
