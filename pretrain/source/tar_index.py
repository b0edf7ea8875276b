"""Where the images of a tar file lie: one pass over its headers, kept for the next start.

Nothing is extracted: an image is read as a range of the tar file's bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from pretrain.source import raw
from pretrain.source.decode import MAX_BYTES
from pretrain.source.images import of_the_storage
from runtime.errors import InputError
from runtime.files import atomic_write, user_cache
from runtime.image_files import IMAGE_SUFFIXES

log = logging.getLogger("moco")

VERSION = 3  # of the cached index and of the rules of this file
FOLDER = "tar-index"  # in the user's cache
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
        digests: SHA-256 of the files that the images were made from, uint8 N x 32; None where
            they are read off the tar file when they are needed.
    """

    names: tuple[str, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    originals: np.ndarray
    digests: np.ndarray | None = None

    @classmethod
    def joined(cls, indices: Sequence[TarIndex]) -> TarIndex:
        """One after the other; with digests where all have them."""
        fields = [*_ARRAYS, "digests"] if all(i.digests is not None for i in indices) else _ARRAYS
        arrays = {name: np.concatenate([getattr(i, name) for i in indices]) for name in fields}
        return cls(tuple(chain.from_iterable(index.names for index in indices)), **arrays)

    def part(self, first: int, stop: int) -> TarIndex:
        """Images ``first`` to ``stop``."""
        arrays = {name: getattr(self, name)[first:stop] for name in _ARRAYS}
        digests = None if self.digests is None else self.digests[first:stop]
        return TarIndex(self.names[first:stop], **arrays, digests=digests)

    def check_bounds(self, size: int) -> None:
        """ValueError where an image does not lie within a tar file of ``size`` bytes."""
        ends = self.offsets + self.sizes
        small = (self.offsets >= 0) & (self.sizes >= 0) & (self.sizes <= MAX_BYTES) & (ends <= size)
        if not small.all():
            raise ValueError("an image lies outside its shard")

    def write(self, path: Path) -> None:
        """As a NumPy file (.npz)."""
        names = np.frombuffer(os.fsencode("\0".join(self.names)), dtype=np.uint8)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        if self.digests is not None:
            arrays["digests"] = self.digests
        with atomic_write(path) as stream:
            np.savez_compressed(stream, names=names, **arrays)

    @classmethod
    def read(cls, file: Path | IO[bytes]) -> TarIndex:
        """What :meth:`write` has written. Any exception where it is damaged."""
        with np.load(file, allow_pickle=False) as values:
            names = tuple(os.fsdecode(values["names"].tobytes()).split("\0"))
            arrays = {name: values[name] for name in values.files if name != "names"}
        if any(len(array) != len(names) for array in arrays.values()):
            raise ValueError("arrays of unequal length")
        return cls(names, **arrays)


def tars_in(folder: Path) -> list[Path]:
    """The tar files in ``folder``, sorted; not those below it, and no hidden ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == ".tar" and not path.name.startswith(".")
    )


def index_tar(path: Path, digests: bool = False) -> TarIndex:
    """Index the tar file, or take the index that an earlier start has left in the user's cache.

    ``digests``: with those. InputError where the file is damaged, cut short or compressed, or a
    member is unsafe.
    """
    return kept(lambda: _cache_file(path, digests), lambda: scan_tar(path, digests))


def kept(place: Callable[[], Path], make: Callable[[], TarIndex]) -> TarIndex:
    """The index in the file that ``place`` gives; made and put there where there is none."""
    with contextlib.suppress(Exception):  # absent or damaged: it is made anew
        return TarIndex.read(place())
    index = make()
    try:
        cached = place()
        cached.parent.mkdir(parents=True, exist_ok=True)
        index.write(cached)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        log.debug("no index is kept: %s", error)  # the next start reads the headers
    return index


def _cache_file(path: Path, digests: bool) -> Path:
    """Named after everything that it depends on, so that an old one is never taken for a new."""
    status = path.stat()
    key = f"{VERSION}\0{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{digests}"
    name = hashlib.sha256(os.fsencode(key)).hexdigest()
    return user_cache(FOLDER) / f"{name}.npz"


def scan_tar(path: Path, digests: bool = False) -> TarIndex:
    """As :func:`index_tar`, without a look into the cache."""
    try:
        index = _scan(path)
        return replace(index, digests=_digests(path, index)) if digests else index
    except OSError as error:
        raise of_the_storage(path, error) from error


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
        classes = {sample_key(name): _class(path, stream, m) for name, m in found["class"].items()}
        images = found["image"] | _raw_images(path, stream, found)
    if not images:
        known = " ".join((*IMAGE_SUFFIXES, raw.SUFFIX))
        raise InputError(f"{str(path)!r} holds no images: looked for {known}")
    originals = {sample_key(name): member.offset_data for name, member in found["original"].items()}
    members = sorted(images.values(), key=lambda member: member.offset_data)
    keys = [sample_key(member.name) for member in members]
    return TarIndex(
        tuple(member.name for member in members),
        np.array([member.offset_data for member in members], dtype=np.int64),
        np.array([member.size for member in members], dtype=np.int64),
        np.array([classes.get(key, -1) for key in keys], dtype=np.int64),
        np.array([originals.get(key, -1) for key in keys], dtype=np.int64),
    )


def original_digest(text: bytes, where: str) -> bytes:
    """The 32 bytes that ``KEY.sha256`` says. InputError where it is damaged."""
    try:
        digest = bytes.fromhex(text.decode("ascii"))
    except ValueError as error:
        raise InputError(f"{where}: KEY.sha256 is damaged: {text!r}") from error
    if len(digest) != ORIGINAL_BYTES // 2:
        raise InputError(f"{where}: KEY.sha256 is damaged: {text!r}")
    return digest


def _digests(path: Path, index: TarIndex) -> np.ndarray:
    found = bytearray()
    with open(path, "rb") as stream:
        places = zip(index.names, index.offsets, index.sizes, index.originals, strict=True)
        for name, offset, size, original in places:
            if original < 0:
                content = os.pread(stream.fileno(), int(size), int(offset))
                found += hashlib.sha256(content).digest()
            else:
                text = os.pread(stream.fileno(), ORIGINAL_BYTES, int(original))
                found += original_digest(text, repr(name))
    return np.frombuffer(bytes(found), np.uint8).reshape(-1, 32)


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
    with_image = {sample_key(name) for name in found["image"]}
    images = {name: m for name, m in found["raw"].items() if sample_key(name) not in with_image}
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


def sample_key(name: str) -> str:
    """WebDataset's key of a sample: the name up to the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]
