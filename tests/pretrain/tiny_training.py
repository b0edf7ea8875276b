"""A few steps of the project's own training on random images, on this process's rank."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode

from pretrain.bn_groups import share_running_statistics_
from pretrain.config import default_cfg
from pretrain.dictionaries import contrastive_method
from pretrain.loading.batches import Batch
from pretrain.methods import Method, SupervisedMethod
from pretrain.step import Step
from runtime.distributed import data_parallel, mean_over_ranks, rank, world_size

CLASSES = 5
IMAGES = 120  # of the data set that the batches are said to come from
CPU = torch.device("cpu")


def tiny_cfg(*overrides: Any) -> CfgNode:
    """MoCo v2 in small: 8 BN groups of 4 images, a queue that is no multiple of the batch."""
    cfg = default_cfg()
    small = "MODEL.ARCH resnet18w0.125x MODEL.DIM 16 MODEL.QUEUE_SIZE 72 MODEL.BN_GROUP_SIZE 4"
    small += " MODEL.MLP True MODEL.MOMENTUM 0.9 MODEL.TEMPERATURE 0.2 SOLVER.BATCH_SIZE 32"
    cfg.merge_from_list([*small.split(), "VIEWS.CROP_SIZE", 32, *overrides])
    return cfg


def new_method(cfg: CfgNode) -> Method:
    torch.manual_seed(0)
    return (
        SupervisedMethod(cfg, CLASSES)
        if cfg.METHOD == "supervised"
        else contrastive_method(cfg, IMAGES)
    )


def global_batch(cfg: CfgNode, step: int, views: int = 2) -> Batch:
    """Views of random images: smooth colours, so that two views of an image look alike."""
    count, size = cfg.SOLVER.BATCH_SIZE, cfg.VIEWS.CROP_SIZE
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(count, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear")
    noise = torch.rand(views, count, 3, size, size, generator=generator)
    pixels = ((0.8 * images + 0.2 * noise) * 255).to(torch.uint8)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    indices = torch.randperm(IMAGES, generator=generator)[:count]
    return Batch(tuple(pixels), labels, indices)


def share(batch: Batch) -> Batch:
    """This rank's part of a global batch."""
    mine = slice(*(len(batch.labels) * r // world_size() for r in (rank(), rank() + 1)))
    return Batch(tuple(v[mine] for v in batch.views), batch.labels[mine], batch.indices[mine])


def train(cfg: CfgNode, steps: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Losses of ``steps`` global batches, and the state dict afterwards."""
    torch.set_default_dtype(dtype)
    try:
        method = new_method(cfg)
        method.model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            [p for p in method.model.parameters() if p.requires_grad],
            lr=cfg.SOLVER.BASE_LR,
            momentum=0.9,
            weight_decay=1e-4,
            fused=True,
        )
        step = Step(
            method, data_parallel(method.model), optimizer, CPU, parts=cfg.SOLVER.ACCUMULATE
        )
        results = [
            step(share(global_batch(cfg, number, method.view_count))) for number in range(steps)
        ]
        share_running_statistics_(method.model)
        losses = [float(mean_over_ranks(result.loss)) for result in results]
        accuracies = [float(mean_over_ranks(result.accuracy)) for result in results]
        return {"losses": losses, "accuracies": accuracies, "state": method.model.state_dict()}
    finally:
        torch.set_default_dtype(torch.float32)
