"""The table of a comparison: for a page (Markdown), for a program (CSV), for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from transfer.compare.statistics import ArmStatistics, Difference, Metric, Summary, is_per_class
from transfer.compare.untrusted import clean, csv_text, markdown_text

NOT_AVAILABLE = "n/a"
_CSV_HEADER = (
    "arm",
    "task",
    "metric",
    "n",
    "mean",
    "std",
    "base",
    "pairs",
    "difference",
    "ci95_low",
    "ci95_high",
)


def mean_text(summary: Summary) -> str:
    """``55.90 ± 0.21``; ``55.90 ± n/a`` from one seed."""
    if summary.mean is None:
        return NOT_AVAILABLE
    std = NOT_AVAILABLE if summary.std is None else f"{summary.std:.2f}"
    return f"{summary.mean:.2f} ± {std}"


def difference_text(difference: Difference) -> str:
    """``+2.40 [+1.90, +2.90]``; ``+2.40 [n/a]`` from one pair of runs."""
    if difference.mean is None:
        return NOT_AVAILABLE
    if difference.low is None or difference.high is None:
        return f"{signed(difference.mean)} [{NOT_AVAILABLE}]"
    return f"{signed(difference.mean)} [{signed(difference.low)}, {signed(difference.high)}]"


def signed(value: float) -> str:
    """Two decimals with a sign, and no ``-0.00``."""
    return f"{round(value, 2) + 0.0:+.2f}"


def seeds_text(row: ArmStatistics) -> str:
    """The seeds of an arm: ``1, 2, 3``."""
    return ", ".join(map(str, row.seeds))


def markdown(
    rows: Sequence[ArmStatistics],
    base: str,
    headline: Sequence[str],
    metric: str,
    notes: Sequence[str],
) -> str:
    """The content of ``table.md``: means, differences to the base, and every note."""
    metrics = _overall_metrics(rows)
    titles = [" ".join(key) for key in metrics]
    means = [
        [row.arm, seeds_text(row), *(mean_text(row.summaries[key]) for key in metrics)]
        for row in rows
    ]
    differences = [
        [row.arm, *(difference_text(row.differences[key]) for key in metrics)]
        for row in rows
        if row.arm != base
    ]
    blocks = [
        *(f"**{markdown_text(sentence)}**" for sentence in headline),
        _markdown_table(["arm", "seeds", *titles], means),
        f"Mean ± sample standard deviation over seeds. {markdown_text(metric)}.",
    ]
    if differences:
        blocks += [
            f"Difference to {markdown_text(base)}, mean over common seeds "
            r"\[95 % confidence interval, Student's t\]:",
            _markdown_table(["arm", *titles], differences),
        ]
    if notes:
        blocks.append("Notes:\n\n" + "\n".join(f"- {markdown_text(note)}" for note in notes))
    return "\n\n".join(blocks) + "\n"


def csv_table(rows: Sequence[ArmStatistics], base: str) -> str:
    """The content of ``table.csv``: one line per arm and metric, in full precision.

    Text is quoted and numbers are not; what is not available reads ``n/a``.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for row in rows:
        for metric, summary in row.summaries.items():
            difference = row.differences.get(metric, Difference(0, None, None, None))
            cells = (
                *(row.arm, *metric),
                *(summary.n, summary.mean, summary.std),
                *(base, difference.n, difference.mean, difference.low, difference.high),
            )
            writer.writerow([_csv_cell(cell) for cell in cells])
    return stream.getvalue()


def terminal_table(rows: Sequence[ArmStatistics], base: str) -> Table:
    """The same numbers for the terminal, one line per metric and arm: it fits 80 columns."""
    table = Table()
    table.add_column("metric")
    table.add_column("arm", overflow="fold")
    table.add_column("n", justify="right")
    table.add_column("mean ± std", justify="right")
    table.add_column(Text(f"difference to {clean(base)} [95 %]"), justify="right")
    for metric in _overall_metrics(rows):
        for row in rows:
            difference = row.differences.get(metric)
            table.add_row(
                Text(clean(" ".join(metric)) if row is rows[0] else ""),
                Text(clean(row.arm)),
                str(row.summaries[metric].n),
                mean_text(row.summaries[metric]),
                Text("" if difference is None else difference_text(difference)),
                end_section=row is rows[-1],
            )
    return table


def _overall_metrics(rows: Sequence[ArmStatistics]) -> list[Metric]:
    return [metric for metric in rows[0].summaries if not is_per_class(metric)]


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *("---:" for _ in header[1:])]
    escaped = [[markdown_text(cell) for cell in line] for line in (header, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (escaped[0], ruler, *escaped[1:]))


def _csv_cell(value: str | float | None) -> str | float:
    if value is None:
        return NOT_AVAILABLE
    return csv_text(value) if isinstance(value, str) else value
