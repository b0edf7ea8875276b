"""Images without annotations: a file, a folder with all its subfolders, or a pattern."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from runtime.errors import InputError
from runtime.image_files import IMAGE_SUFFIXES, images_below
from transfer.data.dataset import Record
from transfer.data.images import upright_size


def find_images(source: str) -> tuple[Path, list[Path]]:
    """Image files of ``source``, in the order of their names, and the folder that they share.

    A folder is searched with all its subfolders; of a pattern's matches too only files with an
    image's suffix are taken. Raises InputError where there are none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = [path / name for name in images_below(path)]
    elif path.is_file():
        found = [path]
    else:
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
    files = sorted(f for f in found if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
    if not files:
        raise InputError(
            f"no images at {source!r}: name a file, a folder or a quoted pattern such as "
            f"'photos/*.jpg'; images end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return (path if path.is_dir() else Path(os.path.commonpath([f.parent for f in files]))), files


def image_record(path: Path, image_id: int) -> Record:
    """The record of an image without annotations; InputError where its header cannot be read."""
    height, width = upright_size(str(path))
    return {
        "file_name": str(path),
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": [],
    }
