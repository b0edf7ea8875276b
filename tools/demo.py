#!/usr/bin/env python
"""Run the whole chain on generated data: about ten minutes on two cores, no GPU, no download."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from demo.run import run_demo
from runtime.errors import exit_code

EXAMPLE = """example:
  python tools/demo.py output/demo

Called again it goes on where it was interrupted."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder for data, runs and report")
    arguments = parser.parse_args()
    sys.exit(exit_code(lambda: run_demo(arguments.output.resolve())))
