"""A training step of the official code and of ours on one device, ready to be timed."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.official_moco import new_official, on_cpu
from pretrain.config import default_cfg
from pretrain.encoder import build_encoder
from pretrain.loading.batches import Batch, normalise
from pretrain.methods import MoCoMethod
from pretrain.step import Step
from runtime.memory import keep_freed_memory

SGD = {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4}


def prepare(
    whose: str, workload: Any, device: str, groups: int = 1, parts: int = 1
) -> dict[str, Callable[[], Any]]:
    """Tasks: ``step`` (returns wall seconds), ``flops`` of a step, ``memory`` (peak bytes)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = (2, workload.images, 3, workload.size, workload.size)
    views = torch.randint(256, shape, dtype=torch.uint8)
    if whose == "official":
        take = _official(workload, device, views)
    else:
        take = _ours(workload, device, views, groups, parts)

    def step() -> float:
        before = time.perf_counter()
        take()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - before

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            take()
        return counter.get_total_flops()

    def memory() -> int:
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return {"step": step, "flops": flops, "memory": memory}


def _official(workload: Any, device: str, views: torch.Tensor) -> Callable[[], None]:
    """What ``main_moco.py`` does with a batch, which its loader has normalised."""
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    moco = new_official(
        lambda num_classes: build_encoder(workload.arch, num_classes), 128, workload.queue
    ).to(device)
    model = torch.nn.parallel.DistributedDataParallel(moco)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    im_q, im_k = (normalise(view, channels_last=False) for view in views)

    def take() -> None:
        logits, labels = model(im_q=im_q.to(device), im_k=im_k.to(device))
        loss = F.cross_entropy(logits, labels)
        right = logits.topk(5)[1] == labels[:, None]
        for figure in (loss, right[:, 0].float().mean(), right.float().sum(1).mean()):
            figure.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def on_device() -> None:
        if device == "cpu":
            with on_cpu():
                take()
        else:
            take()

    return on_device


def _ours(
    workload: Any, device: str, views: torch.Tensor, groups: int, parts: int
) -> Callable[[], None]:
    """What :mod:`pretrain.trainer` does with a batch, normalising included."""
    if device == "cpu":
        keep_freed_memory()
    cfg = default_cfg()
    cfg.MODEL.ARCH, cfg.MODEL.QUEUE_SIZE = workload.arch, workload.queue
    cfg.MODEL.BN_GROUP_SIZE = workload.images // groups
    method = MoCoMethod(cfg)
    method.model.to(device).to(memory_format=torch.channels_last)
    trained = [p for p in method.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, fused=True, **SGD)
    step = Step(method, method.model, optimizer, torch.device(device), parts)
    batch = Batch(tuple(views), torch.zeros(workload.images), torch.arange(workload.images))
    return lambda: step(batch) and None
