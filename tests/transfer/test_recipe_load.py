"""Recipe plus overrides to a configuration: types, unknown keys, what the engine can honour."""

from __future__ import annotations

from pathlib import Path

import pytest
from fvcore.common.config import CfgNode

from runtime.config import dump
from runtime.errors import InputError
from transfer.recipe.defaults import HONOURED, KNOWN, default_cfg
from transfer.recipe.load import check_honoured, leaves, load_cfg

SHIPPED = sorted((Path(__file__).parents[2] / "transfer").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_suit_the_embedded_engine(path: Path) -> None:
    check_honoured(load_cfg(path, [], default_cfg()))


def load(tmp_path: Path, text: str, *overrides: str) -> CfgNode:
    path = tmp_path / "recipe.yaml"
    path.write_text(text or "{}")
    return load_cfg(path, overrides, default_cfg())


def test_recipe_then_overrides_with_detectron2_types(tmp_path: Path) -> None:
    text = "SOLVER: {BASE_LR: 1e-3, MAX_ITER: 10}\nDATASETS: {TRAIN: \"('a', 'b')\"}\n"
    cfg = load(tmp_path, text, "SOLVER.MAX_ITER", "20", "INPUT.MIN_SIZE_TRAIN", "(480, 512)")
    assert cfg.SOLVER.BASE_LR == 1e-3  # YAML 1.1 reads 1e-3 as text
    assert cfg.SOLVER.MAX_ITER == 20
    assert cfg.DATASETS.TRAIN == ("a", "b")
    assert cfg.INPUT.MIN_SIZE_TRAIN == (480, 512)
    assert default_cfg().SOLVER.MAX_ITER == 40000


def test_lists_become_tuples_where_the_default_is_one(tmp_path: Path) -> None:
    assert load(tmp_path, "SOLVER: {STEPS: [1, 2]}").SOLVER.STEPS == (1, 2)


def test_the_base_is_not_changed_and_may_be_frozen(tmp_path: Path) -> None:
    base = default_cfg()
    base.freeze()
    path = tmp_path / "recipe.yaml"
    path.write_text("SEED: 3\n")
    assert load_cfg(path, [], base).SEED == 3
    assert base.SEED == -1


@pytest.mark.parametrize(
    ("text", "overrides", "reason"),
    [
        ("SOLVER: {BASE_LRR: 0.1}", (), r"SOLVER\.BASE_LRR.*did you mean SOLVER\.BASE_LR\?"),
        ("SOLVER: {NMS_THRESH: 0.1}", (), r"did you mean MODEL\.RPN\.NMS_THRESH\?"),
        ("SOLVER: {MAX_ITER: ten}", (), r"SOLVER\.MAX_ITER must be of the kind int, like 40000"),
        ("SOLVER: {MAX_ITER: null}", (), r"SOLVER\.MAX_ITER must be of the kind int"),
        ("SOLVER: 3", (), "SOLVER is a section"),
        ("SOLVER: {MAX_ITER: {a: 1}}", (), r"unknown key 'SOLVER\.MAX_ITER\.a'"),
        ("VERSION: 1", (), "VERSION is 1"),
        ("", ("SEED",), "pairs KEY VALUE, but 'SEED' has no value"),
        ("", ("SEED", "1", "SEEED", "2"), "override: unknown key 'SEEED'; did you mean SEED?"),
        ("", ("SEED", "x" * 10_001), "more than 10000 characters"),
        ("", ("SEED", "(" * 9000), "SEED must be of the kind int"),
        ("", ("SEED", "-" * 9000 + "1"), "SEED must be of the kind int"),
        ("", ("SEED", "{[]: 1}"), "SEED must be of the kind int"),
        ("MODEL: {LOAD_PROPOSALS: true}", (), r"MODEL\.LOAD_PROPOSALS is True.*detectron2 engine"),
        ("", ("INPUT.CROP.ENABLED", "True"), r"INPUT\.CROP\.ENABLED is True.*detectron2 engine"),
    ],
)
def test_refusals(tmp_path: Path, text: str, overrides: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        load(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_key_that_is_not_honoured_may_state_its_default(tmp_path: Path) -> None:
    cfg = load(tmp_path, "INPUT: {CROP: {ENABLED: false, SIZE: [0.9, 0.9]}}")
    assert "CROP" not in cfg.INPUT
    check_honoured(cfg)


def test_the_two_tables_do_not_overlap() -> None:
    assert not set(dict(leaves(HONOURED))) & set(dict(leaves(KNOWN)))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("MODEL.META_ARCHITECTURE", "RetinaNet", r"'RetinaNet' is not built into.*detectron2"),
        ("MODEL.RESNETS.NORM", "IN", "'IN' is not built into"),
        ("MODEL.RESNETS.DEPTH", "26", "DEPTH 26"),
        ("MODEL.RESNETS.DEPTH", "18", r"RES2_OUT_CHANNELS equal to STEM_OUT_CHANNELS, got 256"),
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "set it to FastRCNNConvFCHead"),
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "'CascadeROIHeads' is not built into"),
        ("MODEL.KEYPOINT_ON", "True", "KEYPOINT_ON needs StandardROIHeads"),
        ("MODEL.PIXEL_STD", "[1.0]", "one number a channel"),
    ],
)
def test_values_that_the_engine_lacks(tmp_path: Path, key: str, value: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_honoured(load(tmp_path, "", key, value))


def test_keys_of_other_projects_are_refused_by_the_embedded_engine() -> None:
    cfg = default_cfg()
    check_honoured(cfg)
    cfg.MODEL.MY_KEY = 1
    with pytest.raises(InputError, match=r"MODEL\.MY_KEY is unknown to the embedded engine"):
        check_honoured(cfg)


def test_a_dumped_configuration_is_a_recipe(tmp_path: Path) -> None:
    cfg = default_cfg()
    cfg.SOLVER.STEPS = cfg.INPUT.MIN_SIZE_TRAIN = (7, 8)  # one object twice: YAML would alias it
    (tmp_path / "config.yaml").write_text(dump(cfg))
    assert load_cfg(tmp_path / "config.yaml", (), default_cfg()) == cfg


def test_a_config_that_detectron2_wrote_states_tuples_as_lists(tmp_path):
    weights = "[[10, 10, 5, 5], [20, 20, 10, 10], [30, 30, 15, 15]]"
    path = tmp_path / "config.yaml"
    path.write_text(f"MODEL:\n  ROI_BOX_CASCADE_HEAD:\n    BBOX_REG_WEIGHTS: {weights}\n")
    check_honoured(load_cfg(path, [], default_cfg()))
    path.write_text(path.read_text().replace("15, 15", "15, 16"))
    with pytest.raises(InputError, match=r"BBOX_REG_WEIGHTS is"):
        load_cfg(path, [], default_cfg())
