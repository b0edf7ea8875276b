#!/usr/bin/env python
"""Turn a backbone into weights for torchvision, timm or MMDetection, as .pth or safetensors."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from convert.export import TARGETS, check_target, export, write
from convert.output import check_output
from convert.source import read_source
from runtime.errors import exit_code

EXAMPLE = """examples:
  python tools/export_backbone.py output/moco/checkpoint_final.pth resnet50.safetensors --to timm
  python tools/export_backbone.py output/voc/model_final.pth backbone.pth --to torchvision
  python tools/export_backbone.py R-50.pkl r50_caffe.pth --to mmdet"""


def main(args: argparse.Namespace) -> None:
    check_target(args.output, args.to)
    check_output(args.output, args.source)
    source = read_source(args.source, name=args.format, branch=args.branch)
    exported = export(source, args.to, args.fold)
    write(args.output, exported, args.to)
    conventions = source.conventions
    branch = f", {conventions.branch}" if conventions.branch else ""
    print(f"{args.source}: {conventions.source_format}{branch}, {source.architecture.name}")
    for change in exported.changed:
        print(f"  folded into conv1: {change}")
    print(f"wrote {args.output}: {len(exported.state)} tensors for {args.to}, without a head")
    for line in exported.usage:
        print("  " + line.replace("FILE", str(args.output)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", help="backbone .pkl, pretraining checkpoint or a detector's model_final.pth"
    )
    parser.add_argument("output", help="file to write: .pth or .safetensors")
    parser.add_argument("--to", required=True, choices=TARGETS)
    parser.add_argument(
        "--fold",
        action="store_true",
        help="change the first convolution where weights need BGR or another std",
    )
    parser.add_argument("--format", default="", help="of the source, instead of finding it out")
    parser.add_argument("--branch", default="", help="which of several encoders to take")
    arguments = parser.parse_args()
    sys.exit(exit_code(lambda: main(arguments)))
