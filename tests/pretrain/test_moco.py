"""MoCo in one process and in two real processes against the slow reference.

In float64, so that a wrong number cannot hide behind rounding: at 32 pixels res5 normalises four
values at a time, which magnifies float32's rounding to 1e-3 within a few steps.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from reference_moco import train_reference

from pretrain.bn_groups import share_running_statistics_
from pretrain.moco import MoCo
from pretrain.shuffled_bn import permutation
from runtime.distributed import data_parallel

ARCH, BATCH, GROUP, STEPS, SEED, LR = "resnet18w0.125x", 8, 4, 4, 3, 0.05
QUEUE = 20  # no multiple of the batch: the queue wraps around inside a batch


def new_moco(mlp: bool) -> MoCo:
    torch.manual_seed(0)
    return MoCo(ARCH, 16, QUEUE, 0.9, 0.2, mlp, bn_group_size=GROUP, seed=SEED).double()


def make_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    shape = (BATCH, 3, 32, 32)
    views = torch.randn((STEPS, 2, *shape), generator=generator, dtype=torch.float64)
    return [(im_q, im_k) for im_q, im_k in views]


def train_ours(model: torch.nn.Module, moco: MoCo, rank: int, world: int) -> list[float]:
    """Train on this rank's share; the losses of the global batch."""
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    optimizer = torch.optim.SGD(
        [p for p in moco.parameters() if p.requires_grad], LR, momentum=0.9, weight_decay=1e-4
    )
    losses = []
    for im_q, im_k in make_batches():
        keys, all_keys = moco.encode_keys(im_k[share])
        logits, labels = model(im_q[share], keys)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moco.end_step(all_keys)
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
        losses.append(float(total) / world)
    share_running_statistics_(moco)
    return losses


def two_processes(rank: int, port: int, mlp: bool, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    moco = new_moco(mlp)
    losses = train_ours(data_parallel(moco), moco, rank, 2)
    torch.save({"losses": losses, "state": moco.state_dict()}, f"{out}/{rank}.pth")
    dist.destroy_process_group()


def reference(mlp: bool) -> tuple:
    moco = new_moco(mlp)
    orders = [permutation(SEED, step, BATCH) for step in range(STEPS)]
    return train_reference(moco.encoder_q, moco.queue, make_batches(), orders, GROUP, 0.9, 0.2, LR)


def assert_equals_reference(losses: list[float], moco_state: dict, mlp: bool) -> None:
    expected, query, key, queue, pointer = reference(mlp)
    assert losses == pytest.approx(expected, rel=1e-9)
    assert int(moco_state["queue_ptr"]) == pointer == (STEPS * BATCH) % QUEUE
    torch.testing.assert_close(moco_state["queue"], queue, rtol=1e-7, atol=1e-9)
    for prefix, encoder in (("encoder_q.", query), ("encoder_k.", key)):
        for name, value in encoder.named_parameters():
            torch.testing.assert_close(moco_state[prefix + name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mlp", [False, True])
def test_one_process_equals_reference(mlp: bool) -> None:
    moco = new_moco(mlp)
    losses = train_ours(moco, moco, 0, 1)
    assert_equals_reference(losses, moco.state_dict(), mlp)


@pytest.mark.parametrize("mlp", [False, True])
def test_two_processes_equal_reference_and_one_process(mlp: bool, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(two_processes, args=(port, mlp, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{r}.pth", weights_only=True) for r in (0, 1)]
    for name, value in ranks[0]["state"].items():
        assert torch.equal(value, ranks[1]["state"][name]), name
    assert_equals_reference(ranks[0]["losses"], ranks[0]["state"], mlp)

    one = new_moco(mlp)
    losses = train_ours(one, one, 0, 1)
    assert ranks[0]["losses"] == pytest.approx(losses, rel=1e-10)
    for name, value in one.state_dict().items():  # running BN statistics included
        torch.testing.assert_close(ranks[0]["state"][name], value, rtol=1e-7, atol=1e-9)


def test_without_shuffling_the_result_differs() -> None:
    """The reference sees the permutation: otherwise the tests above could not."""
    moco = new_moco(False)
    orders = [torch.arange(BATCH)] * STEPS
    plain, *_ = train_reference(
        moco.encoder_q, moco.queue, make_batches(), orders, GROUP, 0.9, 0.2, LR
    )
    shuffled, *_ = reference(False)
    assert plain != pytest.approx(shuffled, rel=1e-4)


def test_keys_without_shuffling_stay_in_their_groups() -> None:
    """MODEL.SHUFFLE_BN False: the leak can be shown."""
    im_k = make_batches()[0][1]
    for shuffle in (False, True):
        moco = new_moco(False)
        moco.shuffle = shuffle
        keys, _ = moco.encode_keys(im_k)
        together = F.normalize(moco.encoder_k(im_k), dim=1)
        assert torch.allclose(keys, together) != shuffle


def test_official_names_and_shapes() -> None:
    state = MoCo("resnet18", 128, 64, mlp=True).state_dict()
    assert state["queue"].shape == (128, 64)
    assert state["queue_ptr"].shape == (1,)
    names = {name.split(".")[0] for name in state}
    assert names == {"encoder_q", "encoder_k", "queue", "queue_ptr"}
    assert state["encoder_q.fc.0.weight"].shape == (512, 512)
    assert state["encoder_k.fc.2.weight"].shape == (128, 512)
    torch.testing.assert_close(state["queue"].norm(dim=0), torch.ones(64))


def test_forward_alone_changes_nothing() -> None:
    moco = new_moco(True).eval()
    before = {name: value.clone() for name, value in moco.state_dict().items()}
    keys = F.normalize(torch.randn(BATCH, 16, dtype=torch.float64), dim=1)
    logits, labels = moco(make_batches()[0][0], keys)
    assert logits.shape == (BATCH, 1 + QUEUE)
    assert labels.tolist() == [0] * BATCH
    assert all(torch.equal(value, before[name]) for name, value in moco.state_dict().items())


def test_keys_that_enter_before_the_backward_pass_are_an_error() -> None:
    """The queue is not copied, so the order matters; autograd watches over it."""
    moco = new_moco(False)
    im_q, im_k = make_batches()[0]
    keys, all_keys = moco.encode_keys(im_k)
    logits, labels = moco(im_q, keys)
    moco.end_step(all_keys)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        F.cross_entropy(logits, labels).backward()
