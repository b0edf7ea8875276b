"""The three dictionaries of the MoCo paper (figure 2) under one interface, :class:`Method`.

They differ in where the keys come from: a queue of a slow encoder's keys, a memory bank, or the
batch itself.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode

from pretrain.end_to_end import EndToEndMethod
from pretrain.memory_bank import MemoryBankMethod
from pretrain.methods import Method, MoCoMethod

DICTIONARIES = ("queue", "memory_bank", "end_to_end")


def contrastive_method(cfg: CfgNode, num_images: int) -> Method:
    """Instance discrimination with the dictionary of MODEL.DICTIONARY."""
    if cfg.MODEL.DICTIONARY == "memory_bank":
        return MemoryBankMethod(cfg, num_images)
    if cfg.MODEL.DICTIONARY == "end_to_end":
        return EndToEndMethod(cfg)
    return MoCoMethod(cfg)
