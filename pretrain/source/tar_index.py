"""Where the images of a tar file lie: one pass over its headers, kept for the next start.

Nothing is extracted: an image is read as a range of the tar file's bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from pretrain.source import raw
from pretrain.source.decode import MAX_BYTES
from pretrain.source.images import of_the_storage
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.image_files import IMAGE_SUFFIXES

log = logging.getLogger("moco")

VERSION = 2  # of the cached index and of the rules of this file
CLASS_SUFFIX = ".cls"  # WebDataset's: the class index as text
MAX_CLASS_BYTES = 20
ORIGINAL_SUFFIX = ".sha256"  # of the file that the image was made from, as text
ORIGINAL_BYTES = 64
MAX_PADDING = 1 << 20  # zeros after the last member
_SUFFIXES = {
    "image": IMAGE_SUFFIXES,
    "raw": (raw.SUFFIX,),
    "class": (CLASS_SUFFIX,),
    "original": (ORIGINAL_SUFFIX,),
}
_ARRAYS = ("offsets", "sizes", "classes", "originals")


@dataclass(frozen=True)
class TarIndex:
    """The images of one tar file, in its order.

    Attributes:
        names: of the members, N.
        offsets, sizes: of their bytes in the tar file, int64 N.
        classes: index given by WebDataset's ``KEY.cls``, int64 N; -1 without one.
        originals: offsets of ``KEY.sha256``, int64 N; -1 without one.
    """

    names: tuple[str, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    originals: np.ndarray


def index_tar(path: Path) -> TarIndex:
    """Index the tar file, or take the index that an earlier start has left in the user's cache.

    InputError where the file is damaged, cut short or compressed, or a member is unsafe.
    """
    with contextlib.suppress(Exception):  # absent or damaged: it is made anew
        return _load(_cache_file(path))
    try:
        index = _scan(path)
    except OSError as error:
        raise of_the_storage(path, error) from error
    try:
        cached = _cache_file(path)
        cached.parent.mkdir(parents=True, exist_ok=True)
        _save(cached, index)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        log.debug("no index of %s is kept: %s", path, error)  # the next start reads the headers
    return index


def _cache_file(path: Path) -> Path:
    """Named after everything that it depends on, so that an old one is never taken for a new."""
    status = path.stat()
    key = f"{VERSION}\0{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(key)).hexdigest()
    return cache / "moco-transfer" / "tar-index" / f"{name}.npz"


def _save(path: Path, index: TarIndex) -> None:
    names = np.frombuffer(os.fsencode("\0".join(index.names)), dtype=np.uint8)
    arrays = {field: getattr(index, field) for field in _ARRAYS}
    with atomic_write(path) as stream:
        np.savez(stream, names=names, **arrays)


def _load(path: Path) -> TarIndex:
    with np.load(path, allow_pickle=False) as values:
        names = tuple(os.fsdecode(values["names"].tobytes()).split("\0"))
        arrays = {field: values[field] for field in _ARRAYS}
    if any(len(array) != len(names) for array in arrays.values()):
        raise ValueError("arrays of unequal length")
    return TarIndex(names, **arrays)


def _scan(path: Path) -> TarIndex:
    found: dict[str, dict[str, tarfile.TarInfo]] = {kind: {} for kind in _SUFFIXES}
    with open(path, "rb") as stream:
        for member in _members(path, stream):
            kind = _kind(member)
            if kind is None:
                continue
            _check_member(path, stream, member)
            if member.name in found[kind]:
                raise InputError(f"{str(path)!r} holds {member.name!r} twice: make the shard anew")
            found[kind][member.name] = member
        classes = {_key(name): _class(path, stream, m) for name, m in found["class"].items()}
        images = found["image"] | _raw_images(path, stream, found)
    if not images:
        known = " ".join((*IMAGE_SUFFIXES, raw.SUFFIX))
        raise InputError(f"{str(path)!r} holds no images: looked for {known}")
    originals = {_key(name): member.offset_data for name, member in found["original"].items()}
    members = sorted(images.values(), key=lambda member: member.offset_data)
    keys = [_key(member.name) for member in members]
    return TarIndex(
        tuple(member.name for member in members),
        np.array([member.offset_data for member in members], dtype=np.int64),
        np.array([member.size for member in members], dtype=np.int64),
        np.array([classes.get(key, -1) for key in keys], dtype=np.int64),
        np.array([originals.get(key, -1) for key in keys], dtype=np.int64),
    )


def _kind(member: tarfile.TarInfo) -> str | None:
    """Which of ``_SUFFIXES`` the member belongs to; None: to nobody."""
    name = member.name.lower()
    if member.isdir() or name.rpartition("/")[2].startswith("."):
        return None
    return next((kind for kind, suffixes in _SUFFIXES.items() if name.endswith(suffixes)), None)


def _raw_images(
    path: Path, stream: IO[bytes], found: dict[str, dict[str, tarfile.TarInfo]]
) -> dict[str, tarfile.TarInfo]:
    """The .npy members that are images: beside a JPEG, say, they are something about it."""
    with_image = {_key(name) for name in found["image"]}
    images = {name: m for name, m in found["raw"].items() if _key(name) not in with_image}
    for name, member in images.items():
        head = os.pread(stream.fileno(), raw.HEADER_BYTES, member.offset_data)
        try:
            raw.shape(head, member.size)
        except ValueError as error:
            raise InputError(f"{name!r} in {str(path)!r} is no image: {error}") from error
    return images


def _members(path: Path, stream: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """All members; InputError where tarfile would stop in silence, at the first damaged header."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                yield member
            end = tar.offset
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise InputError(
            f"cannot read tar file {str(path)!r} ({error}): shards are plain, not compressed tar "
            "files; make it anew"
        ) from error
    stream.seek(end)
    rest = stream.read(MAX_PADDING + 1)
    if len(rest) > MAX_PADDING or any(rest):
        raise InputError(
            f"{str(path)!r} is damaged at byte {end}: no header and no end of the tar file there"
        )


def _check_member(path: Path, stream: IO[bytes], member: tarfile.TarInfo) -> None:
    where = f"{member.name!r} in {str(path)!r}"
    if not member.isreg() or member.issparse():
        raise InputError(f"{where} is no regular file: links and sparse files are not followed")
    if not 0 <= member.size <= MAX_BYTES:
        raise InputError(f"{where} has {member.size} bytes: at most {MAX_BYTES} are read")
    if member.offset_data + member.size > os.fstat(stream.fileno()).st_size:
        raise InputError(f"{str(path)!r} is cut short: it ends within {member.name!r}")
    if "\0" in member.name or "\n" in member.name:
        raise InputError(f"{where} has a control character in its name")


def _class(path: Path, stream: IO[bytes], member: tarfile.TarInfo) -> int:
    text = os.pread(stream.fileno(), min(member.size, MAX_CLASS_BYTES), member.offset_data)
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0 or member.size > MAX_CLASS_BYTES:
        raise InputError(f"{member.name!r} in {str(path)!r} holds no class index but {text!r}")
    return value


def _key(name: str) -> str:
    """WebDataset's key of a sample: the name up to the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]
