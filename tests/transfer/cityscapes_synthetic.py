"""A generated data set in the layout of Cityscapes, whose own images may not be passed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from cityscapesscripts.helpers.labels import name2label
from PIL import Image, ImageDraw

LABELS = ("car", "person", "cargroup", "road", "car", "rider", "bicycle", "ego vehicle")


def random_objects(rng: np.random.Generator, width: int, height: int) -> list[dict[str, Any]]:
    """Overlapping stars, the ground below all; later ones hide earlier ones."""
    ground = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    objects: list[dict[str, Any]] = [{"label": "road", "polygon": ground}]
    for _ in range(int(rng.integers(4, 10))):
        centre = rng.uniform((0, 0), (width, height))
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(4, 9))))
        reach = rng.uniform(6, 22, (len(angles), 1))
        points = centre + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        inside = points.clip((0, 0), (width - 1, height - 1))
        label = LABELS[int(rng.integers(len(LABELS)))]
        objects.append({"label": label, "polygon": inside.astype(int).tolist()})
    objects.append({"label": "car", "polygon": [[1, 1], [9, 1], [9, 9]], "deleted": 1})
    objects.append({"label": "license plate", "polygon": [[1, 1], [9, 1], [9, 9]]})
    return objects


def draw_ids(objects: list[dict[str, Any]], width: int, height: int) -> dict[str, Image.Image]:
    """What cityscapesscripts' json2instanceImg and json2labelImg draw."""
    images = {
        "instanceIds": Image.new("I", (width, height)),
        "labelIds": Image.new("L", (width, height)),
    }
    counts: dict[int, int] = {}
    for entry in objects:
        name = entry["label"]
        group = name not in name2label and name.endswith("group")
        label = name2label[name.removesuffix("group") if group else name]
        if "deleted" in entry or label.id < 0:
            continue
        instance = label.id
        if label.hasInstances and not group:
            instance = label.id * 1000 + counts.get(label.id, 0)
            counts[label.id] = counts.get(label.id, 0) + 1
        points = [tuple(point) for point in entry["polygon"]]
        ImageDraw.Draw(images["instanceIds"]).polygon(points, fill=instance)
        ImageDraw.Draw(images["labelIds"]).polygon(points, fill=label.id)
    return images


def write_cityscapes(
    root: Path, splits: dict[str, int], width: int = 128, height: int = 64, seed: int = 0
) -> Path:
    """``splits``: name -> number of images, spread over two cities. Returns ``root``."""
    rng = np.random.default_rng(seed)
    for split, count in splits.items():
        for i in range(count):
            city = ("aachen", "bochum")[i % 2]
            stem = f"{city}_{i:06d}_000019"
            objects = random_objects(rng, width, height)
            picture = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
            truth = root / "gtFine" / split / city
            for folder in (picture.parent, truth):
                folder.mkdir(parents=True, exist_ok=True)
            ids = draw_ids(objects, width, height)
            grey = np.asarray(ids["labelIds"]).astype(int) * 7 % 256
            noise = rng.integers(0, 20, (height, width, 3))
            Image.fromarray((grey[..., None] // 2 + noise).astype(np.uint8)).save(picture)
            content = {"imgHeight": height, "imgWidth": width, "objects": objects}
            (truth / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))
            pixels = np.asarray(ids["instanceIds"]).astype(np.uint16)
            Image.fromarray(pixels).save(truth / f"{stem}_gtFine_instanceIds.png")
            ids["labelIds"].save(truth / f"{stem}_gtFine_labelIds.png")
    return root
