#!/usr/bin/env python
"""Turn images into WebDataset shards for pretraining, mixed, or verify such shards."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from pretrain.sharding.content import DEFAULT_QUALITY, DEFAULT_SIZE, FORMATS, Options
from pretrain.sharding.make_shards import make_shards
from pretrain.source.flaws import DAMAGED, UNREADABLE
from pretrain.source.shard_index import ShardIndex, verify
from runtime.errors import exit_code
from runtime.wording import counted

EXAMPLE = """examples:
  python tools/make_shards.py ~/imagenet/train ~/shards
  python tools/make_shards.py ~/imagenet/train ~/shards256 --short-side 256 --format raw
  python tools/make_shards.py --verify ~/shards

then: python tools/pretrain.py ... DATA.ROOT ~/shards. Run it again after a kill: it goes on."""


def options(args: argparse.Namespace) -> Options:
    quality = args.quality
    if quality is None:
        quality = DEFAULT_QUALITY if args.short_side and args.format == "jpeg" else 0
    seed = None if args.no_shuffle else args.seed
    return Options(args.format, args.short_side or 0, quality, args.shard_size, seed)


def report(folder: str, index: ShardIndex, state: str) -> None:
    size = sum(shard.bytes for shard in index.shards) / 1e6
    shards, images = counted(len(index.shards), "shard"), counted(index.images, "image")
    print(f"{folder}: {state}, {shards} with {images}, {size:,.1f} MB")
    said = {UNREADABLE: ("unreadable image", "left out"), DAMAGED: ("damaged image", "among them")}
    for name, images in index.flaws().items():
        what, where = said[name]
        if images:
            print(f"{counted(len(images), what)} {where}: {Path(folder) / name}")


def main(args: argparse.Namespace) -> None:
    if args.verify is not None:
        report(args.verify, verify(args.verify), "verified")
        return
    skip, workers = args.skip_unreadable, args.workers
    index = make_shards(args.source, args.output, options(args), skip, workers)
    report(args.output, index, "finished")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    what = "folder of images, list or shards, as of DATA.ROOT"
    add("source", nargs="?", metavar="SOURCE", help=what)
    add("output", nargs="?", metavar="OUT_DIR", help="folder for the shards")
    add("--verify", metavar="DIR", help="compare the shards in DIR with their checksums instead")
    add("--format", choices=FORMATS, default="jpeg", help="jpeg: files as they are; raw: pixels")
    add("--short-side", type=int, metavar="PIXELS", help="make larger images smaller")
    add("--quality", type=int, help=f"of JPEGs made smaller (default {DEFAULT_QUALITY})")
    add("--shard-size", type=int, default=DEFAULT_SIZE, metavar="IMAGES")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--seed", type=int, default=0, help="of the order: all images mixed")
    as_before = "in the order of the source, where a folder lists class after class"
    order.add_argument("--no-shuffle", action="store_true", help=as_before)
    add("--skip-unreadable", action="store_true", help="leave such images out, and list them")
    add("--workers", type=int, default=-1, help="processes (default: one a core, at most 16)")
    arguments = parser.parse_args()
    if (arguments.verify is None) == (arguments.output is None):
        parser.error("name SOURCE and OUT_DIR, or --verify DIR")
    sys.exit(exit_code(lambda: main(arguments)))
