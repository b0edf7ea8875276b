"""Evaluators that both engines share: Detectron2's numbers, computed in memory."""

from __future__ import annotations

from collections.abc import Sequence

from transfer.data.dataset import Dataset
from transfer.evaluation.cityscapes import CityscapesEvaluator
from transfer.evaluation.coco import CocoEvaluator
from transfer.evaluation.evaluator import Evaluator
from transfer.evaluation.keypoints import KeypointEvaluator
from transfer.evaluation.lvis import LvisEvaluator
from transfer.evaluation.voc import VocEvaluator

__all__ = ["Evaluator", "build_evaluator"]


def build_evaluator(
    dataset: Dataset, voc_metric: str = "auto", oks_sigmas: Sequence[float] = ()
) -> Evaluator:
    """The evaluator that ``dataset.evaluator`` names: "voc", "coco", "lvis" or "cityscapes".

    ``voc_metric`` is how VOC's AP is computed, see :class:`VocEvaluator`; ``oks_sigmas`` is
    TEST.KEYPOINT_OKS_SIGMAS, see :class:`KeypointEvaluator`.
    """
    if dataset.evaluator == "voc":
        return VocEvaluator(dataset, voc_metric)
    if dataset.evaluator == "lvis":
        return LvisEvaluator(dataset)
    if dataset.evaluator == "cityscapes":
        return CityscapesEvaluator(dataset)
    if "keypoints" in dataset.metadata:
        return KeypointEvaluator(dataset, oks_sigmas)
    return CocoEvaluator(dataset)
