"""The processes that fill the ring of batches: order, deaths, leftovers."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.loading import loader, memory_check, workers
from pretrain.loading.batches import Batch, EpochBatches, ViewDataset
from pretrain.loading.loader import Loader
from pretrain.loading.ring import BatchSize
from pretrain.source.images import ImageSource
from pretrain.views import ViewRecipe
from runtime.errors import InputError

COUNT, BATCH, STEPS = 120, 40, 7
RECIPE = ViewRecipe(8)


@dataclass(frozen=True)
class Numbers(ImageSource):
    """Image i has the colour i; images in ``trouble`` do what is said there."""

    root: Path = Path("numbers")
    files: tuple[str, ...] = tuple(map(str, range(COUNT)))
    trouble: tuple[tuple[int, str], ...] = ()

    def pixels(self, index: int, damage: list[str] | None = None) -> np.ndarray:
        trouble = dict(self.trouble).get(index)
        if trouble == "slow":
            time.sleep(0.05)
        elif trouble == "storage":
            raise InputError(f"cannot read image {index}")
        elif trouble == "bug":
            raise ZeroDivisionError(index)
        elif trouble == "exit":
            os._exit(3)
        elif trouble:
            os.kill(os.getpid(), int(trouble) if trouble.isdigit() else getattr(signal, trouble))
        return np.full((20, 30, 3), index, dtype=np.uint8)

    def read(self, index: int) -> bytes:
        raise NotImplementedError

    def file_sizes(self) -> list[int]:
        return [0] * COUNT

    def class_names(self) -> list[str]:
        return [str(i % 3) for i in range(COUNT)]

    def fingerprint(self) -> str:
        return ""


PLAIN = ViewRecipe(8, jitter_prob=0, grayscale_prob=0)  # a view has the colour of its image


def build(
    number: int,
    recipe: ViewRecipe = PLAIN,
    start: int = 0,
    method: str = workers.START,
    rank: int = 0,
    world: int = 1,
    pipeline: str = "reference",
    **trouble: list[int],
) -> Loader:
    bad = tuple((index, kind) for kind, indices in trouble.items() for index in indices)
    source = Numbers(trouble=bad)
    dataset = ViewDataset(source, recipe, 2, 5, source.labels(), pipeline)
    batches = EpochBatches(COUNT, BATCH, STEPS, 5, start, rank, world)
    return Loader(dataset, batches, number, start_method=method)


def places(start: int = 0) -> list[list[int]]:
    """The images of each batch."""
    batches = EpochBatches(COUNT, BATCH, STEPS, 5, start)
    return [[index for _, index in batch] for batch in batches]


def right(batch: Batch, images: list[int]) -> bool:
    """Whether the batch holds these images, whatever has happened since."""
    colours = torch.tensor(images, dtype=torch.uint8).view(-1, 1, 1, 1)
    return (
        batch.indices.tolist() == images
        and batch.labels.tolist() == [int(str(i % 3)) for i in images]
        and all(torch.equal(view, colours.expand_as(view)) for view in batch.views)
    )


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found.update(map(int, task.read_text().split()))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Neither processes nor shared memory nor open files outlive a loader."""
    resource_tracker.ensure_running()  # spawned processes bring one with them

    def resources() -> tuple[set[int], int, int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        files = len(os.listdir("/proc/self/fd"))
        return children(), maps.count("memfd:batches"), maps.count("/dev/shm"), files

    before = resources()
    yield
    after = resources()
    assert after[0] - before[0] == set()
    # fewer: connections of earlier tests to their servers close late
    assert all(now <= then for now, then in zip(after[1:], before[1:], strict=True)), (
        before,
        after,
    )


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_batches_come_in_order_and_whole(number: int) -> None:
    for start in (0, 4):
        found = 0
        for batch, images in zip(build(number, start=start), places(start), strict=True):
            assert right(batch, images)
            found += 1
        assert found == STEPS - start


def tensors(made: Loader) -> list[list[torch.Tensor]]:
    """Views and rows of each batch."""
    return [
        [*batch.views, *([] if batch.rows is None else batch.rows), batch.labels, batch.indices]
        for batch in made
    ]


@pytest.mark.parametrize("pipeline", ["reference", "split"])
def test_equal_for_any_workers_ranks_and_start_methods(pipeline: str) -> None:
    make = partial(build, recipe=ViewRecipe(8, blur_prob=0.5), pipeline=pipeline)
    whole = tensors(make(0))
    assert len(whole[0]) == (6 if pipeline == "split" else 4)
    others = [tensors(make(n)) for n in (1, 2, 3)]
    others += [tensors(make(1, method="spawn"))] if pipeline == "split" else []
    for other in others:
        for step, one in zip(other, whole, strict=True):
            assert all(map(torch.equal, step, one))
    ranks = [tensors(make(1, start=3, rank=r, world=2)) for r in (0, 1)]
    for step, *shares in zip(whole[3:], *ranks, strict=True):
        for tensor, *parts in zip(step, *shares, strict=True):
            assert torch.equal(tensor, torch.cat(parts))


@pytest.mark.parametrize("number", [0, 2])
def test_slow_images_do_not_change_the_order(number: int) -> None:
    for batch, images in zip(build(number, slow=places()[0][:6]), places(), strict=True):
        assert right(batch, images)


@pytest.mark.parametrize("number", [0, 2])
def test_kept_batches_stay_as_they_are(number: int) -> None:
    batches = list(build(number))
    assert all(map(right, batches, places()))
    kept, labels = [], []
    for batch in build(number):  # a piece of a batch holds its memory as well
        kept.append(batch.views[1][3:5, 0].flatten(1))
        labels.append(batch.labels[7:9])
    for piece, label, images in zip(kept, labels, places(), strict=True):
        assert piece.unique(dim=1).flatten().tolist() == images[3:5]
        assert label.tolist() == [i % 3 for i in images[7:9]]


def test_memory_is_shared_and_bounded() -> None:
    """What is not kept comes from the same few slots, and nothing is copied."""
    addresses = set()
    for batch in build(2):
        addresses.add(batch.views[0].data_ptr())
    assert len(addresses) <= loader.AHEAD + loader.LENT < STEPS


def test_too_little_memory_is_one_line_before_any_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need = (loader.AHEAD + loader.LENT) * BatchSize(BATCH, 2, 8, 0).bytes()
    monkeypatch.setattr(memory_check, "free_memory", lambda: need)
    assert right(next(iter(build(1))), places()[0])
    monkeypatch.setattr(memory_check, "free_memory", lambda: need - 1)
    with pytest.raises(InputError, match=r"are needed and .* are free on"):
        build(1)


@pytest.mark.parametrize("share", [1, 15, 16, 17, 100, 256, 1000, 4096])
def test_parts_cover_a_batch(share: int) -> None:
    cuts = loader._cuts(share)
    assert [n for first, stop in cuts for n in range(first, stop)] == list(range(share))
    assert len(cuts) <= loader.MOST_PARTS
    for number in (1, 3, 64):
        assert loader._ahead(len(cuts), number) * len(cuts) >= loader.AHEAD * number


@pytest.mark.parametrize("number", [0, 2])
def test_a_problem_comes_in_its_turn(number: int) -> None:
    """Batches before it are good; the message is that of the storage."""
    made = iter(build(number, storage=[places()[2][30], places()[2][5]]))
    assert right(next(made), places()[0])
    assert right(next(made), places()[1])
    with pytest.raises(InputError, match=f"^cannot read image {places()[2][5]}$"):
        next(made)


def test_an_exception_in_a_worker_has_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)loader worker \d+.*ZeroDivisionError\(index\)"):
        list(build(2, bug=[places()[1][0]]))
    with pytest.raises(ZeroDivisionError):
        list(build(0, bug=[places()[1][0]]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("SIGKILL", "was killed by SIGKILL: .* smaller DATA.NUM_WORKERS"),
        ("SIGXCPU", "was killed by SIGXCPU"),
        ("50", "was killed by signal 50"),  # of those without a name
        ("exit", "has ended with exit code 3"),
    ],
)
def test_a_death_is_noticed_and_named(kind: str, message: str) -> None:
    made = iter(build(2, **{kind: [places()[1][0]]}))
    with pytest.raises(RuntimeError, match=rf"loader worker \d+ {message}"):
        list(made)


def test_a_death_is_noticed_though_the_batch_is_there() -> None:
    before = children()
    with closing(iter(build(2))) as made:
        next(made)
        time.sleep(0.5)  # all batches ahead are made
        victim = min(children() - before)
        os.kill(victim, signal.SIGKILL)
        os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
        with pytest.raises(RuntimeError, match=f"loader worker {victim} was killed by SIGKILL"):
            next(made)


def test_giving_up_in_the_middle_leaves_nothing() -> None:
    """See the fixture."""
    for number in (1, 3):
        with closing(iter(build(number, slow=list(range(COUNT))))) as made:
            next(made)


def trainer_that_waits(pids: Connection) -> None:
    made = iter(build(3, slow=list(range(COUNT))))
    next(made)
    pids.send(children())
    time.sleep(60)


def test_workers_end_with_a_trainer_that_is_killed() -> None:
    context = multiprocessing.get_context("fork")
    pids, there = context.Pipe(duplex=False)
    trainer = context.Process(target=trainer_that_waits, args=(there,))
    trainer.start()
    workers = pids.recv()
    assert len(workers) == 3
    trainer.kill()
    trainer.join()
    until = time.monotonic() + 20
    while left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < until, left
        time.sleep(0.05)
