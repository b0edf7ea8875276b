"""A progress bar for long work that is no training."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """How much of ``total`` is done, on a terminal; nothing where stderr goes elsewhere.

    Drawn when it is told to: no thread, so that the process can still be forked.
    """

    def __init__(self, unit: str, total: int) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            *(BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn()),
            console=console,
            disable=not console.is_terminal,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", total=total)

    def show(self, done: int) -> None:
        """Draw it with ``done`` of the total."""
        self._bar.update(self._task, completed=done, refresh=True)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()
