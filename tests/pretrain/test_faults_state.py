"""The state list of a checkpoint: whatever is missing is refused with one line."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from fault_runs import RECIPE

from pretrain import checkpoint
from pretrain.config import load_cfg
from pretrain.methods import MoCoMethod
from pretrain.trainer import pretrain
from runtime.errors import InputError
from runtime.versions import versions

Place = tuple[Any, ...]


def recipe(images: Path, output: Path) -> Any:
    keys = [*RECIPE, "MODEL.QUEUE_SIZE", "16", "SOLVER.EPOCHS", "1"]
    keys += ["DATA.ROOT", str(images), "OUTPUT_DIR", str(output)]
    return load_cfg(str(ROOT / "configs/moco_v2_R50_200ep.yaml"), keys)


def restore(state: Any, cfg: Any) -> int:
    """Into a new model, as a resumed run does it."""
    model = MoCoMethod(cfg).model
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(named, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True)
    fingerprint = state.get("data", "") if isinstance(state, dict) else ""
    return checkpoint.restore(Path("run/a.pth"), state, cfg, model, optimizer, fingerprint)


def places(state: dict[str, Any], outer: Place = ()) -> Iterator[Place]:
    """Every entry of nested dictionaries and of lists of dictionaries."""
    for key, value in state.items():
        yield (*outer, key)
        if isinstance(value, dict):
            yield from places(value, (*outer, key))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from places(value[0], (*outer, key, 0))


def without(state: dict[str, Any], place: Place) -> dict[str, Any]:
    changed = copy.deepcopy(state)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return changed


def test_every_entry_is_needed(image_folder: Path, tmp_path: Path) -> None:
    """Of the versions and of what tells about the images, the whole is."""
    cfg = recipe(image_folder, tmp_path / "run")
    state = torch.load(pretrain(cfg), weights_only=True)
    assert restore(state, cfg) == 3
    dropped, unnoticed = 0, []
    for place in places(state):
        if len(place) > 1 and place[0] in ("versions", "seen_images"):
            continue
        dropped += 1
        with contextlib.suppress(InputError):
            restore(without(state, place), cfg)
            unnoticed.append(place)
    assert unnoticed == []
    assert dropped > 300
    for wrong in (None, [], {}, {"model": 1}):
        with pytest.raises(InputError, match="not a checkpoint to resume from"):
            restore(wrong, cfg)


def test_every_key_of_the_recipe_counts(image_folder: Path, tmp_path: Path) -> None:
    """A key that is gone counts as its default, so those that differ from it are missed."""
    cfg = recipe(image_folder, tmp_path / "run")
    state = torch.load(pretrain(cfg), weights_only=True)
    saved = yaml.safe_load(state["config"])
    for section, key in (("MODEL", "ARCH"), ("SOLVER", "EPOCHS"), ("VIEWS", "CROP_SIZE")):
        changed = copy.deepcopy(saved)
        del changed[section][key]
        with pytest.raises(InputError, match=rf"{section}\.{key} is .*, but .* was begun with"):
            restore(state | {"config": yaml.safe_dump(changed)}, cfg)


def test_other_versions_are_named(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = recipe(image_folder, tmp_path / "run")
    state = torch.load(pretrain(cfg), weights_only=True)
    logging.getLogger().addHandler(caplog.handler)
    restore(state, cfg)
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]
    for name in ("torch", "torchvision", "numpy", "Pillow", "moco-transfer"):
        caplog.clear()
        other = state["versions"] | {name: "0.1.2"}
        restore(state | {"versions": other}, cfg)
        here = versions()[name]
        assert caplog.messages == [
            f"a.pth was written with {name} 0.1.2, this is {here}: numbers may differ in the last "
            "digits"
        ]
