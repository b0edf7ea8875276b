"""Average precision of instance masks as Cityscapes defines it."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from runtime.errors import InputError
from transfer.data.cityscapes import cityscapes_labels, instance_file
from transfer.data.dataset import Dataset
from transfer.evaluation.evaluator import Detections, Metrics, checked


class CityscapesEvaluator:
    """The numbers of Detectron2's ``CityscapesInstanceEvaluator``: cityscapesscripts computes them.

    Each image is matched when it is processed, so no folder of masks of the whole set is needed.
    Besides AP and AP50 there is ``AP-<class>``; NaN means that the set has no such object.
    """

    metric = "Cityscapes mask AP, mean over IoU 0.50:0.95 (there is no AP75)"

    def __init__(self, dataset: Dataset) -> None:
        self._classes = dataset.classes
        self._label_ids = cityscapes_labels().instance_ids
        self._gt_dir = dataset.metadata["gt_dir"]
        self._script = _evaluation_script()
        self._args = copy.copy(self._script.args)  # a module's global otherwise
        self._script.setInstanceLabels(self._args)
        self._matches: dict[str, dict[str, Any]] = {}

    def process(self, batch: list[dict[str, Any]], detections: list[Detections]) -> None:
        """Match the masks of a batch; :class:`InputError` if the detector makes none."""
        found_of_each = checked(batch, detections, len(self._classes))
        for sample, (_, found) in zip(batch, found_of_each, strict=True):
            if "masks" not in found:
                raise InputError("Cityscapes scores masks: set MODEL.MASK_ON True")
            path = instance_file(str(sample["file_name"]), self._gt_dir)
            with tempfile.TemporaryDirectory(prefix="cityscapes_") as folder:
                self._matches[path] = self._match(path, _write(found, self._label_ids, folder))

    def _match(self, path: str, predictions: dict[str, Any]) -> dict[str, Any]:
        script = self._script
        with _numpy_as_then(script), Image.open(path) as image:
            every = next(iter(script.instances2dict([path]).values()))
            truth = script.filterGtInstances(every, self._args)
            truth, found = script.assignGt2Preds(truth, image, predictions, self._args)
        return {"groundTruth": truth, "prediction": found}

    def evaluate(self) -> Metrics:
        """AP, AP50 and ``AP-<class>`` in percent, of segm."""
        script = self._script
        with warnings.catch_warnings():  # the mean of a set without objects is NaN
            warnings.simplefilter("ignore", RuntimeWarning)
            precisions = script.evaluateMatches(self._matches, self._args)
            averages = script.computeAverages(precisions, self._args)
        scores = {"AP": averages["allAp"], "AP50": averages["allAp50%"]}
        scores |= {f"AP-{name}": averages["classes"][name]["ap"] for name in self._classes}
        return {"segm": {name: float(value) * 100 for name, value in scores.items()}}


def _evaluation_script() -> ModuleType:
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling

    return evalInstanceLevelSemanticLabeling


def _write(found: Detections, label_ids: tuple[int, ...], folder: str) -> dict[str, Any]:
    """Masks as PNG files; what the script reads from its text file: path -> label and score."""
    predictions = {}
    rows = zip(found["masks"].numpy(), found["classes"].tolist(), found["scores"], strict=True)
    for i, (mask, label, score) in enumerate(rows):
        path = os.path.join(folder, f"{i}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(path, compress_level=1)
        predictions[path] = {"labelID": label_ids[label], "conf": float(score)}
    return predictions


class _NumpyAsThen:
    """numpy with ``in1d``, which numpy 2.4 no longer has."""

    in1d = staticmethod(np.isin)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextlib.contextmanager
def _numpy_as_then(script: ModuleType) -> Iterator[None]:
    """For a while the script's own ``np`` is that of its time; numpy itself stays as it is."""
    script.np = _NumpyAsThen()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        script.np = np  # type: ignore[attr-defined]
