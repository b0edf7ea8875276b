"""Test images with their ground truth and each arm's detections, drawn side by side."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image, ImageDraw, ImageFont, ImageOps

from transfer.compare.untrusted import clean
from transfer.view.draw import FONT

MIN_SCORE = 0.5
TOP = 3
WIDTH = 400  # pixels of a drawn picture
_COLOURS = ("#00B8FF", "#FFD000", "#FF4F9A", "#3DDC55", "#FF8A1F", "#B98CFF", "#E8E8E8")
Record = dict[str, Any]
Detections = Mapping[str, list[Record]]  # image id -> detections, best first


class Images(Protocol):
    """What is needed of a data set: its records, and the names of its classes."""

    @property
    def records(self) -> list[Record]:
        """Detectron2's standard data-set dicts."""

    @property
    def classes(self) -> Sequence[str]:
        """Names by contiguous category id."""


@dataclass(frozen=True)
class Box:
    """A box in pixels of the original image; ``score`` is ``None`` for ground truth."""

    xyxy: tuple[float, float, float, float]
    category: int
    score: float | None = None


@dataclass(frozen=True)
class Panel:
    """One drawn picture (JPEG) with what its caption and its alternative text say."""

    title: str
    jpeg: bytes
    caption: str
    alt: str


def panels(
    record: Record, classes: Sequence[str], detections: Mapping[str, Detections | None]
) -> list[Panel]:
    """Ground truth first, then the detections of each arm. Raises ``OSError``: unreadable image."""
    image = _read(record["file_name"])
    truth = [_box(entry, entry["bbox_mode"]) for entry in record.get("annotations", [])]
    drawn = [_panel("ground truth", image, truth, f"{len(truth)} boxes", classes)]
    for arm, of_arm in detections.items():
        boxes, caption = _shown(of_arm, str(record["image_id"]))
        drawn.append(_panel(arm, image, boxes, caption, classes))
    return drawn


def _shown(detections: Detections | None, image_id: str) -> tuple[list[Box], str]:
    """The detections to draw: sure ones, or else the best few, and the words that say which."""
    if detections is None:
        return [], "this run saved no detections"
    entries = detections.get(image_id, [])
    sure = [entry for entry in entries if entry["score"] >= MIN_SCORE]
    boxes = [_box(entry, 1) for entry in sure or entries[:TOP]]
    if sure:
        return boxes, f"{len(sure)} with score ≥ {MIN_SCORE}"
    if boxes:
        return boxes, f"none with score ≥ {MIN_SCORE}; best {len(boxes)} shown"
    return boxes, "no detections"


def _box(entry: Record, mode: int) -> Box:
    """From XYXY (mode 0) or XYWH (mode 1), Detectron2's numbers for them."""
    left, top, right, bottom = map(float, entry["bbox"])
    if mode == 1:
        right, bottom = left + right, top + bottom
    return Box((left, top, right, bottom), int(entry["category_id"]), entry.get("score"))


def _read(file_name: str) -> Image.Image:
    """The image as the model saw it: upright (EXIF), in colour."""
    with Image.open(file_name) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _panel(
    title: str, image: Image.Image, boxes: Sequence[Box], caption: str, classes: Sequence[str]
) -> Panel:
    counts = Counter(_name(classes, box.category) for box in boxes)
    listed = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no boxes"
    return Panel(title, _draw(image, boxes, classes), caption, f"{title}: {listed}")


def _draw(image: Image.Image, boxes: Sequence[Box], classes: Sequence[str]) -> bytes:
    """Boxes over the image, scaled to ``WIDTH``; the best detection is drawn last, on top."""
    scale = WIDTH / image.width
    canvas = image.resize((WIDTH, max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.truetype(FONT, 12)
    for box in reversed(boxes):
        left, top, right, bottom = (scale * value for value in box.xyxy)
        colour = _COLOURS[box.category % len(_COLOURS)]
        corners = (left, top, max(left, right), max(top, bottom))
        draw.rectangle(corners, outline="black", width=3)
        draw.rectangle(corners, outline=colour, width=2)
        score = "" if box.score is None else f" {box.score:.2f}"
        _label(draw, (left, top), _name(classes, box.category)[:16] + score, colour, font)
    stream = io.BytesIO()
    canvas.save(stream, format="JPEG", quality=85)
    return stream.getvalue()


def _label(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    colour: str,
    font: ImageFont.FreeTypeFont,
) -> None:
    width = draw.textlength(text, font=font) + 5
    left, top = max(min(at[0], WIDTH - width), 0.0), max(at[1], 0.0)
    draw.rectangle((left, top, left + width, top + 14), fill=colour)
    draw.text((left + 3, top + 1), text, fill="black", font=font)


def _name(classes: Sequence[str], category: int) -> str:
    return clean(classes[category]) if 0 <= category < len(classes) else f"class {category}"
