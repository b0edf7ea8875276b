"""Every key of a recipe: its type and range, each tested by planting a wrong value."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from pretrain.checks import RULES, check_values, doubts
from pretrain.config import default_cfg, load_cfg
from runtime.config import leaves
from runtime.errors import InputError

FREE = {  # texts, looked up later
    *("MODEL.ARCH", "MODEL.INIT", "DATA.ROOT", "OUTPUT_DIR"),
    *("MONITOR.KNN_DATA", "MONITOR.RETRIEVAL_DATA"),
}
SWITCHES = {"MODEL.MLP", "MODEL.SHUFFLE_BN", "VIEWS.GRAYSCALE_FIRST", "SOLVER.COMPILE"}
NAN = float("nan")
WRONG = {
    "METHOD": ["byol"],
    "MODEL.DIM": [0],
    "MODEL.DICTIONARY": ["bank"],
    "MODEL.QUEUE_SIZE": [0, -5],
    "MODEL.MOMENTUM": [-0.1, 1.1, NAN],
    "MODEL.TEMPERATURE": [0.0, -1.0, NAN, float("inf")],
    "MODEL.BN_GROUP_SIZE": [1],
    "MODEL.RUNNING_STATS": ["last"],
    "DATA.PIPELINE": ["fastest"],
    "DATA.SHUFFLE_WINDOW": [-1],
    "DATA.NUM_WORKERS": [-2],
    "DATA.SHARD_CACHE": ["s3://bucket/cache"],
    "DATA.SHARD_CACHE_GIB": [0.0, -1.0, NAN, float("inf")],
    "DATA.MAX_UNREADABLE": [-0.1, 1.5, NAN],
    "VIEWS.CROP_SIZE": [0],
    "VIEWS.CROP_SCALE": [[0.0, 1.0], [0.5, 0.2], [0.2, 1.1], [0.2], [0.2, 0.5, 1.0], ["a", "b"]],
    "VIEWS.JITTER": [[0.4, 0.4, 0.4], [0.4, 0.4, 0.4, 0.6], [-0.1, 0, 0, 0], [True] * 4],
    "VIEWS.JITTER_PROB": [1.5, -0.5, NAN],
    "VIEWS.GRAYSCALE_PROB": [1.5, -0.5],
    "VIEWS.BLUR_PROB": [1.5, -0.5],
    "VIEWS.BLUR_SIGMA": [[2.0, 0.1], [0.0, 1.0], [0.1, NAN], [0.1, float("inf")], []],
    "VIEWS.FLIP_PROB": [1.5, -0.5],
    "SOLVER.BATCH_SIZE": [0],
    "SOLVER.ACCUMULATE": [0],
    "SOLVER.BASE_LR": [0.0, -0.1, NAN],
    "SOLVER.SCHEDULE": ["linear", ""],
    "SOLVER.MILESTONES": [[160, 120], [120, 120], [0], [1.5], ["x"], [True]],
    "SOLVER.DECAY_PERIOD": [0],
    "SOLVER.GAMMA": [0.0, 1.5, -0.1],
    "SOLVER.WARMUP_STEPS": [-1],
    "SOLVER.MOMENTUM": [1.0, -0.1],
    "SOLVER.WEIGHT_DECAY": [-1e-4, NAN],
    "SOLVER.EPOCHS": [0],
    "SOLVER.MAX_STEPS": [-1],
    "SOLVER.AMP": ["fp8", "float16"],
    "MONITOR.PERIOD": [0],
    "CHECKPOINT_PERIOD": [0],
    "CHECKPOINT_STEPS": [-1],
    "CHECKPOINT_KEEP": [1, -1],
    "CHECKPOINT_KEEP_PERIOD": [-1],
    "LOG_PERIOD": [0],
    "SEED": [-1, 2**63],
    "DEVICE": ["gpu", "cuda:1"],
}


def recipe(tmp_path: Path, key: str, value: object) -> Path:
    for name in reversed(key.split(".")):
        value = {name: value}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def test_every_key_has_a_rule_and_a_planted_error() -> None:
    """Whoever adds a key says in pretrain/checks.py what it may be, and here what it may not."""
    keys = {key for key, _ in leaves(default_cfg())}
    assert set(RULES) == keys
    assert set(WRONG) == keys - FREE - SWITCHES


PRETRAINING = sorted(
    p for kind in ("moco", "sup", "ablation") for p in (ROOT / "configs").glob(f"{kind}*")
)


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda p: p.stem)
def test_shipped_recipes_keep_the_rules(path: Path) -> None:
    cfg = load_cfg(path, [])
    check_values(cfg)
    assert list(doubts(cfg, 1000)) == []


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_values_out_of_range_are_refused(tmp_path: Path, key: str, value: object) -> None:
    cfg = load_cfg(recipe(tmp_path, key, value), [])
    with pytest.raises(InputError) as caught:
        check_values(cfg)
    assert str(caught.value).startswith(f"{key} {value!r} must ")
    assert "\n" not in str(caught.value)


WRONG_KIND = {bool: [1, "yes"], int: [1.5, "many", True], float: ["fast", True, [0.1]]}
WRONG_KIND |= {str: [3, True, ["a"]], list: [3, "wide", {"low": 0.1}]}


@pytest.mark.parametrize(("key", "default"), list(leaves(default_cfg())))
def test_values_of_another_kind_are_refused(tmp_path: Path, key: str, default: object) -> None:
    for value in WRONG_KIND[type(default)]:
        path = recipe(tmp_path, key, value)
        with pytest.raises(InputError) as caught:
            load_cfg(path, [])
        assert str(caught.value).startswith(f"{path}: ")
        assert key in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "default"), list(leaves(default_cfg())))
def test_a_slip_in_any_name_finds_the_key(tmp_path: Path, key: str, default: object) -> None:
    swapped = key[:-2] + key[-1] + key[-2]
    section, _, name = key.rpartition(".")
    elsewhere = f"SOLVERS.{name}"
    for slip in (swapped, key.lower(), elsewhere, *([name] if section else [])):
        if slip == key:
            continue
        with pytest.raises(InputError, match=f"unknown key '{slip}'; did you mean .*{name}"):
            load_cfg(recipe(tmp_path, slip, default), [])
        with pytest.raises(InputError, match=f"override: unknown key '{slip}'; did you mean"):
            load_cfg(ROOT / "configs" / "moco_v1_R50_200ep.yaml", [slip, str(default)])


def test_numbers_may_be_written_in_any_way(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("SOLVER: {BASE_LR: 1, WEIGHT_DECAY: 1e-4, MILESTONES: [3, 5]}\nSEED: 7\n")
    cfg = load_cfg(path, ["SOLVER.GAMMA", "1", "VIEWS.CROP_SCALE", "0.5,1"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.GAMMA) == (1.0, 1e-4, 1.0)
    assert cfg.VIEWS.CROP_SCALE == [0.5, 1]
    check_values(cfg)


def test_the_home_may_be_written_as_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/she")
    cfg = load_cfg(str(recipe(tmp_path, "OUTPUT_DIR", "~/run")), ["DATA.ROOT", "~/photos"])
    assert (cfg.OUTPUT_DIR, cfg.DATA.ROOT) == ("/home/she/run", "/home/she/photos")


def test_texts_may_look_like_numbers() -> None:
    cfg = load_cfg(
        ROOT / "configs" / "moco_v1_R50_200ep.yaml", ["DATA.ROOT", "2024", "OUTPUT_DIR", "None"]
    )
    assert (cfg.DATA.ROOT, cfg.OUTPUT_DIR) == ("2024", "None")


def told(*overrides: str) -> list[str]:
    """What is doubted of MoCo v1 with overrides, ten steps an epoch."""
    path = ROOT / "configs" / "moco_v1_R50_200ep.yaml"
    return list(doubts(load_cfg(path, overrides), 10))


def test_what_never_comes_is_named() -> None:
    assert told("SOLVER.EPOCHS", "120") == [
        "SOLVER.MILESTONES 120, 160 never come in SOLVER.EPOCHS 120: fine for a trial"
    ]
    assert told("SOLVER.EPOCHS", "9", "SOLVER.SCHEDULE", "cosine") == []
    assert told("SOLVER.MAX_STEPS", "150", "SOLVER.EPOCHS", "9") == [
        "SOLVER.MILESTONES 160 never come in SOLVER.MAX_STEPS 150: fine for a trial"
    ]
    assert told("SOLVER.SCHEDULE", "exponential", "SOLVER.DECAY_PERIOD", "200") == [
        "the rate never decays: SOLVER.DECAY_PERIOD 200 in SOLVER.EPOCHS 200"
    ]
    assert told("SOLVER.WARMUP_STEPS", "1001") == [
        "SOLVER.WARMUP_STEPS 1001 are most of the run's 2000 steps"
    ]
    assert told("SOLVER.WARMUP_STEPS", "1000") == []


@pytest.mark.parametrize("text", ["SOLVER: {}\n", "SOLVER:\n", "SOLVER: 3\n"])
def test_a_section_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="SOLVER is a section; set one of BATCH_SIZE, ACCUMULATE"):
        load_cfg(path, [])
    path.write_text("SOLVR: {}\n")
    with pytest.raises(InputError, match="unknown key 'SOLVR'"):
        load_cfg(path, [])


def test_split_on_a_cpu_is_doubted() -> None:
    cpu = ("SOLVER.EPOCHS", "200", "DEVICE", "cpu")
    (line,) = told(*cpu, "DATA.PIPELINE", "split")
    assert "split where no GPU trains" in line
    assert told(*cpu, "DATA.PIPELINE", "fast") == []
