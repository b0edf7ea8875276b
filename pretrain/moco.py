"""Momentum Contrast (He et al., CVPR 2020, algorithm 1)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.bn_groups import GroupedBatchNorm2d
from pretrain.dictionary import enqueue_, new_queue
from pretrain.encoder import add_mlp_head, build_encoder
from pretrain.info_nce import info_nce_logits
from pretrain.momentum import momentum_update_
from pretrain.shuffled_bn import encode_shuffled, permutation
from runtime.distributed import world_size


class MoCo(nn.Module):
    """A query encoder, a key encoder and a queue, with the official parameter names.

    State dict: ``encoder_q.*``, ``encoder_k.*``, ``queue`` (dim x K), ``queue_ptr`` (1).

    Args:
        arch: ResNet of :func:`pretrain.encoder.build_encoder`.
        dim: dimension C of the encoders' output.
        queue_size: K, number of negatives.
        momentum: m of the key encoder's update.
        temperature: τ of the softmax.
        mlp: MoCo v2's two-layer head.
        bn_group_size: images that share BN statistics; None for all images of a process, as in the
            official code with one group a GPU.
        seed: of the key permutations.
    """

    queue: torch.Tensor
    queue_ptr: torch.Tensor

    def __init__(
        self,
        arch: str = "resnet50",
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.07,
        mlp: bool = False,
        bn_group_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.temperature = temperature
        self.seed = seed
        self.step = 0  # training steps taken; the trainer sets it when a run is resumed
        norm = partial(GroupedBatchNorm2d, group_size=bn_group_size) if bn_group_size else None
        self.encoder_q = build_encoder(arch, dim, norm or nn.BatchNorm2d)
        self.encoder_k = build_encoder(arch, dim, norm or nn.BatchNorm2d)
        if mlp:
            add_mlp_head(self.encoder_q)
            add_mlp_head(self.encoder_k)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", new_queue(dim, queue_size))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, im_q: torch.Tensor, im_k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits N x (1+K) and labels (zeros, int64, N) of a batch of image pairs.

        ``im_q`` and ``im_k`` are two views of the same N images, N x 3 x H x W, normalised
        float32. In training the key encoder follows the query encoder and the keys of the global
        batch enter the queue after they have been used; in evaluation nothing changes.
        """
        q = F.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            if self.training:
                momentum_update_(self.encoder_k, self.encoder_q, self.momentum)
            order = permutation(self.seed, self.step, world_size() * len(im_k))
            k, all_keys = encode_shuffled(
                lambda x: F.normalize(self.encoder_k(x), dim=1), im_k, order
            )
        # clone: the queue changes below, before the backward pass reads it
        logits, labels = info_nce_logits(q, k, self.queue.clone(), self.temperature)
        if self.training:
            enqueue_(self.queue, self.queue_ptr, all_keys)
            self.step += 1
        return logits, labels
