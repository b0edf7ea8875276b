"""What the numbers support, in words: no more and no less."""

from __future__ import annotations

from collections.abc import Sequence

from transfer.compare.statistics import ArmStatistics, Difference, Metric, is_per_class
from transfer.compare.table import mean_text, signed
from transfer.compare.untrusted import clean


def headline(rows: Sequence[ArmStatistics], base: str, mismatches: Sequence[str]) -> list[str]:
    """One sentence per arm and task about its AP against the base.

    "Better" and "worse" only where the 95 % interval leaves zero out. Where runs differ in more
    than their weights (``mismatches``) there is no verdict at all, whatever the numbers.
    """
    if mismatches:
        which = "the first note" if len(mismatches) == 1 else f"the first {len(mismatches)} notes"
        return [
            "The runs differ in more than their weights, so these numbers do not show which "
            f"weights are better (see {which})."
        ]
    metrics = main_metrics(rows)
    others = [row for row in rows if row.arm != base]
    if not others:
        values = ", ".join(f"{_named(key)} {mean_text(rows[0].summaries[key])}" for key in metrics)
        return [f"{clean(base)} alone: {values}. There is no other arm to compare it with."]
    return [
        _verdict(clean(row.arm), clean(base), _named(key), row.differences[key])
        for key in metrics
        for row in others
    ]


def main_metrics(rows: Sequence[ArmStatistics]) -> list[Metric]:
    """AP of every task (box, mask, ...); where a task has no AP, its first number."""
    chosen: dict[str, Metric] = {}
    for metric in rows[0].summaries:
        if not is_per_class(metric) and (metric[0] not in chosen or metric[1] == "AP"):
            chosen[metric[0]] = metric
    return list(chosen.values())


def _verdict(arm: str, base: str, metric: str, difference: Difference) -> str:
    if difference.mean is None:
        return f"{arm} and {base} have no seed in common with a {metric}: no paired comparison."
    mean = signed(difference.mean)
    if difference.low is None or difference.high is None:
        return (
            f"{arm} has {mean} {metric} against {base} in one seed; one pair of runs cannot tell "
            "a difference from noise."
        )
    interval = f"95 % interval {signed(difference.low)} to {signed(difference.high)}"
    support = f"{interval}, {difference.n} paired seeds"
    if difference.sign == 0:
        return f"No difference shown between {arm} and {base}: {mean} {metric} ({support})."
    word = "better" if difference.sign > 0 else "worse"
    return f"{arm} is {word} than {base}: {mean} {metric} ({support})."


def _named(metric: Metric) -> str:
    words = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}
    return clean(f"{words.get(metric[0], metric[0])} {metric[1]}")
