#!/usr/bin/env python
"""Draw what BN betrays: keys told from those of the batch before and of the own batch, by run.

The MoCo paper's figure A.1 in small. docs/monitor.md has the commands that made the runs.

    python benchmarks/leak.py docs/leak.png "shuffled=output/with" "not shuffled=output/without"
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

WINDOW = 32  # logged steps in a mean, as in the alarm for batches of 8
CURVES = {"before_acc1": "among the batch before", "batch_acc1": "within its own batch"}


def read(run: Path) -> list[dict[str, float]]:
    """The logged steps of a run."""
    rows = [json.loads(line) for line in (run / "metrics.json").open()]
    return [row for row in rows if "before_acc1" in row]


def smooth(values: list[float]) -> list[float]:
    """Mean of each value and the WINDOW - 1 before it."""
    parts = [values[max(0, i + 1 - WINDOW) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def main(args: argparse.Namespace) -> None:
    figure = Figure(figsize=(4 * len(args.runs), 3.4), layout="constrained")
    axes = figure.subplots(1, len(args.runs), sharey=True, squeeze=False)[0]
    for axis, named in zip(axes, args.runs, strict=True):
        name, folder = named.split("=", 1)
        rows = read(Path(folder))
        for key, label in CURVES.items():
            axis.plot(
                [row["iteration"] + 1 for row in rows],
                smooth([row[key] for row in rows]),
                label=label,
            )
            last = smooth([row[key] for row in rows])[-1]
            print(f"{name}: {label} {last:.1f} % at step {rows[-1]['iteration'] + 1}")
        axis.set(title=name, xlabel="step", ylim=(0, 100))
    axes[0].set_ylabel("queries that find their key, %")
    axes[0].legend()
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", metavar="PNG")
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    main(parser.parse_args())
