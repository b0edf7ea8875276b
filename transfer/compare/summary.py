"""From the results of all runs to the comparison folder: tables, plots and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from runtime.errors import InputError
from runtime.files import atomic_write, write_text
from transfer.compare import fairness, table
from transfer.compare.arms import is_valid_name
from transfer.compare.figures import Curve
from transfer.compare.headline import headline, main_metrics
from transfer.compare.pictures import Detections, Images, Panel, panels
from transfer.compare.plots import LOSS, ap_plot, curve_plots
from transfer.compare.report import Content, render
from transfer.compare.runs import (
    Results,
    check_results,
    read_curves,
    read_detections,
    run_folder,
)
from transfer.compare.statistics import arm_names, compare_arms, metric_names
from transfer.compare.untrusted import clean
from transfer.view.pictures import choose

PICTURES = 4  # test images in the report


def summarise(
    results: Sequence[Results],
    base: str,
    output: Path,
    dataset: Images | None = None,
    command: str = "",
) -> None:
    """Write ``table.md``, ``table.csv``, ``plots/*.png`` and ``report.html``; print the table.

    ``results`` are the ``results.json`` of all runs, ``base`` the arm that the others are compared
    with, ``output`` the comparison folder (run folders are looked for in it, at ``ARM/seedN``),
    ``dataset`` the test set for the pictures, ``command`` how to repeat the comparison. Curves
    and pictures that cannot be made are named in the notes. Raises :class:`InputError` for results
    that are no comparison.
    """
    _demand_comparison(results, base)
    rows = compare_arms(results, base)
    metrics = main_metrics(rows)
    reading: list[str] = []
    curves = _curves(results, output, [LOSS, *map("/".join, metrics)], reading)
    pictures = [] if dataset is None else _pictures(results, output, dataset, reading)
    mismatches = fairness.mismatches(results)
    content = Content(
        results=results,
        rows=rows,
        base=base,
        headline=headline(rows, base, mismatches),
        mismatches=mismatches,
        cautions=[*fairness.cautions(results), *reading],
        plots=[*(ap_plot(results, metric) for metric in metrics), *curve_plots(curves)],
        pictures=pictures,
        command=command,
    )
    _write(content, output)
    _print(content)


def _demand_comparison(results: Sequence[Results], base: str) -> None:
    if not results:
        raise InputError("there are no finished runs to compare: run the arms first")
    for number, run in enumerate(results, 1):
        check_results(run, f"run {number}")
    runs = [(run["arm"], run["seed"]) for run in results]
    twice = [run for run in dict.fromkeys(runs) if runs.count(run) > 1]
    if twice:
        raise InputError(f"arm {twice[0][0]!r} has seed {twice[0][1]} twice: pass every run once")
    if base not in arm_names(results):
        raise InputError(
            f"the base arm {base!r} has no run: choose one of {', '.join(arm_names(results))}"
        )
    if not metric_names(results):
        raise InputError("no run has any metric: evaluate the runs first")


def _write(content: Content, output: Path) -> None:
    """Everything is made before anything is written."""
    metric = "; ".join(dict.fromkeys(run["metric"] for run in content.results))
    notes = [*content.mismatches, *content.cautions]
    texts = {
        "table.md": table.markdown(content.rows, content.base, content.headline, metric, notes),
        "table.csv": table.csv_table(content.rows, content.base),
        "report.html": render(content),
    }
    (output / "plots").mkdir(parents=True, exist_ok=True)
    for plot in content.plots:
        with atomic_write(output / "plots" / f"{plot.name}.png") as stream:
            stream.write(plot.png)
    for name, text in texts.items():
        write_text(output / name, text)


def _print(content: Content) -> None:
    console = Console()
    console.print(table.terminal_table(content.rows, content.base))
    for sentence in content.headline:
        console.print(Text(clean(sentence), style="bold"))
    for note in [*content.mismatches, *content.cautions]:
        console.print(Text(f"note: {clean(note)}", style="yellow"))


def _folder(output: Path, run: Results) -> Path | None:
    """The run's folder; ``None`` for a name that must not become a path."""
    return run_folder(output, run["arm"], run["seed"]) if is_valid_name(run["arm"]) else None


def _curves(
    results: Sequence[Results], output: Path, keys: list[str], notes: list[str]
) -> dict[str, dict[str, list[Curve]]]:
    """``{key: {arm: curve of each seed}}``, without empty curves."""
    curves: dict[str, dict[str, list[Curve]]] = {key: {} for key in keys}
    for run in results:
        folder = _folder(output, run)
        if folder is None:
            notes.append(f"No learning curve for arm {clean(run['arm'])}: not a folder name.")
            continue
        for key, curve in read_curves(folder, keys, notes).items():
            if curve:
                curves[key].setdefault(run["arm"], []).append(curve)
    return curves


def _pictures(
    results: Sequence[Results], output: Path, dataset: Images, notes: list[str]
) -> list[tuple[str, list[Panel]]]:
    """``(image file, panels)`` with the detections of every arm's first seed."""
    detections: dict[str, Detections | None] = {}
    for arm in arm_names(results):
        first = min((run for run in results if run["arm"] == arm), key=lambda run: run["seed"])
        folder = _folder(output, first)
        detections[arm] = None if folder is None else read_detections(folder)
        if detections[arm] is None:
            notes.append(f"Arm {clean(arm)} seed {first['seed']} saved no detections to draw.")
    drawn = []
    for record in choose(dataset.records, PICTURES):
        name = Path(record["file_name"]).name
        try:
            drawn.append((name, panels(record, dataset.classes, detections)))
        except (OSError, Image.DecompressionBombError) as error:
            notes.append(f"No picture of {clean(name)}: {clean(str(error))}.")
    return drawn
