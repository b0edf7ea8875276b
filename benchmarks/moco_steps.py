"""A training step of the official code and of ours on one device, ready to be timed."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data_transport import ENDLESS, Official
from benchmarks.official_moco import new_official, on_cpu
from pretrain.config import default_cfg, view_recipe
from pretrain.encoder import build_encoder
from pretrain.loading.batches import Batch, EpochBatches, ViewDataset, normalise
from pretrain.loading.loader import Loader
from pretrain.methods import MoCoMethod
from pretrain.precision import set_computation
from pretrain.source.images import ImageFolder
from pretrain.step import Step
from runtime.memory import keep_freed_memory

SGD = {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4}


FED_STEPS = 8


class Options(NamedTuple):
    """What our step can be told."""

    groups: int = 1
    parts: int = 1
    amp: str = ""
    compiled: bool = False


DEFAULT = Options()


class Side(NamedTuple):
    """A step, a batch for it, and the loader that makes such batches from a folder."""

    take: Callable[[Any], Any]
    ready: Any
    fed: Callable[[ImageFolder], Iterator[Any]]


def prepare(
    whose: str, workload: Any, device: str, options: Options = DEFAULT, photos: str = ""
) -> dict[str, Callable[[], Any]]:
    """Tasks: ``step`` (returns wall seconds), ``flops`` of a step, ``memory`` (peak bytes), and
    ``wait``, the share of the time that steps wait for the views of ``photos``, one worker making
    them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = (2, workload.images, 3, workload.size, workload.size)
    views = torch.randint(256, shape, dtype=torch.uint8)
    if whose == "official":
        side = _official(workload, device, views)
    else:
        side = _ours(workload, device, views, options)

    def step(batch: Any = side.ready) -> float:
        before = time.perf_counter()
        side.take(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - before

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            step()
        return counter.get_total_flops()

    def memory() -> int:
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def wait() -> float:
        batches = side.fed(ImageFolder.scan(photos))
        step(next(batches))
        began = time.perf_counter()
        busy = sum(step(next(batches)) for _ in range(FED_STEPS))
        return 1 - busy / (time.perf_counter() - began)

    return {"step": step, "flops": flops, "memory": memory, "wait": wait}


def _official(workload: Any, device: str, views: torch.Tensor) -> Side:
    """What ``main_moco.py`` does with a batch, which its loader has normalised."""
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    moco = new_official(
        lambda num_classes: build_encoder(workload.arch, num_classes), 128, workload.queue
    ).to(device)
    model = torch.nn.parallel.DistributedDataParallel(moco)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    ready = tuple(normalise(view, channels_last=False) for view in views)

    def take(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        im_q, im_k = batch
        logits, labels = model(im_q=im_q.to(device), im_k=im_k.to(device))
        loss = F.cross_entropy(logits, labels)
        right = logits.topk(5)[1] == labels[:, None]
        for figure in (loss, right[:, 0].float().mean(), right.float().sum(1).mean()):
            figure.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def on_device(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        with on_cpu() if device == "cpu" else nullcontext():
            take(batch)

    def fed(folder: ImageFolder) -> Iterator[Any]:
        views = Official(folder, "v2", workload.size)
        loader = DataLoader(views, workload.images, num_workers=1, pin_memory=device == "cuda")
        return (batch for batch, _ in loader)

    return Side(on_device, ready, fed)


def _ours(workload: Any, device: str, views: torch.Tensor, options: Options) -> Side:
    """What :mod:`pretrain.trainer` does with a batch, normalising included."""
    if device == "cpu":
        keep_freed_memory()
    cfg = default_cfg()
    cfg.MODEL.ARCH, cfg.MODEL.QUEUE_SIZE = workload.arch, workload.queue
    cfg.MODEL.BN_GROUP_SIZE = workload.images // options.groups
    cfg.VIEWS.CROP_SIZE = workload.size
    method = MoCoMethod(cfg)
    method.model.to(device).to(memory_format=torch.channels_last)
    set_computation(method.model, options.amp, options.compiled)
    trained = [p for p in method.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, fused=True, **SGD)
    step = Step(method, method.model, optimizer, torch.device(device), options.parts)
    ready = Batch(tuple(views), torch.zeros(workload.images), torch.arange(workload.images))

    def fed(folder: ImageFolder) -> Iterator[Batch]:
        dataset = ViewDataset(folder, view_recipe(cfg), 2, 0, None, cfg.DATA.PIPELINE)
        batches = EpochBatches(len(folder.files), workload.images, ENDLESS, 0)
        return iter(Loader(dataset, batches, 1, torch.device(device)))

    return Side(step, ready, fed)
