"""Evaluators that both engines share: Detectron2's numbers, computed in memory."""

from __future__ import annotations

from transfer.data.dataset import Dataset
from transfer.evaluation.coco import CocoEvaluator
from transfer.evaluation.evaluator import Evaluator
from transfer.evaluation.voc import VocEvaluator

__all__ = ["Evaluator", "build_evaluator"]


def build_evaluator(dataset: Dataset) -> Evaluator:
    """The evaluator that ``dataset.evaluator`` names, "voc" or "coco"."""
    return VocEvaluator(dataset) if dataset.evaluator == "voc" else CocoEvaluator(dataset)
