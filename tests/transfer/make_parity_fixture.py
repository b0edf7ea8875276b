"""Record Detectron2's output for a few small recipes, for tests where it is absent.

Needs Detectron2: ``PYTHONPATH=.:DETECTRON2 python tests/transfer/make_parity_fixture.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from parity_models import batch, recipe, spread_weights

from runtime.files import write_text
from transfer.engines.detectron2 import dc5, heads  # noqa: F401  (registered with Detectron2)
from transfer.engines.detectron2.convert import from_instances, to_instances

NAMES = (
    "R18-C4-ExtraNorm-BN",
    "R18-FPN-BN-frozen-2",
    "R18-FPN-Keypoint",
    "R18-FPN-GN-4conv1fc-giou-agnostic",
    "R50-FPN-Mask-FrozenBN",
)


def record(name: str) -> dict[str, Any]:
    cfg = recipe(name, get_cfg())
    torch.manual_seed(0)
    model = build_model(cfg)
    sums = [tensor.double().abs().sum().item() for tensor in model.state_dict().values()]
    spread_weights(model)
    torch.manual_seed(1)
    with EventStorage():
        losses = model.train()([to_instances(sample) for sample in batch(cfg)])
    spread_weights(model)
    with torch.no_grad():
        images = [from_instances(r["instances"]) for r in model.eval()(batch(cfg))]
    return {
        "keys": list(model.state_dict()),
        "initial_sums": sums,
        "losses": {key: loss.item() for key, loss in losses.items()},
        "detections": [detections(image) for image in images],
    }


def detections(image: dict[str, torch.Tensor]) -> dict[str, Any]:
    found = {
        k: image[k].tolist() for k in ("boxes", "scores", "classes", "keypoints") if k in image
    }
    if "masks" in image:
        found["mask_areas"] = image["masks"].sum(dim=(1, 2)).tolist()
    return found


if __name__ == "__main__":
    target = Path(__file__).parent / "fixtures/detectron2_parity.json"
    write_text(target, json.dumps({name: record(name) for name in NAMES}) + "\n")
    print(f"wrote {target}, {target.stat().st_size} bytes")
