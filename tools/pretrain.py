#!/usr/bin/env python
"""Pretrain an encoder on a folder of images, with MoCo or (METHOD supervised) on its classes."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not tools/: a script named pretrain.py would hide the package

from fvcore.common.config import CfgNode

from pretrain.checks import check_values
from pretrain.config import load_cfg, without_credentials
from pretrain.scaling import settle_batch
from pretrain.suggest.suggested_recipe import suggest
from pretrain.trainer import pretrain
from runtime.errors import InputError, exit_code
from runtime.launch import add_launch_options, exit_code_of_launch
from runtime.rundir import prepare
from runtime.slurm import submit, without_option

EXAMPLE = """example:
  python tools/pretrain.py --config configs/moco_v2_R50_200ep.yaml \\
      DATA.ROOT ~/photos OUTPUT_DIR output/moco MODEL.QUEUE_SIZE 4096

a recipe for your own images, with reasons:
  python tools/pretrain.py --suggest ~/photos --output photos.yaml

several processes: --num-gpus N, or torchrun --nproc-per-node N tools/pretrain.py ...
on a cluster: --slurm nodes=8,gpus=8,hours=24,partition=NAME"""


def main(args: argparse.Namespace) -> None:
    cfg, notes = read_recipe(args)
    pretrain(cfg, resume=args.resume, notes=notes)


def read_recipe(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    cfg, recipe = load_cfg(args.config, args.overrides), load_cfg(args.config, [])
    return cfg, settle_batch(cfg, recipe, args.overrides[::2], args.batch)


def queue(args: argparse.Namespace) -> None:
    cfg, notes = read_recipe(args)
    if without_credentials(cfg) != cfg:
        raise InputError("--slurm writes URLs into a file: put their credentials elsewhere")
    here = cfg.clone()
    here.DEVICE = "auto"  # this machine need not have the GPUs of those that train
    check_values(here)
    logs = prepare(cfg.OUTPUT_DIR, args.resume) / "slurm"
    job = submit(args.slurm, without_option(sys.argv, "--slurm"), logs)
    print("\n".join([*notes, f"Slurm job {job}: its output goes to {logs}"]))


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
    parser.add_argument(
        "--slurm",
        metavar="KEY=VALUE,...",
        help="submit as a Slurm job, queued again until the run is finished: nodes, gpus (of each "
        "node), cpus (of each process), hours (of each job), and what sbatch knows",
    )
    add_launch_options(parser)
    args = parser.parse_intermixed_args()
    if args.output and args.suggest is None:
        parser.error("--output goes with --suggest; a run's folder is OUTPUT_DIR DIR")
    if args.suggest is not None:
        if args.overrides or args.resume or args.batch or args.slurm:
            parser.error("--suggest takes --output only: change the recipe that it writes")
        sys.exit(exit_code(lambda: suggest(args.suggest, args.output)))
    sys.exit(exit_code(lambda: queue(args)) if args.slurm else exit_code_of_launch(main, args))
