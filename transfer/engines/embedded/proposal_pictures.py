"""VIS_PERIOD: what the region proposal network finds while it learns, in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.utils import draw_bounding_boxes

from runtime.metrics import write_images
from transfer.engines.base import Batch
from transfer.view.draw import to_rgb

MAX_PROPOSALS = 20  # as Detectron2's GeneralizedRCNN.visualize_training
NAME = "Left: GT bounding boxes;  Right: Predicted proposals"  # Detectron2's


class ProposalPictures:
    """Every ``period`` iterations the first image of the batch: its objects, its best proposals.

    The proposals are those of the training step itself, so nothing is computed or drawn twice.
    """

    def __init__(self, model: nn.Module, period: int, channel_order: str, output: Path) -> None:
        self.period, self.channel_order, self.output = period, channel_order, output
        self._proposals: Tensor | None = None
        model.get_submodule("proposal_generator").register_forward_hook(self._keep)

    def _keep(self, rpn: nn.Module, _inputs: Any, outputs: tuple[list[Tensor], Any]) -> None:
        if rpn.training and self._proposals is None:  # of several parts of a batch, the first
            self._proposals = outputs[0][0][:MAX_PROPOSALS]

    def after(self, iteration: int, batch: Batch) -> None:
        """Write the picture of the step just made, if it is its turn."""
        proposals, self._proposals = self._proposals, None
        if iteration % self.period or proposals is None:
            return
        image = to_rgb(batch[0]["image"], self.channel_order)
        truth = batch[0]["targets"]["boxes"]
        pair = [
            draw_bounding_boxes(image, boxes.cpu(), colors="lime", width=2)
            for boxes in (truth, proposals)
        ]
        write_images(self.output, {NAME: torch.cat(pair, dim=2).numpy()}, iteration)
