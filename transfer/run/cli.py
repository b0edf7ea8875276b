"""The options that every command that fine-tunes has."""

from __future__ import annotations

import argparse

from transfer.engines.select import ENGINES
from transfer.run.job import Job


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Recipe, data, engine and overrides."""
    data = "voc:DIR:SPLIT, coco:JSON:IMAGE_DIR or a built-in name; repeatable"
    parser.add_argument("--config", required=True, metavar="FILE", help="recipe (YAML)")
    parser.add_argument("--train-data", action="append", default=[], metavar="DATA", help=data)
    parser.add_argument("--test-data", action="append", default=[], metavar="DATA", help=data)
    parser.add_argument("--engine", default="auto", choices=ENGINES)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override recipe keys")


def job_from(args: argparse.Namespace, weights: str = "") -> Job:
    """The job that these options describe."""
    return Job(
        recipe=args.config,
        weights=weights,
        overrides=args.overrides,
        train_data=args.train_data,
        test_data=args.test_data,
        engine=args.engine,
    )
