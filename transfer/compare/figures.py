"""The figures of a comparison, as PNG. Colours are Okabe and Ito's, distinct to all eyes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transfer.compare.statistics import Metric, summary
from transfer.compare.untrusted import clean

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*"
Curve = Mapping[int, float]  # iteration -> value


def arm_colour(index: int) -> str:
    """The colour of the arm that stands at ``index`` in the table."""
    return PALETTE[index % len(PALETTE)]


def ap_per_arm(values: Mapping[str, Mapping[int, float]], metric: Metric) -> bytes:
    """Every seed as a dot, and mean ± sample standard deviation; one line per arm."""
    figure = Figure(figsize=(6, 1.1 + 0.5 * len(values)), layout="constrained")
    axes = figure.subplots()
    for index, of_arm in enumerate(values.values()):
        found = summary(of_arm.values())
        axes.plot(
            list(of_arm.values()),
            [index - 0.16] * len(of_arm),
            color=arm_colour(index),
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=5,
            linestyle="",
            alpha=0.55,
        )
        if found.mean is not None:
            axes.errorbar(
                found.mean,
                index + 0.16,
                xerr=found.std,
                color=arm_colour(index),
                marker="|",
                markersize=13,
                markeredgewidth=2.5,
                capsize=4,
                linewidth=2,
            )
    axes.set_yticks(range(len(values)), labels=[clean(arm) for arm in values], parse_math=False)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel(clean(f"{' '.join(metric)} (%)"), parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    return _png(figure, axes)


def learning_curves(curves: Mapping[str, Sequence[Curve]], label: str) -> bytes:
    """Every seed as a thin line, and their mean where all seeds of the arm have a value."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (arm, of_seeds) in enumerate(curves.items()):
        if len(of_seeds) > 1:
            for curve in of_seeds:
                axes.plot(*_sorted(curve), color=arm_colour(index), linewidth=0.7, alpha=0.4)
        # A label that starts with "_" would be left out of the legend.
        axes.plot(
            *_sorted(mean_curve(of_seeds)),
            color=arm_colour(index),
            linewidth=2,
            label=f" {clean(arm)}",
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            markevery=0.12,
        )
    axes.set_xlabel("iteration")
    axes.set_ylabel(clean(label), parse_math=False)
    axes.grid(alpha=0.3)
    for text in axes.legend(frameon=False).get_texts():
        text.set_parse_math(False)
    return _png(figure, axes)


def mean_curve(curves: Sequence[Curve]) -> dict[int, float]:
    """The mean over ``curves`` at the iterations that all of them have."""
    common = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {at: sum(curve[at] for curve in curves) / len(curves) for at in sorted(common)}


def _sorted(curve: Curve) -> tuple[list[int], list[float]]:
    iterations = sorted(curve)
    return iterations, [curve[iteration] for iteration in iterations]


def _png(figure: Figure, axes: Axes) -> bytes:
    axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=170)
    return stream.getvalue()
