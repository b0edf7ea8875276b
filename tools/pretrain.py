#!/usr/bin/env python
"""Pretrain an encoder on a folder of images, with MoCo or (METHOD supervised) on its classes."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not tools/: a script named pretrain.py would hide the package

from pretrain.config import load_cfg
from pretrain.scaling import settle_batch
from pretrain.suggested_recipe import suggest
from pretrain.trainer import pretrain
from runtime.errors import exit_code
from runtime.launch import add_launch_options, exit_code_of_launch

EXAMPLE = """example:
  python tools/pretrain.py --config configs/moco_v2_R50_200ep.yaml \\
      DATA.ROOT ~/photos OUTPUT_DIR output/moco MODEL.QUEUE_SIZE 4096

a recipe for your own images, with reasons:
  python tools/pretrain.py --suggest ~/photos --output photos.yaml

several processes: --num-gpus N, or torchrun --nproc-per-node N tools/pretrain.py ..."""


def main(args: argparse.Namespace) -> None:
    cfg, recipe = load_cfg(args.config, args.overrides), load_cfg(args.config, [])
    notes = settle_batch(cfg, recipe, args.overrides[::2], args.batch)
    pretrain(cfg, resume=args.resume, notes=notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--config", metavar="FILE", help="recipe (YAML)")
    task.add_argument("--suggest", metavar="DIR", help="write a recipe for these images")
    parser.add_argument("--output", metavar="FILE", help="of --suggest (default: stdout)")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="another global batch: scales rate and lengths, too"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override recipe keys")
    add_launch_options(parser)
    args = parser.parse_args()
    if args.output and args.suggest is None:
        parser.error("--output goes with --suggest; a run's folder is OUTPUT_DIR DIR")
    if args.suggest is not None:
        if args.overrides or args.resume or args.batch:
            parser.error("--suggest takes --output only: change the recipe that it writes")
        sys.exit(exit_code(lambda: suggest(args.suggest, args.output)))
    sys.exit(exit_code_of_launch(main, args))
