"""``tools/pretrain.py --suggest``: look, choose, try, and write the recipe with its reasons."""

from __future__ import annotations

import sys
import tempfile
import textwrap
from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby
from pathlib import Path

import yaml

from pretrain.checks import check_data, check_values
from pretrain.config import load_cfg
from pretrain.source.decode import printable
from pretrain.source.open_source import open_source
from pretrain.suggest.choice import Choice, Machine, choose
from pretrain.suggest.survey import Survey, survey
from pretrain.suggest.trial import Trial, run_trial
from runtime.errors import InputError
from runtime.files import write_text
from runtime.urls import shown

WIDTH = 100


def suggest(root: str, output: str | None) -> None:
    """Write a recipe for the images of ``root`` to the file ``output``, or to stdout.

    InputError where the images cannot be used or the file is there already.
    """
    _refuse_existing(output)
    source, machine = open_source(root, "--suggest"), Machine.here()
    source.check_any_order("--suggest", "name fewer shards")
    root = shown(root)
    print(f"looking at {len(source.files)} images ...", file=sys.stderr)
    images = survey(source)
    choices = choose(root, images, machine)
    with tempfile.TemporaryDirectory(prefix="moco-suggest-") as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(render(choices, []), encoding="utf-8")
        cfg = load_cfg(str(path), [])
    gpus = _usable_gpus(cfg.SOLVER.BATCH_SIZE // cfg.MODEL.BN_GROUP_SIZE, machine.gpus)
    check_values(cfg)
    check_data(cfg, source, max(gpus, 1))
    print("training a few steps to see how long they take ...", file=sys.stderr)
    trial = run_trial(cfg, source, gpus)
    steps = len(source.files) // cfg.SOLVER.BATCH_SIZE * cfg.SOLVER.EPOCHS
    if trial.accumulate > 1:
        why = "parts of the batch that fit into the GPU's memory one by one; same result"
        choices.append(Choice("SOLVER.ACCUMULATE", trial.accumulate, why))
    text = render(choices, _heading(root, images, machine, trial, steps, output))
    if output is None:
        print(text, end="")
        return
    _refuse_existing(output)
    write_text(output, text)


def render(choices: Sequence[Choice], heading: Sequence[str]) -> str:
    """The choices as a YAML recipe, the reason of each in a comment before it."""
    lines = [line for paragraph in heading for line in _comment(paragraph, "")]
    for section, members in groupby(sorted(choices, key=_section), key=_section):
        indent = "  " if section else ""
        lines += [f"{section}:"] if section else []
        for key, value, reason in members:
            lines += _comment(reason, indent)
            written = yaml.safe_dump(value, default_flow_style=True, width=10_000)
            plain = written.removesuffix("...\n").strip()
            lines.append(f"{indent}{key.rpartition('.')[2]}: {plain}")
    return "\n".join(lines) + "\n"


def _section(choice: Choice) -> str:
    return choice.key.rpartition(".")[0]


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    text = printable(text)
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )


def _heading(
    root: str, images: Survey, machine: Machine, trial: Trial, steps: int, output: str | None
) -> list[str]:
    masks = (
        f" {images.two_valued} of them have two values at most: if these are masks, name a "
        "folder or list without them." * bool(images.two_valued)
    )
    repeat = "; remove them: views of equal images are taken for different" * bool(
        images.duplicates
    )
    total = timedelta(seconds=round(trial.seconds * steps))
    gpus = f" --num-gpus {trial.gpus}" if trial.gpus else ""
    return [
        f"Suggested by tools/pretrain.py --suggest {root}",
        f"Images: {images.count}, median short side {images.short_side} pixels; "
        f"{images.duplicates} exact duplicates among {images.compared} compared{repeat}; "
        f"{images.grey_share:.1%} grey and {images.unreadable} unreadable of {images.decoded} "
        f"decoded.{masks}",
        f"Machine: {machine}.",
        f"Time: {total} (h:mm:ss) for {steps} steps of {trial.seconds:.2f} s, measured here over a "
        f"few steps; {trial.data_wait:.0%} of it is waiting for images.",
        f"Run: python tools/pretrain.py --config {output or 'FILE'}{gpus} OUTPUT_DIR DIR",
    ]


def _usable_gpus(groups: int, available: int) -> int:
    """The most GPUs that the BN groups of a batch can be dealt out to evenly."""
    return max((n for n in range(1, available + 1) if groups % n == 0), default=0)


def _refuse_existing(output: str | None) -> None:
    if output is None:
        return
    path = Path(output)
    if path.exists():
        raise InputError(f"--output {output!r} is there already: name a new file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output {output!r} lies in no existing folder: make it first")
