"""The folder of a run: one run at a time, nothing overwritten by accident, Detectron2's names."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from runtime.errors import InputError
from runtime.files import remove_leftovers, write_text

LAST_CHECKPOINT = "last_checkpoint"
METRICS = "metrics.json"


def prepare(output: str | os.PathLike[str], resume: bool) -> Path:
    """Make the run folder, or take the existing one.

    Raises InputError where the folder already holds a run and ``resume`` is off, where it is a file
    or cannot be made, or where none is named.
    """
    if not str(output):
        raise InputError("OUTPUT_DIR is not set: name a folder for the run, OUTPUT_DIR DIR")
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"OUTPUT_DIR {str(folder)!r} is a file: name another folder")
    begun = [folder / name for name in (METRICS, LAST_CHECKPOINT)]
    if not resume and any(path.exists() and path.stat().st_size for path in begun):
        raise InputError(
            f"OUTPUT_DIR {str(folder)!r} already holds a run: continue it with --resume, or name "
            "another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make OUTPUT_DIR {str(folder)!r}: {error.strerror}") from error
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; freed if we are killed.

    What an earlier process was writing when it was killed is removed. InputError if another process
    runs in the folder, or it cannot be written to.
    """
    with _lock_file(folder) as stream:
        try:
            # lockf, not flock: a flock would live on in workers that outlive us by some seconds
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"another run is using {str(folder)!r}: wait for it, or name another OUTPUT_DIR"
            ) from error
        remove_leftovers(folder)
        yield


def _lock_file(folder: Path) -> IO[str]:
    try:
        return open(folder / ".lock", "w")
    except OSError as error:
        raise InputError(f"cannot write to the folder {str(folder)!r}: {error.strerror}") from error


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that ``last_checkpoint`` names, or None where there is none yet."""
    checkpoint = pointed_at(folder)
    if checkpoint is not None and not checkpoint.is_file():
        pointer = folder / LAST_CHECKPOINT
        raise InputError(f"{str(pointer)!r} names {checkpoint.name!r}, which is not there")
    return checkpoint


def pointed_at(folder: Path) -> Path | None:
    """What ``last_checkpoint`` names, there or not; None where nothing is named."""
    pointer = folder / LAST_CHECKPOINT
    name = pointer.read_bytes().decode("utf-8", "replace").strip() if pointer.exists() else ""
    return folder / name if name else None


def set_last_checkpoint(checkpoint: Path) -> None:
    """Make ``checkpoint`` the one that ``--resume`` continues from."""
    write_text(checkpoint.parent / LAST_CHECKPOINT, checkpoint.name)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.json``, oldest first; a line cut short by a kill is left out."""
    path = folder / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
