#!/usr/bin/env python
"""All ways of making the two views of an image, decoding included, side by side in one run.

    python benchmarks/data_pipeline.py [--images FOLDER] [--rounds 9] [--json FILE]

CPU time of one thread, files in memory. Prints a Markdown table: images a second and core, and the
median over the rounds of the official pipeline's time (Pillow and torchvision, float32) over each
path's. Ratios are to the official pipeline of the same recipe on the 500 x 375 files. Without
--images the photographs are generated.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from benchmarks.timing import Timing, interleave, timed
from pretrain.augment import PIPELINES, MakeView, fallback, fast
from pretrain.config import load_cfg, view_recipe
from pretrain.loading.batches import IMAGENET_MEAN, IMAGENET_STD
from pretrain.source import raw
from pretrain.source.decode import decode_pixels
from pretrain.source.images import ImageFolder
from pretrain.views import ViewRecipe, draw
from runtime.randomness import generator

WIDTH, HEIGHT, SHORT_SIDE, QUALITY, VIEWS = 500, 375, 256, 90, 2
Work = tuple[str, Callable[[], object]]  # recipe that it is compared with, and its work


def recipe(name: str) -> ViewRecipe:
    return view_recipe(load_cfg(str(ROOT / f"configs/moco_{name}_R50_200ep.yaml"), []))


def generated(seed: int) -> Image.Image:
    """Like a photograph: soft shapes with edges, and detail of every size that falls off."""
    rng = np.random.default_rng(seed)
    total = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for side in (2, 4, 8, 16, 32, 64, 128, 256):
        grey, colour = rng.normal(0, 80, (side, side, 1)), rng.normal(0, 30, (side, side, 3))
        layer = ((grey + colour) / np.sqrt(side)).astype(np.float32)
        total += cv2.resize(layer, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        corners = rng.integers(-50, (WIDTH + 50, HEIGHT + 50), (5, 2)).astype(np.int32)
        cv2.fillConvexPoly(mask, cv2.convexHull(corners), 1, cv2.LINE_AA)
        total += mask[..., None] * rng.normal(0, 25, 3).astype(np.float32)
    grain = rng.normal(0, 4, (HEIGHT, WIDTH, 3))
    return Image.fromarray((120 + total + grain).clip(0, 255).astype(np.uint8))


def photographs(folder: str, count: int) -> list[Image.Image]:
    if not folder:
        return [generated(i) for i in range(count)]
    source = ImageFolder.scan(folder, "--images")
    step = max(1, len(source.files) // count)
    chosen = [source.load(i) for i in range(0, len(source.files), step)][:count]
    return [image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS) for image in chosen]


def as_jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def smaller(image: Image.Image) -> Image.Image:
    size = (round(image.width * SHORT_SIDE / image.height), SHORT_SIDE)
    return image.resize(size, Image.Resampling.BILINEAR)


def blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def official(name: str, size: int = 224) -> transforms.Compose:
    """The transforms of the official main_moco.py."""
    crop, grey = transforms.RandomResizedCrop(size, (0.2, 1.0)), transforms.RandomGrayscale(0.2)
    if name == "v1":
        steps = [crop, grey, transforms.ColorJitter(0.4, 0.4, 0.4, 0.4)]
    else:
        jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        steps = [crop, jitter, grey, transforms.RandomApply([blur], p=0.5)]
    last = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return transforms.Compose([*steps, transforms.RandomHorizontalFlip(), *last])


def with_pillow(transform: Callable[[Image.Image], object], files: list[bytes]) -> None:
    for content in files:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        for _ in range(VIEWS):
            transform(image)


def tensor_transforms() -> v2.Compose:
    """torchvision.transforms.v2 on uint8 tensors, recipe v2."""
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    # 13 taps, as Pillow's three boxes have at the largest width
    blur = v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5)
    crop, grey = v2.RandomResizedCrop(224, (0.2, 1.0), antialias=True), v2.RandomGrayscale(0.2)
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return v2.Compose([crop, jitter, grey, blur, v2.RandomHorizontalFlip(), *last])


def with_tensors(transform: Callable[[torch.Tensor], object], files: list[bytes]) -> None:
    for content in files:
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        image = decode_jpeg(encoded, ImageReadMode.RGB)
        for _ in range(VIEWS):
            transform(image)


def with_albumentations(transform: Any, files: list[bytes]) -> None:
    for content in files:
        image = cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), 1), cv2.COLOR_BGR2RGB)
        for _ in range(VIEWS):
            transform(image=image)


def ours(batch: np.ndarray, make: MakeView, of: ViewRecipe, files: list[bytes]) -> None:
    """As a worker does it: decoded, drawn and made into a slice of a batch that is there."""
    for index, content in enumerate(files):
        pixels = decode_pixels(content)
        for number in range(VIEWS):
            rng = generator(0, "augmentation", 0, index, number)
            view = draw(of, pixels.shape[1], pixels.shape[0], rng)
            make(of, pixels, view, batch[number, index])


def paths(images: list[Image.Image]) -> dict[str, Work]:
    """Name of each path: the recipe that it is compared by, and its work on all images."""
    files = [as_jpeg(image) for image in images]
    small = [as_jpeg(smaller(image)) for image in images]
    pixels = [raw.to_bytes(np.asarray(smaller(image))) for image in images]
    old, new = recipe("v1"), recipe("v2")
    batch = np.zeros((VIEWS, len(files), 3, new.crop_size, new.crop_size), np.uint8)
    views = partial(ours, batch)
    found: dict[str, Work] = {
        "official v2": ("v2", partial(with_pillow, official("v2"), files)),
        "official v1": ("v1", partial(with_pillow, official("v1"), files)),
        "torchvision.transforms.v2 v2": ("v2", partial(with_tensors, tensor_transforms(), files)),
        "reference v2": ("v2", partial(views, PIPELINES["reference"], new, files)),
        "fast v2": ("v2", partial(views, PIPELINES["fast"], new, files)),
        "fast v1": ("v1", partial(views, PIPELINES["fast"], old, files)),
        "fast v2, 256 px": ("v2", partial(views, PIPELINES["fast"], new, small)),
        "fast v1, 256 px": ("v1", partial(views, PIPELINES["fast"], old, small)),
        "fast v2, 256 px raw": ("v2", partial(views, PIPELINES["fast"], new, pixels)),
        "fast v2 without numba": ("v2", partial(views, fallback.make_view, new, files)),
        "fast v1 without numba": ("v1", partial(views, fallback.make_view, old, files)),
        "split": ("v2", partial(views, PIPELINES["split"], new, files)),
        "split, 256 px": ("v2", partial(views, PIPELINES["split"], new, small)),
        "split, 256 px raw": ("v2", partial(views, PIPELINES["split"], new, pixels)),
        "decoding alone": ("v2", lambda: [decode_pixels(content) for content in files]),
    }
    return found | others(files)


def others(files: list[bytes]) -> dict[str, Work]:
    """Libraries that are installed."""
    found: dict[str, Work] = {}
    try:
        from lightly.transforms import MoCoV2Transform
    except ImportError:
        print("lightly is not installed: left out", file=sys.stderr)
    else:
        one = MoCoV2Transform(input_size=224).transforms[0]
        found["lightly v2"] = ("v2", partial(with_pillow, one, files))
    try:
        import albumentations as A
    except ImportError:
        print("albumentations is not installed: left out", file=sys.stderr)
    else:
        steps = A.Compose(
            [
                A.RandomResizedCrop((224, 224), scale=(0.2, 1.0)),
                A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=0.8),
                A.ToGray(p=0.2),
                A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
                A.HorizontalFlip(p=0.5),
                A.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )
        found["albumentations v2 (aliases)"] = ("v2", partial(with_albumentations, steps, files))
    return found


def table(times: dict[str, Timing], compared: dict[str, str], count: int) -> list[dict[str, Any]]:
    """Rows: what, images a second and core, ratio to official, its range."""
    rows = []
    for name, timing in times.items():
        base = times[f"official {compared[name]}"].seconds
        ratios = [a / b for a, b in zip(base, timing.seconds, strict=True)]
        rows.append(
            {
                "path": name,
                "images_per_second": count / timing.median,
                "ms_per_image": 1000 * timing.median / count,
                "compared_with": f"official {compared[name]}",
                "ratio": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
            }
        )
    return rows


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    random.seed(0)
    torch.manual_seed(0)
    images = photographs(args.images, args.count)
    size = statistics.mean(len(as_jpeg(image)) for image in images) / 1024
    head = f"{len(images)} images of {WIDTH} x {HEIGHT}, quality {QUALITY}, mean {size:.0f} KiB; "
    print(head + f"two views of 224 px; {args.rounds} rounds\n", flush=True)
    fast.warm_up()
    known = paths(images)
    interleave({name: partial(timed, work) for name, (_, work) in known.items()}, 1)
    times = interleave(
        {name: partial(timed, work) for name, (_, work) in known.items()}, args.rounds
    )
    rows = table(times, {name: of for name, (of, _) in known.items()}, len(images))
    print("| path | images/s per core | ms/image | official / this | range |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        low, high = row["range"]
        print(
            f"| {row['path']} | {row['images_per_second']:.0f} | {row['ms_per_image']:.2f} "
            f"| **{row['ratio']:.2f}** | {low:.2f} to {high:.2f} |"
        )
    if args.json:
        found = {"images": len(images), "mean_kib": size, "rounds": args.rounds, "paths": rows}
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", default="", help="a folder of photographs (default: generated)")
    parser.add_argument("--count", type=int, default=48, help="images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", default="", help="also write the figures to this file")
    main(parser.parse_args())
