"""Shards made and read by loading processes, without what only Linux has; prints a checksum.

    python tests/pretrain/as_on_macos.py IMAGES OUT_DIR

Spawned processes run the beginning of this file, too, and so lack the same.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: F401  before the system has another name

if os.environ.get("AS_ON_MACOS"):
    for module, names in (
        (os, ("memfd_create", "posix_fadvise", "sched_getaffinity")),
        (signal, ("sigtimedwait",)),
    ):
        for name in names:
            delattr(module, name)
    hidden: Any = sys.modules
    hidden["resource"] = None
    sys.platform = "darwin"

import hashlib

from pretrain.loading.batches import EpochBatches, ViewDataset
from pretrain.loading.loader import Loader
from pretrain.loading.order import window_of
from pretrain.sharding.content import Options
from pretrain.sharding.make_shards import make_shards
from pretrain.source.open_source import open_source
from pretrain.views import ViewRecipe
from runtime.device import START


def checksum(images: str, output: str) -> str:
    """Of all batches of an epoch from shards of ``images``."""
    make_shards(images, output, Options(shard_size=12), workers=1)
    source = open_source(output)
    dataset = ViewDataset(source, ViewRecipe(8), 2, 0, source.labels())
    batches = EpochBatches(24, 8, 3, 0, window=window_of(source, 6))
    digest = hashlib.sha256()
    for batch in Loader(dataset, batches, 1):
        for array in (*batch.views, batch.labels, batch.indices):
            digest.update(array.numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(START, checksum(*sys.argv[1:]))
