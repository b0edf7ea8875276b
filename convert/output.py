"""Where a converted or exported file goes: never over its source, a folder or somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import InputError


def check_output(target: str | Path, source: str | Path) -> None:
    """InputError where ``target`` is ``source`` itself or a folder, or has no folder to lie in."""
    path = Path(target)
    if not path.resolve().parent.is_dir():
        raise InputError(f"there is no folder {str(path.resolve().parent)!r}: make it first")
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder: name a file to write")
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise InputError(f"{source} would be overwritten: name another file to write")


@contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """An OSError in the block, which writes ``target``, becomes an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
