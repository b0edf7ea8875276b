"""The embedded engine against Detectron2: the same bits, on the CPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_model as build_reference
from detectron2.utils.events import EventStorage
from fvcore.common.config import CfgNode
from parity_models import RECIPES, batch, recipe, spread_weights
from parity_page import PAGE

from transfer.engines.detectron2 import dc5, heads  # noqa: F401  (registered with Detectron2)
from transfer.engines.detectron2.convert import from_instances, to_instances
from transfer.engines.embedded import build_model
from transfer.recipe.defaults import default_cfg

pytestmark = pytest.mark.detectron2


STEPS = 20  # of SGD


class Pair(NamedTuple):
    name: str
    cfg: CfgNode
    ours: nn.Module
    reference: nn.Module
    rng_ours: Tensor
    rng_reference: Tensor


@pytest.fixture(scope="module", params=RECIPES)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Both engines' models of one recipe, built from one seed, and the random states after."""
    cfg = recipe(request.param, default_cfg())
    torch.manual_seed(3)
    ours = build_model(cfg)
    rng_ours = torch.get_rng_state()
    torch.manual_seed(3)
    reference = build_reference(recipe(request.param, get_cfg()))
    return Pair(request.param, cfg, ours, reference, rng_ours, torch.get_rng_state())


def difference(name: str, what: str, ours: Any, reference: Any) -> float:
    """The largest difference; it goes to docs/parity.md."""
    return PAGE.note("Models", name, what, ours, reference)


def test_construction(pair: Pair) -> None:
    states = (dict(model.state_dict()) for model in (pair.ours, pair.reference))
    assert difference(pair.name, "initial weights", *states) == 0
    assert difference(pair.name, "random state", pair.rng_ours, pair.rng_reference) == 0
    trainable = [
        [name for name, p in model.named_parameters() if p.requires_grad]
        for model in (pair.ours, pair.reference)
    ]
    assert trainable[0] == trainable[1]


def test_detections(pair: Pair) -> None:
    spread_weights(pair.ours)
    pair.reference.load_state_dict(pair.ours.state_dict())
    ours, reference = pair.ours.eval(), pair.reference.eval()
    samples = batch(pair.cfg)
    with torch.no_grad():
        found = ours(samples)
        expected = [from_instances(r["instances"]) for r in reference(samples)]
    for image, same in zip(found, expected, strict=True):
        assert len(image["scores"]) > 10
        assert difference(pair.name, "detections", image, same) == 0
        if "masks" in image:  # else equal masks would say nothing
            assert image["masks"].flatten(1).any(dim=1).float().mean() > 0.5


def test_training(pair: Pair) -> None:
    """Some steps, one with an image without objects: losses, gradients, weights, statistics."""
    spread_weights(pair.ours)
    pair.reference.load_state_dict(pair.ours.state_dict())
    models = (pair.ours.train(), pair.reference.train())
    optimizers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
        for m in models
    ]
    for step in range(STEPS):
        samples = batch(pair.cfg, seed=step, empty=1 if step == 1 else None)
        losses = one_step(pair.ours, samples, step, optimizers[0])
        rng = torch.get_rng_state()
        with EventStorage():
            inputs = [to_instances(sample) for sample in samples]
            expected = one_step(pair.reference, inputs, step, optimizers[1])
        assert torch.equal(rng, torch.get_rng_state())
        assert difference(pair.name, "losses", losses, expected) == 0
        grads = [{n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in models]
        assert grads[0]
        assert difference(pair.name, "gradients", *grads) == 0
    states = (dict(model.state_dict()) for model in models)
    assert difference(pair.name, f"weights after {STEPS} steps", *states) == 0


@pytest.mark.parametrize("name", ["R18-FPN-GN-4conv1fc-giou-agnostic"])
def test_mixed_precision(name: str) -> None:
    """Under bfloat16 autocast boxes stay float32 and every loss and gradient is the same."""
    cfg = recipe(name, default_cfg())
    models = (build_model(cfg).train(), build_reference(recipe(name, get_cfg())).train())
    spread_weights(models[0])
    models[1].load_state_dict(models[0].state_dict())
    samples = batch(cfg)
    inputs = (samples, [to_instances(sample) for sample in samples])
    results = []
    for model, given in zip(models, inputs, strict=True):
        torch.manual_seed(0)
        with EventStorage(), torch.autocast("cpu", torch.bfloat16):
            losses = model(given)
        sum(losses.values()).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append({**losses, **grads})
    assert difference(f"{name}, bfloat16", "losses and gradients", *results) == 0


def one_step(
    model: nn.Module, inputs: list[dict[str, Any]], seed: int, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    losses: dict[str, Tensor] = model(inputs)
    optimizer.zero_grad()
    sum(losses.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}
