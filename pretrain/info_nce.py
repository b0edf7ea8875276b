"""The contrastive loss (MoCo, section 3.1, equation 1) as logits for a softmax cross-entropy."""

from __future__ import annotations

import torch


def info_nce_logits(
    q: torch.Tensor, k: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity of each query to its key and to all negatives.

    Args:
        q: queries, N x C, unit length.
        k: keys of the same images, N x C, unit length, without gradient.
        negatives: the dictionary, C x K, unit columns.
        temperature: τ.

    Returns:
        logits N x (1+K), the positive first, divided by τ; labels int64 N, all zero. The
        cross-entropy of the two is InfoNCE; chance level is ln(K+1).
    """
    positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
    negative = torch.einsum("nc,ck->nk", q, negatives)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return logits, torch.zeros(len(q), dtype=torch.long, device=q.device)
