"""Flawed images: unreadable ones are replaced, damaged ones used; both are counted and listed.

Which image takes the place of another is a pure function of the seed and the place, as every draw
is (``pretrain/loading/batches.py``). Damaged ones are used because the official code uses them: to
Pillow they are readable, and what it makes of the lost part is grey or noise. Here is the account
of both, over all processes; too many unreadable ones stop the run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pretrain.source.decode import printable
from runtime.distributed import all_gather_objects, from_main, is_main
from runtime.errors import InputError
from runtime.files import write_text

log = logging.getLogger("moco")

UNREADABLE, DAMAGED = "unreadable.txt", "damaged.txt"
AT_LEAST = 3  # unreadable images that any data set may have, unless none is allowed
NAMED = 10  # images in an error message


class Flaw(NamedTuple):
    """What is wrong with an image. ``used``: only damaged; else another took its place."""

    name: str
    reason: str
    used: bool = False


def allowed(share: float, count: int) -> int:
    """How many of ``count`` images may be unreadable: ``share`` of them, but at least 3."""
    return max(AT_LEAST, int(share * count)) if share > 0 else 0


class FlawedImages:
    """The flawed images that a run has met, on all its processes; listed in its folder."""

    def __init__(self, output: Path, limit: int, resume: bool) -> None:
        self.output, self.limit = output, limit
        self._new: set[Flaw] = set()
        self._unreadable, self._damaged = (
            _List(output / name, resume) for name in (UNREADABLE, DAMAGED)
        )

    def note(self, flaws: Iterable[Flaw]) -> None:
        """Remember what this process has met."""
        self._new.update(flaws)

    def gather(self) -> None:
        """List what is new on all processes, which call this at the same steps.

        InputError on all of them where the unreadable images are more than the limit, or a list
        cannot be written.
        """
        found = all_gather_objects(self._new)
        self._new = set()
        problem = from_main(self._account(set().union(*found)) if is_main() else None)
        if problem:
            raise InputError(problem)

    def unreadable(self) -> frozenset[str]:
        """Their names so far, as :func:`printable` has them, on all processes."""
        return from_main(frozenset(self._unreadable.images))

    def _account(self, flaws: set[Flaw]) -> str | None:
        try:
            damaged = self._damaged.add(flaw for flaw in flaws if flaw.used)
            unreadable = self._unreadable.add(flaw for flaw in flaws if not flaw.used)
        except OSError as error:
            return f"cannot list the flawed images in {str(self.output)!r}: {error.strerror}"
        if damaged:
            log.warning(
                "%d damaged image(s) so far, used with what can be decoded of them, as the "
                "official code does: %s",
                *(len(self._damaged.images), self._damaged.path),
            )
        if len(self._unreadable.images) > self.limit:
            return self._too_many()
        if unreadable:
            log.warning(
                "%d unreadable image(s) so far, at most %d may be; others took their places: %s",
                *(len(self._unreadable.images), self.limit, self._unreadable.path),
            )
        return None

    def _too_many(self) -> str:
        images, path = self._unreadable.images, self._unreadable.path
        named = [f"{name} ({reason})" for name, reason in sorted(images.items())[:NAMED]]
        more = f" and {len(images) - NAMED} more" if len(images) > NAMED else ""
        return (
            f"{len(images)} images are unreadable, DATA.MAX_UNREADABLE allows {self.limit}: "
            f"{', '.join(named)}{more}; all in {str(path)!r}: repair or remove them"
        )


class _List:
    """A file with a line an image: its name, a tab and the reason. Kept by the main process."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self.images: dict[str, str] = {}
        if resume and is_main() and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            parts = (line.partition("\t") for line in lines if line)  # a user may have edited it
            self.images = {name: reason for name, _, reason in parts}
        if is_main() and not resume:
            path.unlink(missing_ok=True)  # of a run that died before its first step

    def add(self, flaws: Iterable[Flaw]) -> bool:
        """Whether there are new ones; then the file is written anew."""
        before = len(self.images)
        self.images.update((printable(flaw.name), flaw.reason) for flaw in flaws)
        if len(self.images) == before:
            return False
        lines = [f"{name}\t{reason}\n" for name, reason in sorted(self.images.items())]
        write_text(self.path, "".join(lines))
        return True
