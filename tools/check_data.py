#!/usr/bin/env python
"""Look at data sets before training: what is in them, what was tolerated, and the first fault."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from runtime.errors import exit_code
from transfer.run.check_data import check_data
from transfer.run.cli import add_run_options, job_from

EXAMPLE = """example:
  python tools/check_data.py --config transfer/custom_R18_FPN.yaml \\
      --train-data voc:DIR:train --test-data voc:DIR:val --images

Exit code 2 and one line for the first fault: a file that the reader refuses, other classes in one
set than in another, a test image among the training images, with --images a damaged image."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images",
        action="store_true",
        help="decode every image, and compare pixels instead of files; takes longer",
    )
    add_run_options(parser)
    arguments = parser.parse_intermixed_args()
    sys.exit(exit_code(lambda: check_data(job_from(arguments), arguments.images)))
