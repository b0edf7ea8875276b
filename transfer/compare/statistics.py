"""The numbers of a comparison: mean and spread per arm, and paired differences to the base."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from transfer.compare.runs import Results

CONFIDENCE = 0.95
Metric = tuple[str, str]  # (task, name): ("bbox", "AP50")


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) over ``n`` seeds; ``None`` is "not available"."""

    n: int
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of (arm - base) over the seeds that both have, with its confidence interval.

    ``low`` and ``high`` are ``None`` below two common seeds: one pair shows no spread.
    """

    n: int
    mean: float | None
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below zero, else 0 (nothing is shown)."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class ArmStatistics:
    """One row of the table. ``differences`` is empty for the base arm."""

    arm: str
    seeds: tuple[int, ...]
    summaries: dict[Metric, Summary]
    differences: dict[Metric, Difference]


def arm_names(results: Sequence[Results]) -> list[str]:
    """The arms in order of first appearance."""
    return list(dict.fromkeys(run["arm"] for run in results))


def metric_names(results: Sequence[Results]) -> list[Metric]:
    """Every (task, name) that some run reports, in order of first appearance."""
    return list(
        dict.fromkeys(
            (task, name)
            for run in results
            for task, of_task in run["metrics"].items()
            for name in of_task
        )
    )


def is_per_class(metric: Metric) -> bool:
    """Whether this is the AP of one class (``AP-cat``, as Detectron2 names it)."""
    return metric[1].startswith("AP-")


def values_by_seed(results: Sequence[Results], arm: str, metric: Metric) -> dict[int, float]:
    """``{seed: value}`` of one arm; seeds without a finite value are absent."""
    task, name = metric
    found = {
        run["seed"]: run["metrics"].get(task, {}).get(name) for run in results if run["arm"] == arm
    }
    return {
        seed: float(value)
        for seed, value in found.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def summary(values: Collection[float]) -> Summary:
    """Mean and sample standard deviation of ``values``."""
    if not values:
        return Summary(0, None, None)
    array = np.fromiter(values, np.float64)
    std = float(array.std(ddof=1)) if len(array) > 1 else None
    return Summary(len(array), float(array.mean()), std)


def paired_difference(ours: Mapping[int, float], base: Mapping[int, float]) -> Difference:
    """Mean difference over common seeds, with Student's t interval at 95 %.

    Runs of one seed share sample order, augmentation and head initialisation, so pairing takes
    that common part of the noise out.
    """
    differences = [ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())]
    spread = summary(differences)
    if spread.mean is None or spread.std is None:
        return Difference(spread.n, spread.mean, None, None)
    quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, spread.n - 1)
    half = float(quantile * spread.std / math.sqrt(spread.n))
    return Difference(spread.n, spread.mean, spread.mean - half, spread.mean + half)


def compare_arms(results: Sequence[Results], base: str) -> list[ArmStatistics]:
    """Statistics of every arm, in order of first appearance."""
    metrics = metric_names(results)
    of_base = {metric: values_by_seed(results, base, metric) for metric in metrics}
    rows = []
    for arm in arm_names(results):
        values = {metric: values_by_seed(results, arm, metric) for metric in metrics}
        rows.append(
            ArmStatistics(
                arm,
                tuple(sorted(run["seed"] for run in results if run["arm"] == arm)),
                {metric: summary(values[metric].values()) for metric in metrics},
                {
                    metric: paired_difference(values[metric], of_base[metric])
                    for metric in metrics
                    if arm != base
                },
            )
        )
    return rows
