"""Folders with COCO annotations whose class names stand in a text file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from runtime.errors import InputError
from transfer.data.coco import load_coco
from transfer.data.dataset import Dataset, read_classes

CLASSES = "classes.txt"
# where the usual tools put the annotations and images of a split
_JSON = ("annotations/{}.json", "annotations/instances_{}.json", "{}/_annotations.coco.json")
_IMAGES = ("images/{}", "{}", "images")


def load_folder(name: str, folder: str, split: str) -> Dataset:
    """Read the COCO annotations of ``split`` in ``folder``, classes ordered as in classes.txt.

    The annotations are ``annotations/SPLIT.json``, ``annotations/instances_SPLIT.json`` or
    ``SPLIT/_annotations.coco.json``; the images lie in ``images/SPLIT``, ``SPLIT`` or ``images``,
    the first of them that there is. ``classes.txt`` names one class a line: the same ones as the
    file's ``categories``, whose ids and order do not matter.

    Raises :class:`InputError` where one of these is missing, and as
    :func:`~transfer.data.coco.load_coco`, for the first class that only one of the two has.
    """
    classes = read_classes(os.path.join(folder, CLASSES))
    json_file = _first(folder, split, _JSON, os.path.isfile)
    image_root = _first(folder, split, _IMAGES, os.path.isdir)
    return load_coco(name, json_file, image_root, classes)


def _first(folder: str, split: str, places: Sequence[str], exists: Callable[[str], bool]) -> str:
    paths = [os.path.join(folder, place.format(split)) for place in places]
    for path in paths:
        if exists(path):
            return path
    raise InputError(f"there is neither {' nor '.join(paths)}")
