"""What a loaded data set is, and how its readers report problems and remarks."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import InputError

XYXY, XYWH = 0, 1  # Detectron2's BoxMode.XYXY_ABS and BoxMode.XYWH_ABS
WHERE_DATA_IS = "name your data with --train-data and --test-data, or set DETECTRON2_DATASETS"
Record = dict[str, Any]  # one image: Detectron2's standard data-set dict


@dataclass(frozen=True)
class Dataset:
    """Images with their annotations, validated.

    ``records`` are Detectron2's standard data-set dicts; ``classes[i]`` is the name of
    ``category_id`` i; ``evaluator`` is "voc", "coco" or "lvis"; ``metadata["notes"]`` lists, one
    line each, what the reader tolerated, dropped or assumed.
    """

    name: str
    records: list[Record]
    classes: tuple[str, ...]
    evaluator: str
    metadata: dict[str, Any]


def xywh(annotation: Record) -> list[float]:
    """An annotation's box as x, y, width, height, whichever form it is read in."""
    x, y, w, h = annotation["bbox"]
    return [x, y, w, h] if annotation["bbox_mode"] == XYWH else [x, y, w - x, h - y]


class Findings:
    """Collects what a reader finds: problems refuse the data set, notes are only reported."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._notes: Counter[str] = Counter()

    def problem(self, message: str) -> None:
        """Something that must be repaired; ``message`` names the file, the fault and the cure."""
        self._problems.append(message)

    def note(self, what: str) -> None:
        """Something that is tolerated; equal remarks are counted."""
        self._notes[what] += 1

    @property
    def notes(self) -> list[str]:
        """One line for each kind of remark, with its count."""
        return [f"{count} {what}" for what, count in self._notes.items()]

    def refuse(self) -> None:
        """Raise :class:`InputError` naming the first problem and the number of others, if any."""
        if not self._problems:
            return
        others = len(self._problems) - 1
        tail = f" ({others} more like problems in this data set)" if others else ""
        raise InputError(self._problems[0] + tail)


def inside(folder: str, name: str, where: str) -> str:
    """Join ``folder`` and ``name``; :class:`InputError` where the result leaves ``folder``.

    The check is on the text of the path: an annotation file from elsewhere must not name
    ``../../other``, but the user's own symbolic links inside the folder are his decision.
    """
    outside = os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir
    if outside or not name or "\0" in name:
        raise InputError(f"{where}: file name {name!r} must stay inside {folder}")
    return os.path.join(folder, name)


def read_lines(path: str) -> list[str]:
    """The lines of a text file that are not blank; :class:`InputError` where it is none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # as Windows writes it
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {WHERE_DATA_IS}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a text file: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_classes(path: str) -> tuple[str, ...]:
    """Class names, one a line; :class:`InputError` where there is none or one comes twice."""
    names = read_lines(path)
    if not names:
        raise InputError(f"{path} names no classes")
    if len(set(names)) != len(names):
        raise InputError(f"{path} lists a class more than once")
    return tuple(names)
