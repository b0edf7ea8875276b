#!/usr/bin/env python
"""Fine-tune a detector from pretrained weights under a recipe, and evaluate it."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from runtime.launch import add_launch_options, exit_code_of_launch
from transfer.engines.select import ENGINES
from transfer.run.finetune import Job, finetune

EXAMPLE = """example:
  python tools/train_det.py --config transfer/voc_R50_C4.yaml --weights moco.pkl \\
      --train-data voc:DIR:trainval --test-data voc:DIR:test OUTPUT_DIR output/moco"""


def main(args: argparse.Namespace) -> None:
    finetune(
        Job(
            recipe=args.config,
            weights=args.weights,
            overrides=args.overrides,
            train_data=args.train_data,
            test_data=args.test_data,
            engine=args.engine,
            seed=args.seed,
            resume=args.resume,
            eval_only=args.eval_only,
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="recipe (YAML)")
    parser.add_argument("--weights", default="", help="backbone .pkl, or the word random")
    parser.add_argument(
        "--train-data",
        action="append",
        default=[],
        metavar="DATA",
        help="voc:DIR:SPLIT, coco:JSON:IMAGE_DIR or a built-in name; repeatable",
    )
    parser.add_argument("--test-data", action="append", default=[], metavar="DATA")
    parser.add_argument("--engine", default="auto", choices=ENGINES)
    parser.add_argument("--seed", type=int, default=None, help="default: the recipe's SEED")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate --weights model_final.pth"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override recipe keys")
    add_launch_options(parser)
    sys.exit(exit_code_of_launch(main, parser.parse_args()))
