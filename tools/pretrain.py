#!/usr/bin/env python
"""Pretrain an encoder on a folder of images, with MoCo or (METHOD supervised) on its classes."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not tools/: a script named pretrain.py would hide the package

from pretrain.config import load_cfg
from pretrain.scaling import settle_batch
from pretrain.trainer import pretrain
from runtime.launch import add_launch_options, exit_code_of_launch

EXAMPLE = """example:
  python tools/pretrain.py --config configs/moco_v2_R50_200ep.yaml \\
      DATA.ROOT ~/photos OUTPUT_DIR output/moco MODEL.QUEUE_SIZE 4096

several processes: --num-gpus N, or torchrun --nproc-per-node N tools/pretrain.py ..."""


def main(args: argparse.Namespace) -> None:
    cfg, recipe = load_cfg(args.config, args.overrides), load_cfg(args.config, [])
    notes = settle_batch(cfg, recipe, args.overrides[::2], args.batch)
    pretrain(cfg, resume=args.resume, notes=notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="recipe (YAML)")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="another global batch: scales rate and lengths, too"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override recipe keys")
    add_launch_options(parser)
    sys.exit(exit_code_of_launch(main, parser.parse_args()))
