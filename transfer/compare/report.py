"""The report of a comparison: one HTML file that holds everything and loads nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from transfer.compare.figures import arm_colour
from transfer.compare.pictures import Panel
from transfer.compare.plots import Plot
from transfer.compare.runs import Results
from transfer.compare.statistics import ArmStatistics, Metric, arm_names, is_per_class
from transfer.compare.table import NOT_AVAILABLE, difference_text, mean_text, seeds_text
from transfer.compare.untrusted import clean

_TASKS = {"bbox": "Boxes", "segm": "Masks", "keypoints": "Keypoints"}


@dataclass(frozen=True)
class Content:
    """Everything that the report shows."""

    results: Sequence[Results]
    rows: Sequence[ArmStatistics]
    base: str
    headline: Sequence[str]
    mismatches: Sequence[str]
    cautions: Sequence[str]
    plots: Sequence[Plot]
    pictures: Sequence[tuple[str, Sequence[Panel]]]
    command: str


def render(content: Content) -> str:
    """The report as HTML text. All text is escaped; a content policy forbids scripts and loads."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.filters.update(
        duration=duration, megabytes=megabytes, data_uri=_data_uri, plain=_plain
    )
    results = content.results
    return environment.get_template("report.html.j2").render(
        content=content,
        colours={arm: arm_colour(i) for i, arm in enumerate(arm_names(results))},
        tables=_tables(content.rows, is_wanted=lambda metric: not is_per_class(metric)),
        class_tables=_tables(content.rows, is_wanted=is_per_class),
        metrics=_distinct(results, lambda run: run["metric"]),
        runs=[_run_row(run, _overall(content.rows)) for run in results],
        run_metrics=[" ".join(metric) for metric in _overall(content.rows)],
        arms=[_provenance(results, arm) for arm in arm_names(results)],
        setup=_setup(results),
        deviations=list(dict.fromkeys(text for run in results for text in run["deviations"])),
    )


def duration(seconds: float) -> str:
    """``1:02:03`` for 3723 seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def megabytes(value: float | None) -> str:
    """``12,345 MB``, or n/a."""
    return NOT_AVAILABLE if value is None else f"{value:,.0f} MB"


def _tables(
    rows: Sequence[ArmStatistics], is_wanted: Callable[[Metric], bool]
) -> list[dict[str, Any]]:
    """One table per task: metric titles, and per arm the texts of its cells."""
    metrics = [metric for metric in rows[0].summaries if is_wanted(metric)]
    return [
        {
            "title": _TASKS.get(task, task),
            "metrics": [name.removeprefix("AP-") for of_task, name in metrics if of_task == task],
            "rows": [
                {
                    "arm": row.arm,
                    "seeds": seeds_text(row),
                    "cells": [_cell(row, metric) for metric in metrics if metric[0] == task],
                }
                for row in rows
            ],
        }
        for task in dict.fromkeys(task for task, _ in metrics)
    ]


def _cell(row: ArmStatistics, metric: Metric) -> dict[str, Any]:
    difference = row.differences.get(metric)
    mean, _, interval = difference_text(difference).partition(" ") if difference else ("", "", "")
    return {
        "mean": mean_text(row.summaries[metric]),
        "difference": mean,
        "interval": interval,
        "sign": difference.sign if difference else 0,
    }


def _overall(rows: Sequence[ArmStatistics]) -> list[Metric]:
    return [metric for metric in rows[0].summaries if not is_per_class(metric)]


def _run_row(run: Results, metrics: Sequence[Metric]) -> dict[str, Any]:
    values = [run["metrics"].get(task, {}).get(name) for task, name in metrics]
    return {
        "arm": run["arm"],
        "seed": run["seed"],
        "cells": [NOT_AVAILABLE if value is None else f"{value:.2f}" for value in values],
        "wall_time_s": run["wall_time_s"],
        "peak_memory_mb": run.get("peak_memory_mb"),
        "finished": run.get("finished", NOT_AVAILABLE),
    }


def _provenance(results: Sequence[Results], arm: str) -> dict[str, Any]:
    """Where an arm's weights come from and what was loaded, from its first run."""
    run = next(run for run in results if run["arm"] == arm)
    weights = run["weights"] or {}
    return {
        "name": arm,
        "random": run["weights"] is None,
        "path": weights.get("path", NOT_AVAILABLE),
        "sha256": weights.get("sha256", NOT_AVAILABLE),
        "conventions": weights.get("conventions") or {},
        "load_report": run.get("load_report"),
    }


def _setup(results: Sequence[Results]) -> list[tuple[str, list[str]]]:
    """What all runs share, in the order of reading; several values where they do not share it."""
    found: list[tuple[str, list[str]]] = [
        ("recipe", _distinct(results, lambda run: run["recipe"])),
        ("recipe hash", _distinct(results, lambda run: run["recipe_hash"])),
        (
            "engine",
            _distinct(results, lambda run: f"{run['engine']} ({run['engine_reason']})"),
        ),
    ]
    for section in ("schedule", "dataset", "hardware", "versions"):
        for key in dict.fromkeys(key for run in results for key in run[section]):
            found.append((f"{section}: {key}", _distinct(results, _entry(section, key))))
    return found


def _entry(section: str, key: str) -> Callable[[Results], Any]:
    return lambda run: run[section].get(key)


def _distinct(results: Sequence[Results], value: Callable[[Results], Any]) -> list[str]:
    return list(dict.fromkeys(_plain(value(run)) for run in results))


def _plain(value: Any) -> str:
    """A JSON value as a reader wants it: ``a, b`` for a list, ``yes`` and ``no``, – for empty."""
    if value in ("", [], {}, None):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _data_uri(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
