#!/usr/bin/env python
"""Convert a ResNet checkpoint to backbone weights that Detectron2 and tools/train_det.py read."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from convert.to_detectron2 import convert_file
from runtime.errors import exit_code

EXAMPLE = """example:
  python tools/convert_to_d2.py output/moco/checkpoint_final.pth moco.pkl"""


def main(args: argparse.Namespace) -> None:
    converted = convert_file(args.checkpoint, args.output)
    conventions = converted.backbone.conventions
    branch = f", taking {conventions.branch}" if conventions.branch else ""
    print(f"{args.checkpoint}: {conventions.source_format}{branch}, {converted.architecture.name}")
    for stage, count in converted.stage_counts().items():
        print(f"  {stage:5s} {count:4d} tensors")
    print(f"  head  {len(converted.head):4d} tensors not taken over ({', '.join(converted.head)})")
    for key, value in conventions.detectron2_keys().items():
        print(f"  {key}: {value}")
    if seen := converted.backbone.seen_images:
        print(f"  remembers {len(seen.digests)} of {seen.total} pretraining images")
    print(f"wrote {args.output}: {len(converted.backbone.arrays)} tensors, all found")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="MoCo, this toolkit's or torchvision's checkpoint")
    parser.add_argument("output", help="file to write; must end in .pkl")
    arguments = parser.parse_args()
    sys.exit(exit_code(lambda: main(arguments)))
