"""A COCO data set of generated photographs, so that the benchmark needs no download."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from demo.scenes import CLASSES, Box, scene

HEIGHT, WIDTH, QUALITY = 480, 640, 90


def write_photos(folder: Path, count: int) -> str:
    """``count`` JPEGs with polygons around their objects; returns the data set's name."""
    names = list(CLASSES)
    images, annotations = [], []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels, boxes = scene(names[number % len(names)], HEIGHT, WIDTH, (40, 120), rng)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=QUALITY)
        images.append(
            {"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH}
        )
        for box in boxes:
            annotation = _annotation(box) | {"id": len(annotations) + 1, "image_id": number}
            annotations.append(annotation | {"category_id": names.index(box.name) + 1})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return f"coco:{path}:{folder}"


def _annotation(box: Box) -> dict[str, object]:
    """The ellipse within the box as a polygon of 24 points, about as many as COCO's have."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    width, height = box.x1 - box.x0, box.y1 - box.y0
    x = (box.x0 + box.x1 + width * np.cos(angle)) / 2
    y = (box.y0 + box.y1 + height * np.sin(angle)) / 2
    return {
        "bbox": [box.x0, box.y0, width, height],
        "area": float(np.pi / 4 * width * height),
        "iscrowd": 0,
        "segmentation": [np.stack([x, y], axis=1).reshape(-1).round(2).tolist()],
    }
