"""Which source of images DATA.ROOT names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pretrain.source.image_list import ImageList
from pretrain.source.images import ImageFolder, ImageSource
from pretrain.source.shards import Shards, expand, shards_in
from runtime.errors import InputError
from runtime.image_files import IMAGE_SUFFIXES, images_below

KINDS = "a folder of images or of .tar shards, a pattern such as 'x-{000..063}.tar', or a text list"


def open_source(root: str | os.PathLike[str], option: str = "DATA.ROOT") -> ImageSource:
    """The images that ``root`` names; ``option`` is its name in error messages.

    A folder that holds images is a :class:`ImageFolder`, tar files in it or not. InputError where
    there is nothing, or something that cannot be used.
    """
    text = str(root)
    path = Path(text)
    if not text:
        raise InputError(f"{option} is not set: name {KINDS}")
    if re.match(r"[a-z0-9]+:", text) and not path.exists():
        raise InputError(f"{option} {text!r}: images are read from a disk; copy the shards to one")
    if path.is_dir():
        shards = shards_in(path)
        if shards and not images_below(path):
            return Shards.scan(shards, path)
        return ImageFolder.scan(path, option)
    if "{" in text and not path.exists():
        names = [Path(name).absolute() for name in expand(text)]
        return Shards.scan(names, Path(os.path.commonpath([name.parent for name in names])))
    if not path.is_file():
        raise InputError(f"{option} {text!r} is not a folder or file: name {KINDS}")
    if path.suffix == ".tar":
        return Shards.scan([path], path.parent)
    if path.name.lower().endswith((*IMAGE_SUFFIXES, ".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")):
        raise InputError(f"{option} {text!r} is an image or an archive: name {KINDS}")
    return ImageList.scan(path)
