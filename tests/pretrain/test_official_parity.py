"""The same training as the official code: same initial weights, batches and permutations.

The official code runs as it is (only ``.cuda()`` and its random permutation are replaced from
outside), two processes of one BN group each. docs/parity.md shows what was measured.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from parity_page import PAGE
from processes import run_processes
from tiny_training import global_batch, new_method, share, tiny_cfg, train
from torch.nn.parallel import DistributedDataParallel

from pretrain.encoder import build_encoder
from pretrain.loading.batches import normalise
from pretrain.shuffled_bn import permutation
from runtime.distributed import mean_over_ranks

sys.path.insert(0, str(ROOT))
from benchmarks.official_moco import BUILDER, MISSING, new_official, on_cpu

STEPS = 10
TABLE = "Pretraining: official MoCo, two processes"
RECIPES = {"v1": ("MODEL.MLP", False, "MODEL.TEMPERATURE", 0.07), "v2": ()}
pytestmark = [
    pytest.mark.official,
    pytest.mark.skipif(not BUILDER.exists(), reason=MISSING),
]


def cfg_of(version: str, *more: Any) -> Any:
    """One BN group a process, and a queue of whole batches: the official code knows no other."""
    official = ("MODEL.BN_GROUP_SIZE", 16, "MODEL.QUEUE_SIZE", 64, "MODEL.RUNNING_STATS", "first")
    return tiny_cfg(
        *official, "VIEWS.CROP_SIZE", 64, "MODEL.MOMENTUM", 0.999, *RECIPES[version], *more
    )


def train_official(cfg: Any, steps: int, dtype: torch.dtype) -> dict[str, Any]:
    """What ``main_moco.py`` does with the batches of :func:`tiny_training.train`."""
    torch.set_default_dtype(dtype)
    keys = ("DIM", "QUEUE_SIZE", "MOMENTUM", "TEMPERATURE", "MLP")
    moco = new_official(
        lambda num_classes: build_encoder(cfg.MODEL.ARCH, num_classes),
        *(cfg.MODEL[key] for key in keys),
    )
    moco.load_state_dict(new_method(cfg).model.state_dict())
    model = DistributedDataParallel(moco)
    optimizer = torch.optim.SGD(
        model.parameters(), cfg.SOLVER.BASE_LR, momentum=0.9, weight_decay=1e-4
    )
    losses = []
    for step in range(steps):
        im_q, im_k = (
            normalise(v, channels_last=False) for v in share(global_batch(cfg, step)).views
        )
        with on_cpu(permutation(cfg.SEED, step, cfg.SOLVER.BATCH_SIZE)):
            output, target = model(im_q=im_q, im_k=im_k)
        loss = F.cross_entropy(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(mean_over_ranks(loss.detach())))
    return {"losses": losses, "state": moco.state_dict()}


def both(cfg: Any, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    return train(cfg, STEPS, dtype), train_official(cfg, STEPS, dtype)


def note(row: str, ours: dict[str, Any], official: dict[str, Any], steps: int) -> float:
    """Record the differences for docs/parity.md; return that of the losses."""

    def some(run: dict[str, Any], *words: str) -> dict[str, torch.Tensor]:
        return {n: v for n, v in run["state"].items() if any(word in n for word in words)}

    def losses(run: dict[str, Any]) -> list[torch.Tensor]:
        return [torch.tensor(loss, dtype=torch.float64) for loss in run["losses"][:steps]]

    for column, words in {
        "weights after 10 steps": (".weight", ".bias"),
        "queue": ("queue",),
        "running statistics": ("running_",),
    }.items():
        if steps == STEPS:
            PAGE.note(TABLE, row, column, some(ours, *words), some(official, *words))
    return PAGE.note(TABLE, row, f"losses of {steps} steps", losses(ours), losses(official))


@pytest.mark.parametrize("version", RECIPES)
def test_two_processes_train_as_the_official_code(version: str) -> None:
    cfg = cfg_of(version)
    ours, official = run_processes(both, 2, cfg, torch.float64)[0]
    assert note(f"{version}, float64", ours, official, STEPS) < 1e-5
    for name, value in official["state"].items():  # rank 0's running statistics included
        torch.testing.assert_close(ours["state"][name], value, rtol=1e-7, atol=1e-9, msg=name)
    assert official["losses"][0] != pytest.approx(official["losses"][1], rel=1e-2)


@pytest.mark.parametrize("version", RECIPES)
def test_in_float32_until_rounding_is_magnified(version: str) -> None:
    """BN over a few values makes 0.01 to 0.1 of the last bit within 10 steps."""
    ours, official = run_processes(both, 2, cfg_of(version), torch.float32)[0]
    assert note(f"{version}, float32", ours, official, 2) < 1e-5
    note(f"{version}, float32", ours, official, STEPS)
