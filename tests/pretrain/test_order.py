"""The order of the images: once an epoch, mixed within the window, the same after a restart."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from disk_faults import in_child
from sources_synthetic import as_source, write_tar
from test_trainer import run, tiny

from pretrain.checks import doubts
from pretrain.config import load_cfg
from pretrain.loading import class_mixture
from pretrain.loading.batches import EpochBatches, ViewDataset
from pretrain.loading.class_mixture import poor_mixture
from pretrain.loading.loader import Loader
from pretrain.loading.order import Window, permutation, window_of
from pretrain.source import open_files, raw
from pretrain.source.open_files import OpenFiles
from pretrain.source.open_source import open_source
from pretrain.source.shards import Shards
from pretrain.views import ViewRecipe
from runtime.errors import InputError
from runtime.randomness import generator

SHARDS = (7, 30, 1, 22, 40, 13, 30, 57)
COUNT = sum(SHARDS)
SHARD_OF = np.repeat(np.arange(len(SHARDS)), SHARDS)


pytestmark = pytest.mark.usefixtures("own_cache")


def slow_permutation(seed: int, epoch: int, images: int) -> list[int]:
    """The definition, one image after the other."""
    in_a_row = []
    for shard in generator(seed, "shard order", epoch).permutation(len(SHARDS)):
        in_a_row += [i for i in range(COUNT) if SHARD_OF[i] == shard]
    rng = generator(seed, "shuffle window", epoch)
    keys = [(place + rng.random() * images, index) for place, index in enumerate(in_a_row)]
    return [index for _, index in sorted(keys)]


@pytest.mark.parametrize("images", [1, 2, 16, 64, 1000])
def test_every_image_once_and_not_farther_than_the_window(images: int) -> None:
    window = Window(images, SHARDS)
    orders = {
        (seed, epoch): permutation(COUNT, seed, epoch, window)
        for seed in range(3)
        for epoch in range(20)
    }
    for (seed, epoch), order in orders.items():
        assert np.array_equal(np.sort(order), np.arange(COUNT))
        in_a_row = permutation(COUNT, seed, epoch, Window(1, SHARDS))
        moved = np.abs(np.argsort(order) - np.argsort(in_a_row))
        assert moved.max() < images
        if images > 2:  # and is used: not much less
            assert moved.max() > min(images, COUNT) / 3
        assert order.tolist() == slow_permutation(seed, epoch, images)
        assert np.array_equal(order, permutation(COUNT, seed, epoch, window))
    assert len({order.tobytes() for order in orders.values()}) == len(orders)


def test_a_window_of_one_is_the_order_of_the_shards() -> None:
    firsts = set()
    for epoch in range(60):
        order = permutation(COUNT, 0, epoch, Window(1, SHARDS))
        shards = SHARD_OF[order]
        assert (np.diff(shards) != 0).sum() == len(SHARDS) - 1  # each shard in one piece
        inside = np.diff(order)[np.diff(shards) == 0]
        assert (inside == 1).all()
        firsts.add(int(shards[0]))
    assert firsts == set(range(len(SHARDS)))


def test_without_a_window_nothing_changes() -> None:
    wanted = generator(5, "sample order", 3).permutation(COUNT)
    assert np.array_equal(permutation(COUNT, 5, 3), wanted)


def test_images_are_mixed_evenly_within_the_window() -> None:
    """Two neighbours of a shard are then apart by the difference of two uniform draws."""
    sizes = (1000,) * 20
    order = permutation(20_000, 1, 0, Window(500, sizes))
    place = np.argsort(order)
    apart = np.abs(place[1::2] - place[0::2])
    assert apart.mean() == pytest.approx(500 / 3, rel=0.05)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_rank_reads_few_shards_at_a_time_and_nearly_in_a_row(world: int) -> None:
    count, size, images, batch = 6000, 100, 150, 40
    window = Window(images, (size,) * (count // size))
    in_a_row = np.argsort(permutation(count, 2, 0, Window(1, window.shards)))
    for rank in range(world):
        steps = list(EpochBatches(count, batch, count // batch, 2, 0, rank, world, window))
        read = [index for step in steps for _, index in step]
        places = in_a_row[read]
        assert (np.maximum.accumulate(places) - places).max() < 2 * images
        lasts = {index // size: at for at, index in enumerate(read)}
        firsts = {index // size: at for at, index in reversed(list(enumerate(read)))}
        in_use = [sum(firsts[s] <= at <= lasts[s] for s in firsts) for at in range(len(read))]
        assert max(in_use) <= 2 + 2 * images / size
    everything = [
        sorted(
            pair
            for rank in range(ranks)
            for step in EpochBatches(count, batch, 200, 2, 0, rank, ranks, window)
            for pair in step
        )
        for ranks in (1, world)
    ]
    assert everything[0] == everything[1]


def batches(source: Shards, workers: int, start: int = 0) -> list[bytes]:
    window = window_of(source, 6)
    dataset = ViewDataset(source, ViewRecipe(8), 2, 7, None)
    sampler = EpochBatches(24, 4, 12, 7, start, window=window)
    return [
        b"".join(view.numpy().tobytes() for view in (batch.indices, *batch.views))
        for batch in Loader(dataset, sampler, workers)
    ]


def test_any_number_of_workers_and_any_restart_give_the_same_batches(image_folder: Path) -> None:
    root = as_source("shards", image_folder)
    whole = batches(open_source(root), 0)
    assert len(set(whole)) == 12
    for start in range(0, 12, 3):
        assert batches(open_source(root), start // 3 % 3, start) == whole[start:]


def test_a_run_in_a_window_is_killed_and_resumed(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_mixture, "ENOUGH", 2)
    shards = as_source("shards", image_folder)
    options = ("DATA.SHUFFLE_WINDOW", "6", "CHECKPOINT_STEPS", "2", "CHECKPOINT_KEEP", "0")
    whole = run(shards, tmp_path / "run", *options)["state_dict"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "DATA.SHUFFLE_WINDOW 6: a batch holds 2.0 classes" in log
    shuffled = run(shards, tmp_path / "shuffled")["state_dict"]
    assert not torch.equal(whole["module.queue"], shuffled["module.queue"])
    for last in ("checkpoint_step0000004.pth", "checkpoint_0000.pth"):
        (tmp_path / "run" / "checkpoint_final.pth").unlink()  # as if killed
        (tmp_path / "run" / "last_checkpoint").write_text(last)
        more = (*options, "DATA.NUM_WORKERS", "2")
        resumed = run(shards, tmp_path / "run", *more, resume=True)["state_dict"]
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    (tmp_path / "run" / "last_checkpoint").write_text("checkpoint_0000.pth")
    with pytest.raises(InputError, match=r"DATA.SHUFFLE_WINDOW is 7, but 'run' was begun with 6"):
        run(shards, tmp_path / "run", "DATA.SHUFFLE_WINDOW", "7", resume=True)


def test_a_window_needs_shards(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"DATA.SHUFFLE_WINDOW 50 is for shards, and"):
        run(image_folder, tmp_path / "run", "DATA.SHUFFLE_WINDOW", "50")
    with pytest.raises(InputError, match=r"DATA.SHUFFLE_WINDOW -1 must"):
        run(image_folder, tmp_path / "run", "DATA.SHUFFLE_WINDOW", "-1")
    assert not (tmp_path / "run").exists()
    overrides = tiny(image_folder, tmp_path, "DATA.SHUFFLE_WINDOW", "12")
    cfg = load_cfg(str(ROOT / "configs/moco_v1_R50_200ep.yaml"), overrides)
    assert any("SHUFFLE_WINDOW 12 is 1.5 batches" in line for line in doubts(cfg, 3))


def sorted_by_class(classes: int, each: int, shard: int, shuffled: bool = False) -> Shards:
    """Shards without files: what the order is made of."""
    count = classes * each
    given = np.repeat(np.arange(classes), each)
    if shuffled:
        np.random.default_rng(0).shuffle(given)
    zeros, names = np.zeros(count, np.int64), tuple(map(str, range(count)))
    paths = tuple(Path(f"{i}.tar") for i in range(count // shard))
    return Shards(Path(), names, paths, np.arange(count) // shard, zeros, zeros, given, zeros)


@pytest.mark.parametrize(
    ("window", "shuffled", "warned"),
    [(300, False, True), (2000, False, True), (100_000, False, False), (300, True, False)],
)
def test_shards_sorted_by_class_are_noticed_in_a_window(
    window: int, shuffled: bool, warned: bool
) -> None:
    source = sorted_by_class(50, 200, 500, shuffled)
    lines = list(poor_mixture(source, window, 64, 0))
    assert len(lines) == warned
    if warned:
        order = permutation(10_000, 0, 0, window_of(source, window))
        few = np.mean([len(set(source.given[order[i : i + 64]])) for i in range(0, 9900, 64)])
        all_mixed = 50 * (1 - (1 - 1 / 50) ** 64)
        found, expected = (float(x) for x in re.findall(r"holds? ([\d.]+)", lines[0]))
        assert found == pytest.approx(few, rel=0.1)
        assert expected == pytest.approx(all_mixed, rel=0.03)
    assert not list(poor_mixture(source, 0, 64, 0))


@pytest.mark.parametrize("batch", [2, 8, 24])
@pytest.mark.parametrize("classes", [1, 2, 12])
def test_mixed_shards_are_not_warned_of(batch: int, classes: int) -> None:
    """By chance alone: few and small batches, whatever the seed."""
    source = sorted_by_class(classes, 24 // classes, 8, shuffled=True)
    for seed in range(20):
        assert not list(poor_mixture(source, 24, batch, seed))
    nothing_known = dataclasses.replace(source, given=np.full(24, -1))
    assert not list(poor_mixture(nothing_known, 1, batch, 0))


def test_few_files_are_open_and_each_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "MOST", 3)
    opened = []
    monkeypatch.setattr(
        open_files.os, "open", lambda *a, real=os.open: opened.append(a[0]) or real(*a)
    )
    paths = [tmp_path / f"{i}" for i in range(8)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 5000)
    before = len(os.listdir("/proc/self/fd"))
    for ahead in (False, True):
        files = OpenFiles(ahead)
        opened.clear()
        for _ in range(10):
            for i in (0, 1, 2):
                assert files.read(paths[i], 100, 50) == bytes([i]) * 50
        assert opened == paths[:3]
        for i, path in enumerate(paths):
            assert files.read(path, 0, 1)[0] == i
        assert len(os.listdir("/proc/self/fd")) - before <= 3
        del files
    assert len(os.listdir("/proc/self/fd")) == before
    copy = pickle.loads(pickle.dumps(OpenFiles(True)))
    assert copy.ahead
    with pytest.raises(InputError, match="has become shorter"):
        copy.read(paths[0], 4999, 2)
    with pytest.raises(InputError, match="cannot read"):
        copy.read(tmp_path / "none", 0, 1)


def test_the_disk_is_always_asked_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "AHEAD", 1000)
    asked = []
    monkeypatch.setattr(open_files.os, "posix_fadvise", lambda _, *rest: asked.append(rest[:2]))
    (tmp_path / "x").write_bytes(bytes(5000))
    (tmp_path / "y").write_bytes(bytes(10))
    files = OpenFiles(ahead=True)
    for epoch in range(2):
        rng = np.random.default_rng(epoch)
        asked.clear()
        for start in range(0, 4800, 20):
            files.read(tmp_path / "x", start + int(rng.integers(200)), 1)
            assert sum(length for _, length in asked) >= min(start + 400, 5000)
        assert asked == [(start, 1000) for start in range(0, 1000 * len(asked), 1000)]
        assert len(asked) in (5, 6)
        for _ in range(open_files.FORGOTTEN + 1):
            files.read(tmp_path / "y", 0, 1)
    asked.clear()
    OpenFiles().read(tmp_path / "x", 0, 1)
    assert not asked


def test_a_shard_that_becomes_shorter_stops_the_run(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.jpg", b"1" * 5000), ("b.jpg", b"2" * 5000)])
    source = open_source(tmp_path / "0.tar")
    os.truncate(tmp_path / "0.tar", 7000)
    assert source.read(0) == b"1" * 5000
    with pytest.raises(InputError, match=r"0.tar' has become shorter"):
        source.read(1)


def test_raw_pixels_stay_when_their_shard_becomes_shorter(tmp_path: Path) -> None:
    """Looking at a mapped file that has become shorter would kill this process (SIGBUS)."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    write_tar(
        tmp_path / "0.tar", [("a.npy", raw.to_bytes(pixels)), ("b.npy", raw.to_bytes(pixels))]
    )
    dataset = ViewDataset(open_source(tmp_path / "0.tar"), ViewRecipe(8), 2, 0, None)

    def look() -> None:
        before = dataset.source.pixels(0)
        os.truncate(tmp_path / "0.tar", 1000)
        assert np.array_equal(before, pixels)
        with pytest.raises(InputError, match=r"0.tar' has become shorter"):
            next(iter(Loader(dataset, EpochBatches(2, 2, 1, 0), 1)))
        os._exit(7)

    assert in_child(look) == 7
