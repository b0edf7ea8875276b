"""Generated data sets for the tests of reading, mapping and evaluating."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fvcore.common.config import CfgNode
from PIL import Image
from pycocotools import mask as mask_util

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real sample data is not here")

CFG: dict[str, Any] = {
    "SEED": 5,
    "INPUT": {
        "MIN_SIZE_TRAIN": (32, 40, 48),
        "MIN_SIZE_TRAIN_SAMPLING": "choice",
        "MAX_SIZE_TRAIN": 60,
        "MIN_SIZE_TEST": 40,
        "MAX_SIZE_TEST": 60,
        "RANDOM_FLIP": "horizontal",
        "FORMAT": "BGR",
        "MASK_FORMAT": "polygon",
    },
    "MODEL": {"MASK_ON": False},
    "DATASETS": {"TRAIN": ()},
    "DATALOADER": {
        "FILTER_EMPTY_ANNOTATIONS": True,
        "ASPECT_RATIO_GROUPING": True,
        "SAMPLER_TRAIN": "TrainingSampler",
        "REPEAT_THRESHOLD": 0.0,
        "REPEAT_SQRT": True,
        "NUM_WORKERS": 0,
    },
    "SOLVER": {"IMS_PER_BATCH": 4},
}


def make_cfg(*overrides: Any) -> CfgNode:
    """A small recipe; ``overrides`` are keys and values in turn."""
    cfg = CfgNode(CFG)
    cfg.merge_from_list(list(overrides))
    return cfg


def write_image(path: Path, width: int, height: int, seed: int = 0) -> None:
    """A photo-like picture: noise of few waves, so that resizing it matters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path)


