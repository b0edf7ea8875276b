"""The options that every command that fine-tunes has."""

from __future__ import annotations

import argparse
from dataclasses import fields

from transfer.data.catalog import FORMS
from transfer.engines.select import ENGINES
from transfer.evaluation.voc import METRICS
from transfer.run.job import Job, Options


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Recipe, data, engine and overrides."""
    data = f"{FORMS} or a built-in name; repeatable"
    parser.add_argument("--config", required=True, metavar="FILE", help="recipe (YAML)")
    parser.add_argument("--train-data", action="append", default=[], metavar="DATA", help=data)
    parser.add_argument("--test-data", action="append", default=[], metavar="DATA", help=data)
    parser.add_argument("--engine", default="auto", choices=ENGINES)
    _add_options(parser.add_argument_group("beyond Detectron2's keys"))
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override recipe keys")


def _add_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch", type=int, metavar="N", help="global batch; the whole schedule is scaled to it"
    )
    group.add_argument(
        "--scale-to-gpus",
        action="store_true",
        help="scale batch and schedule from the 8 GPUs of the recipes to those of this run",
    )
    group.add_argument(
        "--allow-deviation",
        action="store_true",
        help="run although only a part of the schedule was scaled",
    )
    group.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="compute each batch in N parts"
    )
    group.add_argument("--amp-dtype", default="auto", choices=("auto", "float16", "bfloat16"))
    group.add_argument("--voc-metric", default="auto", choices=METRICS)


def job_from(args: argparse.Namespace, weights: str = "") -> Job:
    """The job that these options describe."""
    return Job(
        recipe=args.config,
        weights=weights,
        overrides=args.overrides,
        train_data=args.train_data,
        test_data=args.test_data,
        engine=args.engine,
        options=Options(**{f.name: getattr(args, f.name) for f in fields(Options)}),
    )
