"""Momentum Contrast (He et al., CVPR 2020, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.bn_groups import grouped_norm
from pretrain.dictionary import enqueue_, new_queue
from pretrain.encoder import add_mlp_head, build_encoder
from pretrain.info_nce import info_nce_logits
from pretrain.momentum import momentum_update_
from pretrain.shuffled_bn import encode_shuffled, permutation
from runtime.distributed import world_size


class MoCo(nn.Module):
    """A query encoder, a key encoder and a queue, with the official parameter names.

    A training step is :meth:`encode_keys`, then ``forward`` and the backward pass (once or in
    several parts of the batch), then :meth:`end_step`.

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
        running_stats: of BN groups, "mean" or "first" (:class:`GroupedBatchNorm2d`).
        shuffle: whether keys are encoded in other BN groups than their queries.
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
        running_stats: str = "mean",
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.temperature = temperature
        self.shuffle = shuffle
        self.seed = seed
        self.observer: Callable[[torch.Tensor, torch.Tensor], None] | None = None  # of q and k
        self.step = 0  # training steps taken; the trainer sets it when a run is resumed
        norm = grouped_norm(bn_group_size, running_stats)
        self.encoder_q = build_encoder(arch, dim, norm)
        self.encoder_k = build_encoder(arch, dim, norm)
        if mlp:
            add_mlp_head(self.encoder_q)
            add_mlp_head(self.encoder_k)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", new_queue(dim, queue_size))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def encode_keys(
        self,
        images: torch.Tensor,
        parts: int = 1,
        prepare: Callable[[torch.Tensor], torch.Tensor] = lambda images: images,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Begin a step: move the key encoder towards the query encoder, then encode all keys.

        ``images`` are this rank's N key views; they are exchanged between the ranks as they are,
        and turned into the encoder's input (normalised, N x 3 x H x W) by ``prepare``. Encoded in
        ``parts``. Returns the unit keys of these images, N x C, and of the global batch, W·N x C.
        """
        momentum_update_(self.encoder_k, self.encoder_q, self.momentum)
        size = world_size() * len(images)
        order = permutation(self.seed, self.step, size) if self.shuffle else torch.arange(size)
        return encode_shuffled(
            lambda x: F.normalize(self.encoder_k(prepare(x)), dim=1), images, order, parts
        )

    def forward(self, im_q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits N x (1+K) and labels (zeros, int64, N) of queries and their keys.

        ``im_q`` are normalised images N x 3 x H x W, ``k`` the keys of the same images N x C.
        """
        q = F.normalize(self.encoder_q(im_q), dim=1)
        if self.observer is not None:
            self.observer(q, k)
        return info_nce_logits(q, k, self.queue, self.temperature)

    def end_step(self, all_keys: torch.Tensor) -> None:
        """End a step: the keys of the global batch, W·N x C, enter the queue.

        After the backward pass, which still reads the queue: so the queue is never copied.
        """
        enqueue_(self.queue, self.queue_ptr, all_keys)
        self.step += 1
