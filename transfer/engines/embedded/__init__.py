"""Our own detector, equal to Detectron2's bit for bit on the CPU."""

from transfer.engines.embedded.rcnn import build_model

__all__ = ["build_model"]
