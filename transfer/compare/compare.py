"""Run every arm with every seed under one recipe, then put the table and the report together."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convert.backbone_file import read_backbone
from runtime import rundir
from runtime.errors import InputError
from runtime.metrics import set_up_logging
from transfer.compare.arms import Arm, parse_arms
from transfer.compare.plan import make_plan, run_missing
from transfer.compare.summary import summarise
from transfer.engines.select import select_engine
from transfer.run.finetune import finetune
from transfer.run.job import RANDOM, Job
from transfer.run.resolve import BEGUN, Resolved, resolve

log = logging.getLogger("moco")

Launcher = Callable[[Callable[[Any], None], argparse.Namespace], None]


@dataclass(frozen=True)
class Comparison:
    """What the user asked for: ``arms`` as given (``random``, ``NAME=FILE``), ``trials`` seeds.

    ``job`` is the fine-tuning that all arms share; its weights, seed, output and arm are set for
    each run. ``base`` is the arm that the others are compared with, by default the first.
    """

    job: Job
    arms: Sequence[str]
    trials: int
    base: str | None
    command: str


def compare(comparison: Comparison, launch: Launcher, launch_options: argparse.Namespace) -> None:
    """Run what is not yet done and write ``table.md``, ``table.csv`` and ``report.html``.

    ``launch`` starts the processes of one run. Raises InputError where an input does not fit, or
    the folder holds runs of another comparison.
    """
    set_up_logging(None, main=True)
    arms = parse_arms(comparison.arms)
    base = comparison.base or arms[0].name
    if base not in [arm.name for arm in arms]:
        raise InputError(f"--base {base} is not one of the arms: {_names(arms)}")
    if comparison.trials < 1:
        raise InputError(f"--trials {comparison.trials} must be at least 1")
    engine, _ = select_engine(comparison.job.engine)
    resolved = _check_all(comparison, arms)
    output = rundir.prepare(resolved.cfg.OUTPUT_DIR, resume=True)
    plan = make_plan(
        output,
        arms,
        range(1, comparison.trials + 1),
        recipe=comparison.job.recipe,
        recipe_hash=resolved.recipe_hash,
        engine=engine.name,
    )
    with rundir.locked(output):

        def run_one(arm: Arm, seed: int, folder: Path) -> None:
            log.info("=== arm %s, seed %d", arm.name, seed)
            launch(
                _run,
                argparse.Namespace(
                    **vars(launch_options), job=_job(comparison.job, arm, seed, folder)
                ),
            )

        results = run_missing(plan, run_one)
        set_up_logging(None, main=True)
        summarise(results, base, output, resolved.test[0], comparison.command)
        log.info("report: %s", output / "report.html")


def _run(options: argparse.Namespace) -> None:
    finetune(options.job)


def _job(job: Job, arm: Arm, seed: int, folder: Path) -> Job:
    return replace(
        job,
        weights=str(arm.weights) if arm.weights else RANDOM,
        arm=arm.name,
        seed=seed,
        output=str(folder),
        resume=(folder / BEGUN).exists(),
    )


def _check_all(comparison: Comparison, arms: Sequence[Arm]) -> Resolved:
    """Resolve the recipe for every arm before the first run, so that no hour is spent in vain."""
    job = comparison.job
    engine, _ = select_engine(job.engine)
    resolved = []
    for arm in arms:
        backbone = read_backbone(arm.weights) if arm.weights else None
        resolved.append(resolve(engine, replace(job, seed=1, output=None), backbone))
        if resolved[-1].recipe_hash != resolved[0].recipe_hash:
            raise InputError(
                f"arm {arm.name} needs another recipe than arm {arms[0].name}: its architecture "
                "differs; compare backbones of one depth and width"
            )
    return resolved[0]


def _names(arms: Sequence[Arm]) -> str:
    return ", ".join(arm.name for arm in arms)
