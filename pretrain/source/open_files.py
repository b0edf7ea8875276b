"""Files that stay open while many images are read from them."""

from __future__ import annotations

import functools
import os
import weakref
from pathlib import Path

from pretrain.source.images import GoneError, of_the_storage

MOST = 256  # files open at a time in a process
AHEAD = 32 << 20  # bytes that the disk is asked for before they are needed
FORGOTTEN = 300  # reads of other files, after which a file is read from its beginning again


class OpenFiles:
    """The files read last, at most ``MOST`` of them; each is opened when it is first read.

    With ``ahead``, for reading in about the order of the bytes, the disk is always some way before
    the reader. A copy in another process opens its own.

    Files are not mapped into memory: where one becomes shorter, that would kill the process. Nor
    would it be sooner. Pages that a process looks at for the first time cost as much as a copy.
    """

    def __init__(self, ahead: bool = False) -> None:
        self.ahead = ahead
        self._reads = 0
        self._open = functools.lru_cache(_most())(_File)

    def __reduce__(self) -> tuple[type, tuple[bool]]:
        return type(self), (self.ahead,)

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """A copy of ``size`` bytes. InputError where that fails."""
        try:
            content = os.pread(self._file(path, offset).descriptor, size, offset)
        except OSError as error:
            raise of_the_storage(path, error) from error
        if len(content) != size:
            raise GoneError(f"{str(path)!r} has become shorter since this run began")
        return content

    def close(self) -> None:
        """Close all; what is read next is opened anew."""
        self._open.cache_clear()

    def _file(self, path: Path, offset: int) -> _File:
        file = self._open(path)
        if self.ahead:
            self._reads += 1
            file.ask_ahead(offset, self._reads)
        return file


def _most() -> int:
    """``MOST``, or half of what this process may open, where the system tells."""
    try:
        import resource
    except ImportError:
        return MOST
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if limit == resource.RLIM_INFINITY else min(MOST, limit // 2)


class _File:
    """One open file; closed when nothing refers to it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        self._asked = 0  # up to this byte
        self._last = 0  # read

    def ask_ahead(self, offset: int, now: int) -> None:
        """Have the disk read what comes in the next ``AHEAD`` bytes, without waiting for it.

        ``now`` counts the reads of all files: after a long pause it is another epoch.
        """
        if now - self._last > FORGOTTEN:
            self._asked = 0
        self._last = now
        if offset + AHEAD // 2 < self._asked or not hasattr(os, "posix_fadvise"):
            return
        os.posix_fadvise(self.descriptor, self._asked, AHEAD, os.POSIX_FADV_WILLNEED)
        self._asked += AHEAD
