"""The embedded engine: our model code and a loop that follows Detectron2's step by step."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from runtime.memory import keep_freed_memory
from transfer.engines.base import Batch, Detections, Predictor, Training, evaluating
from transfer.engines.embedded.rcnn import build_model
from transfer.engines.embedded.training import train
from transfer.engines.sync_bn import synchronise_on_cpu
from transfer.recipe.defaults import default_cfg
from transfer.recipe.load import check_honoured


class EmbeddedEngine:
    """Runs wherever torch and torchvision do."""

    name = "embedded"

    def base_cfg(self) -> CfgNode:
        """The table of the keys that the embedded engine honours."""
        return default_cfg()

    def check(self, cfg: CfgNode) -> None:
        """Refuse a key that is not honoured."""
        check_honoured(cfg)

    def versions(self) -> dict[str, str]:
        """Nothing beyond torch and torchvision."""
        return {}

    def build_model(self, cfg: CfgNode) -> nn.Module:
        """Our detector, its SyncBN made to work on CPUs."""
        if cfg.MODEL.DEVICE == "cpu":
            keep_freed_memory()
        return synchronise_on_cpu(build_model(cfg))

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The model itself."""
        return model(batch)

    def predictor(self, model: nn.Module) -> Predictor:
        """The model itself: samples and detections are its own forms."""

        def predict(batch: Batch) -> Detections:
            with evaluating(model):
                return model(batch)

        return predict

    def train(self, training: Training) -> None:
        """Detectron2's default training loop."""
        model = self.build_model(training.cfg)
        train(training, model, self.predictor(model))
