#!/usr/bin/env python
"""Convert ResNet checkpoints to backbone weights that Detectron2 and tools/train_det.py read."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from convert.cli import formats, run
from runtime.errors import exit_code

EXAMPLE = """examples:
  python tools/convert_to_d2.py output/moco/checkpoint_final.pth moco.pkl
  python tools/convert_to_d2.py downloads/*.pth --out-dir weights
  python tools/convert_to_d2.py dino.pth student.pkl --branch student
  python tools/convert_to_d2.py --inspect moco.pkl

formats (docs/formats.md):
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE + formats(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="checkpoint and the .pkl to write; or checkpoints"
    )
    parser.add_argument("--format", default="", help="of the checkpoint, instead of finding it out")
    parser.add_argument("--branch", default="", help="which of several encoders to take")
    parser.add_argument("--out-dir", metavar="DIR", help="convert every FILE into DIR/NAME.pkl")
    parser.add_argument(
        "--inspect", action="store_true", help="say what every FILE is, write nothing"
    )
    parser.add_argument("--json", action="store_true", help="for scripts: one JSON object a file")
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="accept missing and untrained tensors on purpose; the file, the trainer's log and "
        "its results will say so",
    )
    parser.add_argument(
        "--detectron2",
        action="store_true",
        help="compare the features of Detectron2's own backbone, too",
    )
    arguments = parser.parse_args()
    sys.exit(exit_code(lambda: run(arguments)))
