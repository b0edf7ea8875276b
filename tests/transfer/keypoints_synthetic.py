"""Generated COCO files with keypoints, and detections for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_synthetic import write_image

NAMES = ("nose", "left_hand", "right_hand", "tail")
SIGMAS = (0.05, 0.1, 0.1, 0.08)


def write_keypoints(
    folder: Path, images: int = 8, seed: int = 0, names: tuple[str, ...] = NAMES
) -> tuple[str, str]:
    """Objects with all, some or none of their keypoints labelled; crowds; an empty image.

    Returns the JSON file and the image folder.
    """
    rng = np.random.default_rng(seed)
    listed, annotations = [], []
    for i in range(1, images + 1):
        width, height = (int(v) for v in rng.integers(60, 120, 2))
        write_image(folder / "images" / f"{i}.png", width, height, i)
        listed.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for _ in range(0 if i == 2 else int(rng.integers(1, 4))):
            annotation = random_object(rng, width, height, len(names))
            annotations.append({**annotation, "id": len(annotations) + 1, "image_id": i})
    skeleton = [[1, 2], [1, 3]]
    category = {"id": 1, "name": "cat", "keypoints": list(names), "skeleton": skeleton}
    parts = {"images": listed, "annotations": annotations, "categories": [category]}
    path = folder / "keypoints.json"
    path.write_text(json.dumps(parts))
    return str(path), str(folder / "images")


def random_object(rng: np.random.Generator, width: int, height: int, count: int) -> dict[str, Any]:
    x, y = rng.uniform(0, width - 30), rng.uniform(0, height - 30)
    w, h = rng.uniform(24, width - x), rng.uniform(24, height - y)
    crowd = int(rng.random() < 0.15)
    share = 0 if crowd else rng.choice([0, 0.5, 1])
    points: list[int] = []
    for _ in range(count):
        seen = int(rng.integers(1, 3)) if rng.random() < share else 0
        # some lie outside of their box, and a few of the image
        at = int(x + rng.uniform(-0.1, 1.1) * w), int(y + rng.uniform(-0.1, 1.1) * h)
        points += [*at, seen] if seen else [0, 0, 0]
    return {
        "bbox": [round(float(v), 2) for v in (x, y, w, h)],
        "area": float(w * h * 0.6),
        "iscrowd": crowd,
        "category_id": 1,
        "keypoints": points,
        "num_keypoints": sum(v > 0 for v in points[2::3]),
        "segmentation": [[x, y, x + w, y, x + w, y + h]],
    }


def detect_keypoints(records: list[dict[str, Any]], count: int, seed: int = 0) -> list[Any]:
    """Each object found twice, more or less well, with many equal scores."""
    rng = np.random.default_rng(seed)
    results = []
    for record in records:
        boxes, points = [], []
        for annotation in record["annotations"] * 2:
            x, y, w, h = annotation["bbox"]
            noise = rng.normal(0, 0.05, 4) * [w, h, w, h]
            boxes.append(np.array([x, y, x + w, y + h]) + noise)
            true = np.array(annotation.get("keypoints") or [0] * 3 * count, dtype=float)
            moved = true.reshape(-1, 3) + rng.normal(0, 0.03 * (w + h), (count, 3))
            points.append(moved)
        n = len(boxes)
        results.append(
            {
                "boxes": torch.tensor(np.array(boxes).reshape(n, 4), dtype=torch.float32),
                "scores": torch.from_numpy(rng.random(n).round(1)).float(),
                "classes": torch.zeros(n, dtype=torch.int64),
                "keypoints": torch.tensor(
                    np.array(points).reshape(n, count, 3), dtype=torch.float32
                ),
            }
        )
    return results
