"""An epoch from shards on a slow server: fetched ahead, fetched when needed, and from a disk.

    python benchmarks/streaming.py FOLDER [--rounds 5]

The server is on this machine, with a latency and a rate for each connection; the trainer sleeps
for each batch. Prints a table and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from pretrain.loading import loader
from pretrain.loading.batches import EpochBatches, ViewDataset
from pretrain.loading.order import window_of
from pretrain.sharding.content import Options
from pretrain.sharding.make_shards import make_shards
from pretrain.source.images import ImageSource
from pretrain.source.open_source import open_source
from pretrain.source.shard_cache import ShardCache
from pretrain.views import ViewRecipe

LATENCY, RATE = 0.05, 2e6  # seconds of each request, bytes a second of each connection
SHARD, WINDOW, BATCH = 50, 100, 32  # images
STEP = 0.25  # seconds


class SlowHandler(SimpleHTTPRequestHandler):
    """Files of a folder, late and slowly."""

    def send_head(self) -> Any:
        """The answer's head, after the latency."""
        time.sleep(LATENCY)
        return super().send_head()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """The answer's content, at the rate."""
        while block := source.read(1 << 16):
            outputfile.write(block)
            time.sleep(len(block) / RATE)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(folder: str) -> Iterator[str]:
    """A server in a process of its own; its URL."""
    handler = functools.partial(SlowHandler, directory=folder)
    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        process.kill()
        process.join()
        server.server_close()


class NoPrefetch:
    """Leaves all shards to the workers."""

    def __init__(self, *_: object) -> None:
        pass

    def follow(self, batches: EpochBatches) -> Iterator[Any]:
        """The batches as they are."""
        return iter(batches)

    def close(self) -> None:
        """Nothing."""


def epoch(source: ImageSource) -> tuple[float, float]:
    """Seconds of an epoch, and the share of it that the trainer waited after its first batch."""
    dataset = ViewDataset(source, ViewRecipe(64, blur_prob=0.5), 2, 0, None, "fast")
    count = len(source.files)
    batches = EpochBatches(count, BATCH, count // BATCH, 0, window=window_of(source, WINDOW))
    began, waits = time.perf_counter(), []
    with contextlib.closing(iter(loader.Loader(dataset, batches, 1))) as made:
        while True:
            before = time.perf_counter()
            if next(made, None) is None:
                break
            waits.append(time.perf_counter() - before)
            time.sleep(STEP)
    seconds = time.perf_counter() - began
    return seconds, sum(waits[1:]) / (seconds - waits[0])


def measure(folder: str, rounds: int) -> Iterator[str]:
    """Lines of the table."""
    kinds = ["from the disk", "fetched ahead", "fetched when needed", "second epoch, all kept"]
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    prefetch = loader.Prefetch
    with tempfile.TemporaryDirectory(prefix="moco-streaming-") as place:
        make_shards(folder, f"{place}/set", Options(shard_size=SHARD))
        with serving(f"{place}/set") as url:
            for number in range(rounds):
                found["from the disk"].append(epoch(open_source(f"{place}/set")))
                for kind in ("fetched ahead", "fetched when needed"):
                    cache = ShardCache(Path(place) / f"{number}-{kind}")
                    loader.Prefetch = prefetch if kind == "fetched ahead" else NoPrefetch  # type: ignore[misc, assignment]
                    found[kind].append(epoch(open_source(url, cache=cache)))
                loader.Prefetch = prefetch  # type: ignore[misc]
                found["second epoch, all kept"].append(epoch(open_source(url, cache=cache)))
    server = f"{LATENCY * 1000:.0f} ms, {RATE / 1e6:.0f} MB/s"
    yield f"| {server} | s an epoch | disk's / this | waiting |"
    yield "|---|---:|---:|---:|"
    for kind in kinds:
        ratios = [a[0] / b[0] for a, b in zip(found[kinds[0]], found[kind], strict=True)]
        seconds, waits = zip(*found[kind], strict=True)
        yield (
            f"| {kind} | {statistics.median(seconds):.1f} | {statistics.median(ratios):.2f} | "
            f"{statistics.median(waits):.0%} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for line in measure(args.folder, args.rounds):
        print(line)
