"""The ring of shared batches: when a slot is free again, where its arrays lie, its memory."""

from __future__ import annotations

import pytest
import torch

from pretrain.loading import memory_check
from pretrain.loading.ring import BatchSize, Ring
from runtime.errors import InputError


def test_a_slot_is_free_when_its_last_array_is_gone() -> None:
    ring = Ring(2, BatchSize(4, 2, 8, 0))
    slot = ring.free.popleft()
    ring.arrays(slot).views[:] = 7
    views = ring.lend(slot).views
    tensor = torch.from_numpy(views[1])
    del views
    assert slot not in ring.free
    part = tensor[2, 0]
    del tensor
    assert slot not in ring.free
    assert (part == 7).all()
    del part
    assert slot in ring.free


def test_arrays_of_a_slot_do_not_overlap() -> None:
    ring = Ring(3, BatchSize(5, 2, 3, 7))
    for number in range(3):
        for value, array in enumerate(ring.arrays(number)):
            array[...] = 10 * number + value
    for number in range(3):
        slot = ring.arrays(number)
        assert [set(array.flatten().tolist()) for array in slot] == [
            {10 * number + value} for value in range(5)
        ]
        assert slot.views.shape == (2, 5, 3, 3, 3)
        assert slot.rows.shape == (2, 5, 7)
        assert slot.places.shape == (5, 2)
        assert all(array.flags.aligned for array in slot)


GB = 10**9
LARGE = BatchSize(1000, 2, 224, 0)  # 301 MB


@pytest.mark.parametrize(
    ("everybody", "count", "message"),
    [
        ([("a", 2 * GB, 3 * GB)], 4, ""),
        ([("a", 2 * GB, 3 * GB), ("b", 2 * GB, 3 * GB)], 4, ""),
        (
            [("a", 2 * GB, 3 * GB), ("b", GB, 2 * GB), ("a", 2 * GB, 3.5 * GB)],
            4,
            "4 GB of memory are needed and 3 GB are free on a: 2 processes with 4 batches of 1000 "
            "images in 2 views of 224 px for 3 workers; lower SOLVER.BATCH_SIZE or",
        ),
        ([("a", 2 * GB, GB)], 9, "1 process with 9 .* lower DATA.NUM_WORKERS, SOLVER.BATCH_SIZE"),
    ],
)
def test_memory_is_checked_for_all_processes_of_a_machine(
    everybody: list, count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_check, "all_gather_objects", lambda _mine: everybody)
    if not message:
        memory_check.check_memory(count, LARGE, 3, 4)
        return
    with pytest.raises(InputError, match=message):
        memory_check.check_memory(count, LARGE, 3, 4)
