"""Checkpoints of a run folder: written whole, verified when read, the old ones deleted.

``checkpoints.sha256`` lists the SHA-256 of each, oldest first, as ``sha256sum --check`` reads it.
The CRCs within a torch file would not do: they cover the members of the archive, not what lies
between them, and torch does not look at them. A SHA-256 sees every flipped bit and every missing
byte.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from runtime.distributed import from_main, is_main
from runtime.errors import InputError
from runtime.files import atomic_write, sha256, write_text
from runtime.rundir import pointed_at, set_last_checkpoint

log = logging.getLogger("moco")

SUMS = "checkpoints.sha256"
Content = TypeVar("Content")
# Names of all checkpoints of the run, oldest first -> those that may be deleted.
Deletable = Callable[[list[str]], Iterable[str]]


def write(path: Path, state: Mapping[str, Any], deletable: Deletable = lambda names: ()) -> None:
    """Write ``state`` to ``path``, make it the run's last checkpoint, delete what may go.

    A kill at any moment leaves a folder that :func:`newest` finds its way in: the sum comes before
    the name that it belongs to, the pointer after it, and deletions last. Raises InputError where
    the disk does not take it; the checkpoint of before is then still the last one.
    """
    folder = path.parent
    listed = _read_sums(folder)
    sums = _up_to_last(folder, listed)
    try:
        with atomic_write(path) as stream:
            sums[path.name] = _save(state, stream)
            _write_sums(folder, sums)
        set_last_checkpoint(path)
        gone = set(deletable(list(sums))) | (listed.keys() - sums.keys())
        if gone:
            for name in gone:
                (folder / name).unlink(missing_ok=True)
            _write_sums(folder, {name: sums[name] for name in sums if name not in gone})
    except OSError as error:
        last = pointed_at(folder)
        kept = f"the last checkpoint is {last.name!r}" if last else "there is no checkpoint yet"
        raise InputError(
            f"cannot write the checkpoint {str(path)!r} ({error.strerror or error}): {kept}; "
            "repair the disk or make room, then continue with --resume"
        ) from error


def newest(folder: Path, read: Callable[[Path], Content]) -> tuple[Path, Content] | None:
    """The last sound checkpoint and what ``read`` makes of it; the same on all processes.

    None where there is none yet. Damaged ones are skipped with a warning that names them, and the
    one taken becomes the last. Raises InputError where none is sound. ``read`` raises InputError
    for a file that it cannot read.
    """
    found = _newest(folder, read) if is_main() else None
    path: Path | None = from_main(found and found[0])
    if path is None or found is not None:
        return found
    return path, read(path)


def _newest(folder: Path, read: Callable[[Path], Content]) -> tuple[Path, Content] | None:
    skipped = []
    for path, digest in _candidates(folder):
        try:
            _verify(path, digest)
            content = read(path)
        except InputError as error:
            log.warning("skipping a checkpoint: %s", error)
            skipped.append(path.name)
            continue
        if skipped:
            set_last_checkpoint(path)
        return path, content
    if skipped:
        raise InputError(
            f"no checkpoint in {str(folder)!r} is sound ({', '.join(skipped)}): start the run anew "
            "in another OUTPUT_DIR"
        )
    return None


def _candidates(folder: Path) -> list[tuple[Path, str | None]]:
    """The last checkpoint, and all before it, newest first, with their sums if known."""
    sums, last = _up_to_last(folder, _read_sums(folder)), pointed_at(folder)
    candidates: list[tuple[Path, str | None]] = [(folder / name, sums[name]) for name in sums]
    if last is not None and last.name not in sums:
        candidates.append((last, None))
    return candidates[::-1]


def _verify(path: Path, digest: str | None) -> None:
    if not path.is_file():
        raise InputError(f"{str(path)!r} is not there")
    if digest is not None and sha256(path) != digest:
        raise InputError(f"{str(path)!r} is damaged: its SHA-256 is not the one in {SUMS}")


def _up_to_last(folder: Path, sums: Mapping[str, str]) -> dict[str, str]:
    """Without the checkpoints that were written after the last one: by a run cut off in a save, or
    before it was continued from an earlier one. Nor with one that is listed alone, not there and
    not pointed at: the first save of all was cut off."""
    last, names = pointed_at(folder), list(sums)
    if last is None and len(names) == 1 and not (folder / names[0]).is_file():
        return {}
    if last is not None and last.name in sums:
        names = names[: names.index(last.name) + 1]
    return {name: sums[name] for name in names}


def _read_sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
    return {name: digest for digest, name in re.findall(r"(?m)^([0-9a-f]{64})  ([^/\0\n]+)$", text)}


def _write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def _save(state: Mapping[str, Any], stream: IO[bytes]) -> str:
    """``torch.save``; returns the SHA-256 of what went through."""
    hashed = _Hashed(stream)
    try:
        torch.save(state, cast(IO[bytes], hashed))
    except RuntimeError as error:  # what torch makes of an OSError
        raise hashed.error or error from None
    return hashed.digest.hexdigest()


class _Hashed:
    """A stream to write to that keeps the SHA-256, and the error that torch hides."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        self.digest.update(data)
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._stream.flush()


class BackgroundWriter:
    """Writes checkpoints in a thread, one at a time, while the training goes on.

    A context manager; leaving it waits for the last write. Errors of a write are raised by the next
    call of any method.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def write(self, path: Path, state: Any, deletable: Deletable) -> None:
        """:func:`write` a copy of ``state`` in host memory, taken now; waits for the one before."""
        self.wait()
        self._pending = self._pool.submit(write, path, to_host(state), deletable)

    def check(self) -> None:
        """Raise the error of a write that has failed; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until everything is on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        try:
            self.wait()
        except InputError as failed:
            if error is None:
                raise
            log.error("%s", failed)  # beside the error that ended the run
        finally:
            self._pool.shutdown()


def to_host(state: Any) -> Any:
    """A copy whose tensors are on the CPU and share no memory with those of ``state``.

    Also those that are on the CPU already: what a thread writes later must not change any more.
    """
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: to_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(to_host, state))
    return state
