"""CPU time of alternatives, measured in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """CPU seconds of each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.seconds)


def timed(work: Callable[[], object]) -> float:
    """CPU seconds, user and system, of all threads, that ``work`` takes."""
    before = time.process_time()
    work()
    return time.process_time() - before


def interleave(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """``rounds`` rounds in which each of ``measures`` (which return CPU seconds) has its turn.

    The order is reversed from round to round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        names = list(measures) if number % 2 == 0 else list(reversed(measures))
        for name in names:
            seconds[name].append(measures[name]())
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def row(what: str, unit: str, reference: Timing | None, ours: Timing, per: int = 1) -> str:
    """A line of the table: medians (seconds / ``per``), the median of the ratios, their range."""
    scale = 1000 / per
    mine = f"{ours.median * scale:.3g}"
    if reference is None:
        return f"| {what} | {unit} | not measured | {mine} | | |"
    ratios = [a / b for a, b in zip(reference.seconds, ours.seconds, strict=True)]
    return (
        f"| {what} | {unit} | {reference.median * scale:.3g} | {mine} "
        f"| **{statistics.median(ratios):.2f}** | {min(ratios):.2f} to {max(ratios):.2f} |"
    )
