#!/usr/bin/env python
"""How good are a checkpoint's features? Linear classification and kNN, or fine-tuning."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from pretrain.linear.config import load_cfg
from pretrain.linear.evaluate import evaluate
from runtime.launch import add_launch_options, exit_code_of_launch

EXAMPLE = """example:
  python tools/linear_eval.py --config configs/linear_imagenet.yaml \\
      --weights output/moco/checkpoint_final.pth \\
      DATA.TRAIN imagenet/train DATA.TEST imagenet/val OUTPUT_DIR output/linear

--weights takes any checkpoint that tools/convert_to_d2.py reads; for the control arm:
  --weights random MODEL.ARCH resnet50"""


def main(args: argparse.Namespace) -> None:
    evaluate(load_cfg(args.config, args.weights, args.overrides), resume=args.resume)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="recipe (YAML)")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint, or random")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override recipe keys")
    add_launch_options(parser)
    sys.exit(exit_code_of_launch(main, parser.parse_intermixed_args()))
