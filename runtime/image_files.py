"""Which files of a folder are images."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def images_below(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of all images below ``folder``: relative to it, with "/", sorted.

    Links are followed, except to a folder that they lie in: its images would come again and again.
    Hidden files (macOS leaves ``._a.jpg`` beside ``a.jpg``) are left out.
    """
    files = []
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        above = {here, *here.parents}
        folders[:] = [name for name in folders if (here / name).resolve() not in above]
        files += [
            os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(files)
