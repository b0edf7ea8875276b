"""Two real Gloo processes train as one process does on the same global batch.

In float64, where rounding differs too little to change which boxes survive suppression: with
float32 the first losses agree to 1e-6, and later ones part when a box is kept in one run only.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import parity_models
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from runtime.distributed import data_parallel
from transfer.engines.base import Draws
from transfer.engines.precise_bn import precise_bn
from transfer.engines.select import select_engine

SYNC = {"MODEL.RESNETS.NORM": "SyncBN", "MODEL.FPN.NORM": "SyncBN", "MODEL.BACKBONE.FREEZE_AT": 0}
RECIPES: dict[str, dict[str, Any]] = {
    "FPN": {**parity_models.FPN, **parity_models.R18, **SYNC},
    "C4": {**parity_models.C4_MOCO, **parity_models.R18, **SYNC},
}
SAMPLERS = {
    "embedded": ("_label", "_sample_one"),
    "detectron2": ("_subsample_labels", "_sample_proposals"),
}
STEPS = 2
ENGINES = ["embedded", pytest.param("detectron2", marks=pytest.mark.detectron2)]


def images(cfg: Any, count: int) -> list[dict[str, Any]]:
    """Images of one size: a batch is padded to its largest, and each process has its own batch."""
    rng = np.random.default_rng(1)
    samples = []
    for _ in range(count):
        low = rng.uniform(0, 40, (3, 2))
        boxes = np.concatenate([low, low + rng.uniform(15, 50, (3, 2))], axis=1)
        classes = rng.integers(0, cfg.MODEL.ROI_HEADS.NUM_CLASSES, 3)
        targets = {
            "boxes": torch.from_numpy(boxes).float(),
            "classes": torch.from_numpy(classes),
        }
        image = torch.from_numpy(rng.integers(0, 256, (3, 96, 96), dtype=np.uint8))
        samples.append({"image": image, "height": 96, "width": 96, "targets": targets})
    return samples


def batches(engine: str, cfg: Any, rank: int, world: int) -> list[list[dict[str, Any]]]:
    every = images(cfg, 2 * STEPS)
    parts = [every[2 * i : 2 * i + 2][rank::world] for i in range(STEPS)]
    if engine == "embedded":
        return parts
    from transfer.engines.detectron2.convert import to_instances

    return [[to_instances(image) for image in part] for part in parts]


def in_float32(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
    """Suppression takes no float64."""
    return [[level.float() for level in levels] for levels in outputs]


def storage(engine: str) -> contextlib.AbstractContextManager[Any]:
    if engine == "embedded":
        return contextlib.nullcontext()
    from detectron2.utils.events import EventStorage

    return EventStorage()


def train(engine: str, recipe: str, rank: int, world: int) -> dict[str, Any]:
    """Losses of each step, gradients of the first, weights at the end and after PreciseBN."""
    torch.set_num_threads(1)
    chosen, _ = select_engine(engine)
    cfg = chosen.base_cfg()
    for key, value in {**parity_models.SMALL, **RECIPES[recipe]}.items():
        cfg.merge_from_list([key, value])
    torch.manual_seed(0)
    model = chosen.build_model(cfg)
    parity_models.spread_weights(model)
    model.double().proposal_generator.rpn_head.register_forward_hook(in_float32)
    anchors, regions = SAMPLERS[engine]
    draws = Draws(
        5, anchors=(model.proposal_generator, anchors), regions=(model.roi_heads, regions)
    )
    wrapped = data_parallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    parts = batches(engine, cfg, rank, world)
    result: dict[str, Any] = {"losses": []}
    with storage(engine):
        for iteration, part in enumerate(parts):
            draws.begin(iteration)
            losses = wrapped(part)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            if iteration == 0:
                result["gradients"] = gradients(model)
            optimizer.step()
            result["losses"].append({name: loss.item() for name, loss in losses.items()})
        result["trained"] = {name: t.clone() for name, t in model.state_dict().items()}
        precise_bn(model, parts, STEPS)
    result["precise"] = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    return result


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def worker(rank: int, folder: str, engine: str, recipe: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(train(engine, recipe, rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of a tensor, in parts of its largest value."""
    assert list(a) == list(b)
    return max(
        float((a[name] - b[name]).abs().max() / b[name].abs().max().clamp(min=1e-12)) for name in b
    )


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one(engine: str, recipe: str, tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path), engine, recipe), nprocs=2)
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    one = train(engine, recipe, 0, 1)
    for a, b, whole in zip(first["losses"], second["losses"], one["losses"], strict=True):
        for name in whole:  # every loss is a mean over as many anchors or regions of each image
            assert (a[name] + b[name]) / 2 == pytest.approx(whole[name], rel=1e-6), name
    assert {name for name, _ in first["gradients"].items()} == set(one["gradients"])
    measured = {part: difference(first[part], one[part]) for part in one if part != "losses"}
    print(engine, recipe, measured)
    assert measured["gradients"] < 1e-10, measured
    assert measured["trained"] < 1e-10, measured
    assert measured["precise"] < 1e-10, measured
    for part in ("trained", "precise"):
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), name
