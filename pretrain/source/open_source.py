"""Which source of images DATA.ROOT names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pretrain.source.image_list import ImageList
from pretrain.source.images import ImageFolder, ImageSource
from pretrain.source.remote_shards import RemoteShards
from pretrain.source.shard_cache import ShardCache
from pretrain.source.shards import Shards, expand, shards_in
from runtime.errors import InputError
from runtime.image_files import IMAGE_SUFFIXES, images_below
from runtime.urls import is_url

KINDS = (
    "a folder of images or of .tar shards, a pattern such as 'x-{000..063}.tar', a text list, or "
    "the URL of shards"
)


def open_source(
    root: str | os.PathLike[str], option: str = "DATA.ROOT", cache: ShardCache | None = None
) -> ImageSource:
    """The images that ``root`` names; ``option`` is its name in error messages.

    Shards behind a URL are fetched into ``cache``, by default the one in the user's cache.

    A folder that holds images is a :class:`ImageFolder`, tar files in it or not. InputError where
    there is nothing, or something that cannot be used.
    """
    text = str(root)
    path = Path(text)
    if not text:
        raise InputError(f"{option} is not set: name {KINDS}")
    if text.startswith("file://"):
        raise InputError(f"{option} {text!r}: name the path itself")
    if is_url(text):
        return RemoteShards.open(text, option, cache or ShardCache())
    if path.is_dir():
        shards = shards_in(path)
        if shards and not images_below(path):
            return Shards.scan(shards, path)
        return ImageFolder.scan(path, option)
    if "{" in text and not path.exists():
        names = [Path(name).absolute() for name in expand(text)]
        return Shards.scan(names, Path(os.path.commonpath([name.parent for name in names])))
    if not path.is_file() and re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise InputError(  # not shown: it may hold credentials
            f"{option} is neither a file nor a URL: write scheme://host/path, without spaces before"
        )
    if not path.is_file():
        raise InputError(f"{option} {text!r} is not a folder or file: name {KINDS}")
    if path.suffix.lower() == ".tar":
        return Shards.scan([path], path.parent)
    if path.name.lower().endswith((*IMAGE_SUFFIXES, ".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")):
        raise InputError(f"{option} {text!r} is an image or an archive: name {KINDS}")
    return ImageList.scan(path)
