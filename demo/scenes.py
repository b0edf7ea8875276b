"""Pictures with objects: a calm background and one or more textured shapes on it.

Every picture is a pure function of a NumPy generator. A class is a shape with a pattern; tone,
tint, size, pose, period and phase vary within a class, so that colour alone tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from demo import shapes, textures

Image = NDArray[np.uint8]
Canvas = NDArray[np.floating]


@dataclass(frozen=True)
class Kind:
    """What makes a class: its outline and its surface."""

    outline: list[shapes.Points]
    texture: textures.Texture


CLASSES: dict[str, Kind] = {
    "board": Kind(shapes.SQUARE, textures.checker),
    "cross": Kind(shapes.CROSS, textures.zigzag),
    "rock": Kind(shapes.HEXAGON, textures.blotches),
    "starfish": Kind(shapes.STAR, textures.dots),
    "target": Kind(shapes.DISC, textures.rings),
    "tent": Kind(shapes.TRIANGLE, textures.stripes),
    "wall": Kind(shapes.SLAB, textures.bricks),
    "wheel": Kind(shapes.RING, textures.spokes),
}
TURN = np.deg2rad(30)  # largest rotation of an object, either way
STRETCH = 0.15  # largest change of its aspect ratio
PERIOD = (0.42, 0.58)  # of a pattern, in units of half the object's size
SUBPIXEL_BITS = 4  # OpenCV's fixed-point polygon coordinates
SPACING = 3  # pixels kept free between objects and around them


@dataclass(frozen=True)
class Box:
    """A tight box: half-open pixel ranges, so ``x1 - x0`` is the width."""

    name: str
    x0: int
    y0: int
    x1: int
    y1: int


def background(height: int, width: int, rng: np.random.Generator) -> Canvas:
    """Smooth light and shade with a little tint and grain: float32 H x W x 3, RGB, 0 to 255."""
    tone = rng.uniform(80, 175) + 22 * textures.smooth_noise(height, width, 2, rng)
    tone += 14 * textures.smooth_noise(height, width, int(rng.integers(4, 9)), rng)
    grain = 4 * rng.standard_normal((height, width, 3), dtype=np.float32)
    return tone[:, :, None] + rng.uniform(-14, 14, 3).astype(np.float32) + grain


def _tones(rng: np.random.Generator) -> tuple[Canvas, Canvas]:
    """A dark and a light colour (RGB) of one faint tint, always well apart in brightness."""
    middle, contrast = rng.uniform(100, 155), rng.uniform(45, 75)
    tint = rng.uniform(-18, 18, (2, 3)).astype(np.float32)
    return middle - contrast + tint[0], middle + contrast + tint[1]


def _mask(kind: Kind, matrix: Canvas, height: int, width: int) -> Canvas:
    """Coverage of each pixel by the outline after the affine map ``matrix`` (2 x 3), 0 to 1."""
    polygons = []
    for points in kind.outline:
        moved = points @ matrix[:, :2].T + matrix[:, 2]
        polygons.append(np.round(moved * (1 << SUBPIXEL_BITS)).astype(np.int32))
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, polygons, 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return mask.astype(np.float32) / 255


def draw_object(
    canvas: Canvas, name: str, centre: tuple[float, float], radius: float, rng: np.random.Generator
) -> Box:
    """Draw one object of class ``name`` into ``canvas`` (float32 H x W x 3) and return its box.

    ``centre`` is (x, y) and ``radius`` half the object's size, in pixels.
    """
    kind = CLASSES[name]
    height, width = canvas.shape[:2]
    turn, stretch = rng.uniform(-TURN, TURN), np.exp(rng.uniform(-STRETCH, STRETCH) / 2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = radius * rotation @ np.diag([stretch, 1 / stretch])
    matrix = np.column_stack([linear, centre]).astype(np.float32)
    mask = _mask(kind, matrix, height, width)

    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    inverse = np.linalg.inv(linear).astype(np.float32)
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u, v = inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy
    light = kind.texture(u, v, rng.uniform(*PERIOD), rng)[:, :, None]
    dark_tone, light_tone = _tones(rng)
    surface = dark_tone + (light_tone - dark_tone) * light
    canvas += mask[:, :, None] * (surface - canvas)

    ys, xs = np.where(mask > 0.5)
    return Box(name, int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)


def _to_image(canvas: Canvas) -> Image:
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8)


def portrait(name: str, size: int, rng: np.random.Generator) -> Image:
    """A picture of one object that fills most of it: uint8 ``size`` x ``size`` x 3, RGB."""
    canvas = background(size, size, rng)
    radius = size * rng.uniform(0.36, 0.48)
    shift = rng.uniform(-0.08, 0.08, 2) * size
    draw_object(canvas, name, (size / 2 + shift[0], size / 2 + shift[1]), radius, rng)
    return _to_image(canvas)


def scene(
    first: str, height: int, width: int, radii: tuple[float, float], rng: np.random.Generator
) -> tuple[Image, list[Box]]:
    """A picture of 1 to 4 objects that do not touch: uint8 H x W x 3 (RGB) and their boxes.

    The first object is of class ``first`` (so that a split can hold every class), the others of
    any. ``radii`` bounds half the objects' size in pixels. Objects that find no room are left out
    of both the picture and the boxes.
    """
    canvas = background(height, width, rng)
    taken: list[tuple[float, float, float]] = []
    boxes: list[Box] = []
    for number in range(int(rng.integers(1, 5))):
        name = first if number == 0 else str(rng.choice(list(CLASSES)))
        radius = rng.uniform(*radii)
        centre = _free_place(height, width, radius, taken, rng)
        if centre is None:
            continue
        taken.append((*centre, radius))
        boxes.append(draw_object(canvas, name, centre, radius, rng))
    return _to_image(canvas), boxes


def _free_place(
    height: int,
    width: int,
    radius: float,
    taken: list[tuple[float, float, float]],
    rng: np.random.Generator,
) -> tuple[float, float] | None:
    """A centre for a new object, inside the picture and clear of the others; None if none found."""
    reach = radius * np.exp(STRETCH / 2) + SPACING  # no outline goes farther, however stretched
    for _ in range(40):
        x, y = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
        if all(np.hypot(x - tx, y - ty) > reach + tr * np.exp(STRETCH / 2) for tx, ty, tr in taken):
            return float(x), float(y)
    return None
