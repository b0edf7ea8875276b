#!/usr/bin/env python
"""Fine-tune a detector from pretrained weights under a recipe, and evaluate it."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from runtime.errors import InputError
from runtime.launch import add_launch_options, exit_code_of_launch
from transfer.run.cli import add_run_options, job_from
from transfer.run.finetune import finetune
from transfer.run.sanity import sanity

EXAMPLE = """example:
  python tools/train_det.py --config transfer/voc_R50_C4.yaml --weights moco.pkl \\
      --train-data voc:DIR:trainval --test-data voc:DIR:test OUTPUT_DIR output/moco"""


def main(args: argparse.Namespace) -> None:
    names = ("seed", "resume", "eval_only", "visualize")
    job = replace(job_from(args, args.weights), **{name: getattr(args, name) for name in names})
    if args.sanity:
        _refuse_beside_sanity(args)
        sys.exit(0 if sanity(job) else 1)
    finetune(job)


def _refuse_beside_sanity(args: argparse.Namespace) -> None:
    """InputError where an option asks for more than one batch learnt from the beginning."""
    for option in ("resume", "eval_only", "visualize"):
        if getattr(args, option):
            raise InputError(
                f"--sanity does nothing with --{option.replace('_', '-')}: leave it out"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", default="", help="backbone .pkl, the word random, or model_final.pth"
    )
    parser.add_argument("--seed", type=int, default=None, help="default: the recipe's SEED")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate model_final.pth")
    parser.add_argument(
        "--visualize",
        type=int,
        default=0,
        metavar="N",
        help="after the evaluation draw N test images, ground truth beside detections",
    )
    parser.add_argument(
        "--sanity",
        action="store_true",
        help="instead of a run learn two small training images by heart, which takes minutes on a "
        "CPU and writes nothing; exit code 1 and the likeliest reason where that fails. It tests "
        "that model, weights, data reading and losses fit together; it cannot see wrong labels "
        "(they are learnt as well), and tests neither the learning rate nor the augmentation",
    )
    add_run_options(parser)
    add_launch_options(parser)
    sys.exit(exit_code_of_launch(main, parser.parse_intermixed_args()))
