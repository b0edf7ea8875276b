#!/usr/bin/env python
"""Fine-tune every arm with several seeds under one recipe; make the table and the report."""

import argparse
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from runtime.errors import exit_code
from runtime.launch import add_launch_options, launch
from transfer.compare.compare import Comparison, compare
from transfer.run.cli import add_run_options, job_from

EXAMPLE = """example:
  python tools/compare.py --config transfer/voc_R50_C4.yaml --arm random \\
      --arm supervised=supervised.pkl --arm moco=moco.pkl --trials 5 OUTPUT_DIR output/voc

Runs that are done are kept: call it again to go on after an interruption."""


def main(args: argparse.Namespace) -> None:
    command = shlex.join(["python", "tools/compare.py", *sys.argv[1:]])
    comparison = Comparison(job_from(args), args.arm, args.trials, args.base, command)
    compare(comparison, launch, args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="ARM",
        help="random, or NAME=FILE.pkl; repeatable",
    )
    parser.add_argument("--trials", type=int, default=3, help="seeds 1 to N (default 3)")
    parser.add_argument("--base", default=None, help="arm to compare with (default: the first)")
    add_run_options(parser)
    add_launch_options(parser)
    arguments = parser.parse_intermixed_args()
    sys.exit(exit_code(lambda: main(arguments)))
