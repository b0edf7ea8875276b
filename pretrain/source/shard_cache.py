"""A folder of this machine in which shards from a server lie, as many as it may hold.

All processes of the machine share it. A shard has its name there when it is whole and verified. The
ones used last stay.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.source.remote import RemoteFile, download
from runtime.errors import InputError
from runtime.files import user_cache

log = logging.getLogger("moco")

GIB = 1 << 30
DEFAULT_GIB = 64.0  # ImageNet with a short side of 256 pixels is a third of it
_SHARD = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}-.+")
_PARTIAL = re.compile(r"\.[0-9a-f]{16}-[0-9a-f]{16}-.+\.(\d+)\.[0-9a-f]{8}\.part")
LONGEST = 100  # bytes of a file's own name
FULL = 0.2  # seconds between two looks whether downloads of others have made room


@dataclass(frozen=True)
class ShardCache:
    """Shards of at most ``most`` bytes in ``folder``, those being fetched included.

    ``folder`` is the one ``chosen``, or else in the user's cache.
    """

    chosen: Path | None = None
    most: int = int(DEFAULT_GIB * GIB)

    @classmethod
    def of(cls, folder: str, gib: float) -> ShardCache:
        """That of DATA.SHARD_CACHE, "" for the one in the user's cache, and SHARD_CACHE_GIB."""
        return cls(Path(folder) if folder else None, int(min(gib * GIB, sys.maxsize)))

    @property
    def folder(self) -> Path:
        """Where the shards lie. InputError without a choice and a home."""
        try:
            return self.chosen or user_cache("shards")
        except RuntimeError as error:
            raise InputError("DATA.SHARD_CACHE is not set, and the user has no home") from error

    def path(self, file: RemoteFile) -> Path:
        """Where it lies when it is there; another state of the file has another name."""
        url = hashlib.sha256(os.fsencode(file.name)).hexdigest()[:16]
        state = f"{file.size}\0{file.version}\0{file.sha256}"
        name = os.fsencode(file.name.rpartition("/")[2])[-LONGEST:].decode(errors="ignore")
        return self.folder / f"{url}-{hashlib.sha256(state.encode()).hexdigest()[:16]}-{name}"

    def earlier(self, file: RemoteFile) -> list[Path]:
        """Where other states of it lie."""
        path = self.path(file)
        url = path.name.partition("-")[0]
        return [other for other in self.folder.glob(f"{url}-*") if other != path]

    def fetch(self, file: RemoteFile) -> Path:
        """Its place, where it lies when this returns: used now, so that others go before it.

        Only one process at a time downloads it, the others wait. InputError where it cannot be
        had or kept.
        """
        path = self.path(file)
        if file.size > self.most:
            raise InputError(
                f"{file.name!r} has {file.size / GIB:.3g} GiB, DATA.SHARD_CACHE_GIB is "
                f"{self.most / GIB:.3g}: raise it"
            )
        try:
            if not _use(path, file.size):
                with self._lock(path.name[:2]):  # one of 256: the names of the locks stay few
                    if not _use(path, file.size):
                        self._download(file, path)
        except OSError as error:
            raise InputError(
                f"cannot keep {file.name!r} in DATA.SHARD_CACHE {str(self.folder)!r}: "
                f"{error.strerror or error}"
            ) from error
        return path

    def used(self) -> int:
        """Bytes of the shards there, and of those being fetched when they will be."""
        return sum(size for _, _, size in self._entries())

    def _download(self, file: RemoteFile, path: Path) -> None:
        with self._partial(path.name, file.size) as partial:
            download(file, partial)
            with open(partial, "rb") as stream:
                os.fsync(stream.fileno())
            used_now(partial)
            os.replace(partial, path)

    @contextlib.contextmanager
    def _partial(self, name: str, size: int) -> Iterator[Path]:
        """A new file to download to, with room for ``size`` bytes; gone after the block.

        It is locked as long as its process lives, so that what a killed one leaves is known.
        """
        path = self.folder / f".{name}.{size}.{secrets.token_hex(4)}.part"
        descriptor = self._reserve(path, size)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _reserve(self, path: Path, size: int) -> int:
        while True:
            with self._lock("room"):
                self._remove_leftovers()
                if self._make_room(size):
                    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    return descriptor
            time.sleep(FULL)

    def _make_room(self, size: int) -> bool:
        """Remove the shards used longest ago; whether there is room now."""
        entries = sorted(self._entries())
        total = sum(taken for _, _, taken in entries)
        for _, path, taken in entries:
            if total + size <= self.most:
                break
            if not path.name.startswith("."):
                _remove(path)
                total -= taken
        return total + size <= self.most

    def _entries(self) -> list[tuple[int, Path, int]]:
        """Time of the last use in ns, path and bytes of all files that count."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            partial = _PARTIAL.fullmatch(path.name)
            if partial or _SHARD.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    size = int(partial[1]) if partial else status.st_size
                    found.append((status.st_mtime_ns, path, size))
        return found

    def _remove_leftovers(self) -> None:
        for _, path, _ in self._entries():
            if not path.name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES):
                        raise
                else:
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _use(path: Path, size: int) -> bool:
    """Whether the shard is there, and then note that it is used now."""
    try:
        if path.stat().st_size != size:
            return False
        used_now(path)
    except FileNotFoundError:
        return False
    return True


def used_now(path: Path) -> None:
    """Note it in the file's time, to the nanosecond: the clock of file systems ticks slower."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _remove(path: Path) -> None:
    """Free its space, also where a process has it open: that one finds it short, and fetches it."""
    with contextlib.suppress(FileNotFoundError):  # somebody has cleared the cache
        os.truncate(path, 0)
        path.unlink()
