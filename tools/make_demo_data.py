#!/usr/bin/env python
"""Draw the demo's data: pictures to pretrain on and a small detection data set in VOC layout."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from demo.folder import DataRecipe, make
from runtime.errors import exit_code

EXAMPLE = """example:
  python tools/make_demo_data.py output/demo/data --seed 0"""


def main(args: argparse.Namespace) -> None:
    """Draw everything that is asked for."""
    make(args.out, DataRecipe(seed=args.seed))
    print(f"demo data: {args.out}/pretrain (class folders), {args.out}/voc (splits train, test)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="new, or an earlier demo folder")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pictures")
    args = parser.parse_args()
    sys.exit(exit_code(lambda: main(args)))
