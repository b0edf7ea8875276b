"""Which files of a folder are images."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Of images in formats that are not read
OTHER_SUFFIXES = (
    *(".avif", ".dng", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)


def images_below(
    folder: str | os.PathLike[str], suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> list[str]:
    """Paths of all images below ``folder``: relative to it, with "/", sorted.

    Links are followed, except to a folder that the way here leads through: its images would come
    again and again. Hidden files and folders are left out: macOS leaves ``._a.jpg`` beside
    ``a.jpg``, Jupyter ``.ipynb_checkpoints`` with copies. InputError for a folder that cannot be
    listed.
    """
    files = []
    way: dict[str, frozenset[Path]] = {os.fspath(folder): frozenset()}  # to each, without links
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        here = Path(place).resolve()
        above = way.pop(place) | {here, *here.parents}
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (here / name).resolve() not in above
        ]
        way.update((os.path.join(place, name), above) for name in folders)
        files += [
            os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(files)


def _refuse(error: OSError) -> None:
    """Else :func:`os.walk` leaves the folder out without a word."""
    raise InputError(f"cannot list the folder {error.filename!r}: {error.strerror}")