def voc_object(name: str, box: tuple[Any, ...], difficult: int | None = 0) -> str:
    """One <object>; ``box`` as in the file: xmin, ymin, xmax, ymax counted from 1."""
    edges = "".join(
        f"<{edge}>{value}</{edge}>"
        for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    rest = "<pose>Left</pose><truncated>0</truncated>"
    hard = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{rest}{hard}<bndbox>{edges}</bndbox></object>"


def write_voc(
    folder: Path, images: dict[str, tuple[int, int, list[str]]], split: str = "train"
) -> Path:
    """``images``: id -> (width, height, objects). Returns ``folder``."""
    for seed, (image_id, (width, height, objects)) in enumerate(images.items()):
        write_image(folder / "JPEGImages" / f"{image_id}.jpg", width, height, seed)
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        path = folder / "Annotations" / f"{image_id}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
    listing = folder / "ImageSets/Main" / f"{split}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("\n".join(images) + "\n")
    return folder


def random_voc(folder: Path, classes: list[str], images: int = 12, seed: int = 0) -> Path:
    """A VOC data set with boxes of all sizes, some of them difficult."""
    rng = np.random.default_rng(seed)
    content = {}
    for i in range(images):
        width, height = (int(v) for v in rng.integers(40, 90, 2))
        objects = []
        for _ in range(int(rng.integers(1, 6))):
            x1, y1 = int(rng.integers(1, width - 8)), int(rng.integers(1, height - 8))
            x2, y2 = int(rng.integers(x1 + 5, width + 1)), int(rng.integers(y1 + 5, height + 1))
            name = classes[int(rng.integers(len(classes)))]
            objects.append(voc_object(name, (x1, y1, x2, y2), int(rng.random() < 0.2)))
        content[f"img{i:03d}"] = (width, height, objects)
    return write_voc(folder, content)


def random_coco(
    folder: Path, images: int = 10, seed: int = 0, rle: bool = False, whole: bool = False
) -> tuple[str, str]:
    """A COCO data set: gaps in the category ids, id 0, crowds, an image without objects.

    ``rle``: objects (not only crowds) have run-length masks; ``whole``: coordinates are integers.
    Returns the JSON file and the image folder.
    """
    rng = np.random.default_rng(seed)
    listed, annotations = [], []
    for i in reversed(range(images)):
        width, height = (int(v) for v in rng.integers(40, 120, 2))
        write_image(folder / "images" / f"{i}.png", width, height, i)
        listed.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for _ in range(0 if i == 3 else int(rng.integers(1, 6))):
            annotation = _random_annotation(rng, width, height, rle, whole)
            annotations.append({**annotation, "id": len(annotations), "image_id": i})
    categories = [{"id": c, "name": f"class{c}"} for c in (7, 2, 90)]
    path = folder / "instances.json"
    parts = {"images": listed, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(parts))
    return str(path), str(folder / "images")


def _random_annotation(
    rng: np.random.Generator, width: int, height: int, rle: bool, whole: bool, crowds: float = 0.2
) -> dict[str, Any]:
    x, y = rng.uniform(0, width - 12), rng.uniform(0, height - 12)
    w, h = rng.uniform(6, width - x), rng.uniform(6, height - y)
    box = [int(v) if whole else round(float(v), 2) for v in (x, y, w, h)]
    x, y, w, h = box
    crowd = int(rng.random() < crowds)
    segmentation: Any = [[x, y, x + w, y, x + w, y + h, x + w // 2, y + h]]
    if crowd or rle:
        mask = np.zeros((height, width), dtype=np.uint8, order="F")
        mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
        segmentation = mask_util.encode(mask)
        segmentation["counts"] = segmentation["counts"].decode()
    return {
        "bbox": box,
        "area": w * h * 0.75,
        "iscrowd": crowd,
        "category_id": int(rng.choice([2, 7, 90])),
        "segmentation": segmentation,
    }


def random_lvis(folder: Path, images: int = 10, seed: int = 0) -> tuple[str, str]:
    """An LVIS data set of 8 classes: the last two never annotated, lists of both kinds.

    Returns the JSON file and the image folder.
    """
    rng = np.random.default_rng(seed)
    listed, annotations = [], []
    for i in reversed(range(images)):
        width, height = (int(v) for v in rng.integers(60, 320, 2))
        write_image(folder / "images/val2017" / f"{i}.png", width, height, i)
        present = rng.permutation(6)[:3] + 1
        absent = sorted({1, 2, 3, 4, 5, 6, 7} - set(present.tolist()))
        image = {"id": i, "coco_url": f"http://x/val2017/{i}.png", "height": height, "width": width}
        listed.append(
            image
            | {
                "neg_category_ids": absent[: int(rng.integers(0, 4))],
                "not_exhaustive_category_ids": present[:1].tolist() if i % 2 else [],
            }
        )
        for _ in range(0 if i == 3 else int(rng.integers(1, 7))):
            annotation = _random_annotation(rng, width, height, rle=False, whole=False, crowds=0)
            del annotation["iscrowd"]
            annotation["category_id"] = int(rng.choice(present))
            annotations.append({**annotation, "id": len(annotations) + 1, "image_id": i})
    categories = [
        {"id": c, "name": f"class{c}", "frequency": "rcf"[c % 3], "image_count": 3 ** (c % 3) * c}
        for c in (8, 1, 2, 3, 4, 5, 6, 7)
    ]
    path = folder / "lvis.json"
    parts = {"images": listed, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(parts))
    return str(path), str(folder / "images")


def random_detections(
    records: list[dict[str, Any]], classes: int, seed: int = 0, masks: bool = False
) -> list[dict[str, Any]]:
    """Detections near and far of the objects, with many equal scores, as a detector gives them."""
    import torch

    rng = np.random.default_rng(seed)
    results = []
    for record in records:
        boxes, labels = [], []
        for annotation in record["annotations"]:
            x1, y1, x2, y2 = annotation["bbox"]
            if annotation["bbox_mode"] == 1:
                x2, y2 = x1 + x2, y1 + y2
            for _ in range(int(rng.integers(0, 4))):
                noise = rng.normal(0, 0.07, 4) * [x2 - x1, y2 - y1, x2 - x1, y2 - y1]
                boxes.append(np.array([x1, y1, x2, y2]) + noise)
                right = rng.random() < 0.8
                labels.append(annotation["category_id"] if right else int(rng.integers(classes)))
        for _ in range(int(rng.integers(0, 4))):
            x1, y1 = rng.uniform(0, record["width"] / 2), rng.uniform(0, record["height"] / 2)
            boxes.append(np.array([x1, y1, x1 + rng.uniform(3, 40), y1 + rng.uniform(3, 40)]))
            labels.append(int(rng.integers(classes)))
        order = rng.permutation(len(boxes))
        result = {
            "boxes": torch.tensor(np.array(boxes).reshape(-1, 4)[order], dtype=torch.float32),
            "scores": torch.tensor(np.sort(rng.random(len(boxes)).round(2))[::-1].copy()).float(),
            "classes": torch.tensor(np.array(labels, dtype=np.int64)[order]),
        }
        if masks:
            result["masks"] = _box_masks(result["boxes"], record["height"], record["width"])
        results.append(result)
    return results


def _box_masks(boxes: Any, height: int, width: int) -> Any:
    import torch

    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, box in zip(masks, boxes.round().int().clamp(min=0).tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = True
    return masks
