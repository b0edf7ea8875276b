"""Memory bank and end-to-end against slow references, in processes and parts, resumed; refusals.

In float64, as in test_moco.py. The queue is tested there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from processes import run_processes
from reference_moco import with_groups
from tiny_training import IMAGES, global_batch, new_method, tiny_cfg, train
from torch import nn

from convert.source import read_source
from pretrain.config import load_cfg
from pretrain.end_to_end import batch_logits
from pretrain.initial_weights import load_initial_weights
from pretrain.loading.batches import normalise
from pretrain.memory_bank import MemoryBank, draw_negatives
from pretrain.shuffled_bn import permutation
from pretrain.trainer import pretrain
from runtime.errors import InputError
from runtime.randomness import generator

STEPS = 4
BATCH = ("SOLVER.BATCH_SIZE", 8, "SOLVER.BASE_LR", 0.05)
RECIPES: dict[str, tuple[Any, ...]] = {
    "memory_bank": (*BATCH, "MODEL.DICTIONARY", "memory_bank", "MODEL.MOMENTUM", 0.5),
    "end_to_end": (*BATCH, "MODEL.DICTIONARY", "end_to_end", "MODEL.QUEUE_SIZE", 8),
}


@pytest.fixture(scope="module", params=RECIPES)
def one_process(request: pytest.FixtureRequest) -> tuple[tuple[Any, ...], dict[str, Any]]:
    recipe = RECIPES[request.param]
    return recipe, train(tiny_cfg(*recipe), STEPS, torch.float64)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def sgd(model: nn.Module, velocity: list[torch.Tensor], loss: torch.Tensor, lr: float) -> None:
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for p, v, g in zip(model.parameters(), velocity, gradients, strict=True):
            v.copy_(0.9 * v + g + 1e-4 * p)
            p -= lr * v


def info_nce(query: torch.Tensor, key: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    """Equation 1 of the paper, for one query, at temperature 0.2."""
    positive = torch.exp(query @ key / 0.2)
    return -torch.log(positive / (positive + sum(torch.exp(query @ k / 0.2) for k in others)))


def memory_bank_by_hand(cfg: Any) -> tuple[list[float], nn.Module, torch.Tensor]:
    """Wu et al. with InfoNCE: one image, one row of the bank at a time."""
    start = new_method(cfg).model
    model, bank = with_groups(start.encoder_q, cfg.MODEL.BN_GROUP_SIZE), start.bank.clone()
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    losses = []
    for step in range(STEPS):
        batch = global_batch(cfg, step, views=1)
        images = batch.indices.tolist()
        q = F.normalize(model(normalise(batch.views[0])), dim=1)
        drawn = generator(cfg.SEED, "memory bank", step).choice(IMAGES, 72 + 8, replace=False)
        chosen = [i for i in drawn.tolist() if i not in images][:72]
        negatives = [bank[i].clone() for i in chosen]
        loss = sum(info_nce(q[n], bank[i].clone(), negatives) for n, i in enumerate(images)) / 8
        sgd(model, velocity, loss, 0.05)
        for n, i in enumerate(images):
            row = 0.5 * bank[i] + 0.5 * q[n].detach()
            bank[i] = row / row.norm()
        losses.append(float(loss.detach()))
    return losses, model, bank


def end_to_end_by_hand(cfg: Any) -> tuple[list[float], nn.Module, None]:
    """Queries and keys of one encoder, gradients through both."""
    model = with_groups(new_method(cfg).model.encoder_q, cfg.MODEL.BN_GROUP_SIZE)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    losses = []
    for step in range(STEPS):
        first, second = (normalise(v) for v in global_batch(cfg, step).views)
        order = permutation(cfg.SEED, step, 8)
        q = F.normalize(model(first), dim=1)
        shuffled = F.normalize(model(second[order]), dim=1)
        keys = [shuffled[order.tolist().index(n)] for n in range(8)]
        loss = sum(info_nce(q[n], keys[n], keys[:n] + keys[n + 1 :]) for n in range(8)) / 8
        sgd(model, velocity, loss, 0.05)
        losses.append(float(loss.detach()))
    return losses, model, None


BY_HAND = {"memory_bank": memory_bank_by_hand, "end_to_end": end_to_end_by_hand}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", RECIPES)
def test_equals_the_slow_reference(name: str) -> None:
    cfg = tiny_cfg(*RECIPES[name])
    losses, model, bank = BY_HAND[name](cfg)
    ours = train(cfg, STEPS, torch.float64)
    assert ours["losses"] == pytest.approx(losses, rel=1e-9)
    for name_, value in model.named_parameters():
        found = ours["state"][f"encoder_q.{name_}"]
        torch.testing.assert_close(found, value.detach(), rtol=1e-7, atol=1e-9)
    if bank is not None:
        torch.testing.assert_close(ours["state"]["bank"], bank, rtol=1e-7, atol=1e-9)


def assert_same(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    assert ours["losses"] == pytest.approx(expected["losses"], rel=1e-9)
    assert ours["accuracies"] == pytest.approx(expected["accuracies"], abs=1e-9)
    for name, value in expected["state"].items():
        torch.testing.assert_close(ours["state"][name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_two_processes_equal_one(one_process: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    recipe, expected = one_process
    ranks = run_processes(train, 2, tiny_cfg(*recipe), STEPS, torch.float64)
    assert_same(ranks[0], expected)
    for name, value in ranks[0]["state"].items():
        assert torch.equal(value, ranks[1]["state"][name]), name


def test_a_memory_bank_step_in_parts_equals_the_whole_batch() -> None:
    recipe = RECIPES["memory_bank"]
    whole = train(tiny_cfg(*recipe), STEPS, torch.float64)
    assert_same(train(tiny_cfg(*recipe, "SOLVER.ACCUMULATE", 2), STEPS, torch.float64), whole)


def test_gradients_flow_through_the_keys() -> None:
    """And through all of them, with the exact values of a cross-entropy over the batch."""
    torch.manual_seed(0)
    q, keys = (F.normalize(torch.randn(6, 5)).requires_grad_() for _ in range(2))
    logits, labels = batch_logits(q[2:4], keys, 2, 0.5)
    assert logits.shape == (2, 6)
    F.cross_entropy(logits, labels).backward()
    ours = keys.grad.clone()
    keys.grad = None
    F.cross_entropy(q[2:4] @ keys.T / 0.5, torch.tensor([2, 3])).backward()
    torch.testing.assert_close(ours, keys.grad)
    assert (ours.abs().sum(1) > 0).all()


def test_an_image_twice_in_a_batch_moves_once() -> None:
    """One stands in for an unreadable image; which of its queries counts may not be chance."""
    bank = MemoryBank(nn.Identity(), 20, 4, 5, momentum=0.5, temperature=0.2)
    before, queries = bank.bank.clone(), torch.randn(6, 4)
    images = torch.tensor([3, 7, 3, 11, 7, 3])
    bank(queries, bank.begin_step(images))
    bank.end_step()
    for image in range(20):
        expected = before[image]
        if image in images:
            query = queries[images.tolist().index(image)]
            expected = F.normalize(expected + F.normalize(query, dim=0), dim=0)
        torch.testing.assert_close(bank.bank[image], expected)


def test_negatives_are_a_random_sample_without_the_batch() -> None:
    batch = torch.tensor([3, 7, 11, 19])
    counts = torch.zeros(40)
    for step in range(2000):
        drawn = draw_negatives(5, step, 40, 9, batch)
        assert len(set(drawn.tolist())) == 9
        counts[drawn] += 1
    assert counts[batch].sum() == 0
    expected = 2000 * 9 / 36
    assert (counts[counts > 0] - expected).abs().max() < 5 * (expected * (1 - 9 / 36)) ** 0.5
    assert torch.equal(draw_negatives(5, 1, 40, 9, batch), draw_negatives(5, 1, 40, 9, batch))
    assert not torch.equal(draw_negatives(5, 1, 40, 9, batch), draw_negatives(6, 1, 40, 9, batch))
    everything = draw_negatives(5, 0, 13, 10, torch.tensor([3, 7, 11]))  # nothing to spare
    assert sorted(everything.tolist()) == [0, 1, 2, 4, 5, 6, 8, 9, 10, 12]


TINY = """
MODEL.ARCH resnet18w0.125x MODEL.DIM 8 MODEL.QUEUE_SIZE 8 MODEL.BN_GROUP_SIZE 4
VIEWS.CROP_SIZE 32 SOLVER.BATCH_SIZE 8 SOLVER.EPOCHS 3 SOLVER.SCHEDULE cosine LOG_PERIOD 1
DATA.NUM_WORKERS 0 DEVICE cpu CHECKPOINT_PERIOD 1
""".split()
V1 = ROOT / "configs/moco_v1_R50_200ep.yaml"


def run(folder: Path, output: Path, *more: str, resume: bool = False) -> dict:
    where = ["DATA.ROOT", str(folder), "OUTPUT_DIR", str(output)]
    return torch.load(pretrain(load_cfg(V1, [*TINY, *where, *more]), resume), weights_only=True)


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_equals_unbroken_and_is_converted(
    name: str, image_folder: Path, tmp_path: Path
) -> None:
    choice = ("MODEL.DICTIONARY", name)
    whole = run(image_folder, tmp_path / "whole", *choice)
    folder = tmp_path / "broken"
    run(image_folder, folder, *choice)
    (folder / "checkpoint_final.pth").unlink()  # as if killed in the third epoch
    (folder / "last_checkpoint").write_text("checkpoint_0001.pth")
    resumed = run(image_folder, folder, *choice, resume=True)
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    assert ("module.bank" in whole["state_dict"]) == (name == "memory_bank")

    source = read_source(folder / "checkpoint_final.pth")
    assert source.format.branch == "query"
    stem = whole["state_dict"]["module.encoder_q.conv1.weight"]
    assert torch.equal(source.backbone["conv1.weight"], stem)
    model = new_method(tiny_cfg("MODEL.MLP", False, *RECIPES[name])).model
    before = copy.deepcopy(model.state_dict())
    said = load_initial_weights(model, "resnet18w0.125x", str(folder / "checkpoint_final.pth"))
    assert torch.equal(model.encoder_q.conv1.weight, stem)
    assert said[1].startswith("MODEL.INIT head: new (fc.weight is (8, 64)")
    assert torch.equal(model.state_dict()["encoder_q.fc.weight"], before["encoder_q.fc.weight"])


WRONG = {
    "another name": (["MODEL.DICTIONARY", "bank"], "MODEL.DICTIONARY 'bank' must be one of"),
    "a bank's sample": (
        ["MODEL.DICTIONARY", "memory_bank", "MODEL.QUEUE_SIZE", "17"],
        "MODEL.QUEUE_SIZE 17 is too large for 24 images",
    ),
    "not the batch": (
        ["MODEL.DICTIONARY", "end_to_end", "MODEL.QUEUE_SIZE", "16"],
        "set it to SOLVER.BATCH_SIZE, 8",
    ),
    "in parts": (
        ["MODEL.DICTIONARY", "end_to_end", "SOLVER.ACCUMULATE", "2"],
        "needs gradients of the whole batch at once",
    ),
    "one BN group": (
        ["MODEL.DICTIONARY", "end_to_end", "MODEL.BN_GROUP_SIZE", "8"],
        "one BN group holds the whole batch",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused(name: str, image_folder: Path, tmp_path: Path) -> None:
    change, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        run(image_folder, tmp_path / "run", *change)
    assert not (tmp_path / "run").exists()
