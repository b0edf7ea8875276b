"""Which figures a comparison shows, from the values and the curves of its runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transfer.compare.figures import Curve, ap_per_arm, learning_curves
from transfer.compare.runs import Results
from transfer.compare.statistics import Metric, arm_names, values_by_seed

LOSS = "total_loss"


@dataclass(frozen=True)
class Plot:
    """A figure with what is said below it, and to those who do not see it."""

    name: str
    png: bytes
    title: str
    caption: str
    alt: str


def ap_plot(results: Sequence[Results], metric: Metric) -> Plot:
    """One metric of every arm and seed."""
    values = {arm: values_by_seed(results, arm, metric) for arm in arm_names(results)}
    name = " ".join(metric)
    listed = "; ".join(
        f"{arm}: {', '.join(f'{value:.2f}' for value in of_arm.values())}"
        for arm, of_arm in values.items()
    )
    return Plot(
        _file_name(name),
        ap_per_arm(values, metric),
        f"{name} per arm",
        "Faint markers: single seeds. Bar: mean ± sample standard deviation. "
        "The axis does not start at zero.",
        f"{name} of every seed. {listed}",
    )


def curve_plots(curves: Mapping[str, Mapping[str, Sequence[Curve]]]) -> list[Plot]:
    """One figure per key of ``{key: {arm: curve of each seed}}``.

    Keys with no curve of two points are left out: evaluation at the end alone is no curve.
    """
    return [
        _curve_plot(key, by_arm)
        for key, by_arm in curves.items()
        if any(len(curve) > 1 for of_arm in by_arm.values() for curve in of_arm)
    ]


def _curve_plot(key: str, by_arm: Mapping[str, Sequence[Curve]]) -> Plot:
    name = key.replace("/", " ").replace("_", " ")
    unit = "" if key == LOSS else " (%)"
    return Plot(
        f"{_file_name(key)}_curve",
        learning_curves(by_arm, name + unit),
        f"{name} during training",
        "Thin lines: single seeds. Thick: their mean, where all seeds of the arm have a value.",
        f"{name} against iterations, one line for each of {', '.join(by_arm)}",
    )


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", text)
