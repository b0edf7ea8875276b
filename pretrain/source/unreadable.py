"""Unreadable images are replaced, counted and listed; too many of them stop the run.

Which image takes the place of another is a pure function of the seed and the place, as every draw
is (``pretrain/loading/batches.py``). Here is the account of it, over all processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from pretrain.source.decode import printable
from runtime.distributed import all_gather_objects, from_main, is_main
from runtime.errors import InputError
from runtime.files import write_text

log = logging.getLogger("moco")

LIST = "unreadable.txt"
AT_LEAST = 3  # images that any data set may lose, unless none is allowed
NAMED = 10  # images in an error message


def allowed(share: float, count: int) -> int:
    """How many of ``count`` images may be unreadable: ``share`` of them, but at least 3."""
    return max(AT_LEAST, int(share * count)) if share > 0 else 0


class UnreadableImages:
    """The unreadable images that a run has met, on all its processes; listed in its folder."""

    def __init__(self, output: Path, limit: int, resume: bool) -> None:
        self.path = output / LIST
        self.limit = limit
        self._new: dict[str, str] = {}
        self._all = self._listed() if resume and is_main() else {}
        if is_main() and not resume:
            self.path.unlink(missing_ok=True)  # of a run that died before its first step

    def note(self, images: Iterable[tuple[str, str]]) -> None:
        """Remember (name, reason) of images that this process has met."""
        self._new.update((printable(name), reason) for name, reason in images)

    def gather(self) -> None:
        """List what is new on all processes, which call this at the same steps.

        InputError on all of them where the images are more than the limit, or the list cannot be
        written.
        """
        found = all_gather_objects(self._new)
        self._new = {}
        problem = from_main(self._account(found) if is_main() else None)
        if problem:
            raise InputError(problem)

    def _account(self, found: list[dict[str, str]]) -> str | None:
        before = len(self._all)
        for images in found:
            self._all.update(images)
        if len(self._all) == before:
            return None
        lines = [f"{name}\t{reason}\n" for name, reason in sorted(self._all.items())]
        try:
            write_text(self.path, "".join(lines))
        except OSError as error:
            return f"cannot list the unreadable images in {str(self.path)!r}: {error.strerror}"
        if len(self._all) > self.limit:
            return self._too_many()
        log.warning(
            "%d unreadable image(s) so far, at most %d may be; others took their places: %s",
            *(len(self._all), self.limit, self.path),
        )
        return None

    def _too_many(self) -> str:
        named = [f"{name} ({reason})" for name, reason in sorted(self._all.items())[:NAMED]]
        more = f" and {len(self._all) - NAMED} more" if len(self._all) > NAMED else ""
        return (
            f"{len(self._all)} images are unreadable, DATA.MAX_UNREADABLE allows {self.limit}: "
            f"{', '.join(named)}{more}; all in {str(self.path)!r}: repair or remove them"
        )

    def _listed(self) -> dict[str, str]:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return dict(line.split("\t", 1) for line in text.splitlines())
