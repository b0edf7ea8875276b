"""``out.yaml``: what a plain Detectron2 program needs, and nobody's file overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from layouts import caffe2, detectron2, moco
from networks import backbone, resnext, write

from convert.to_detectron2 import convert, convert_file
from runtime.errors import InputError
from runtime.yaml_file import read_recipe


def test_yaml_beside(tmp_path: Path) -> None:
    file = write(moco(backbone(1), backbone(2)), tmp_path / "moco.pth")
    convert_file(file, tmp_path / "moco.pkl")
    recipe = read_recipe(tmp_path / "moco.yaml")
    assert recipe["MODEL"]["WEIGHTS"] == str(tmp_path / "moco.pkl")
    assert recipe["MODEL"]["BACKBONE"]["FREEZE_AT"] == 0
    assert recipe["MODEL"]["RESNETS"]["NORM"] == recipe["MODEL"]["FPN"]["NORM"] == "SyncBN"
    assert recipe["TEST"]["PRECISE_BN"]["ENABLED"] is True
    assert recipe["INPUT"]["FORMAT"] == "RGB"
    assert recipe["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is False
    convert_file(file, tmp_path / "moco.pkl")  # its own file may be replaced, another's not
    (tmp_path / "moco.yaml").write_text("SOLVER: {BASE_LR: 0.1}\n")
    (tmp_path / "moco.pkl").unlink()
    with pytest.raises(InputError, match=r"moco\.yaml would be overwritten"):
        convert_file(file, tmp_path / "moco.pkl")
    assert not (tmp_path / "moco.pkl").exists()


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    own = convert_file(write(backbone(1), tmp_path / "a.pth"), tmp_path / "own.pkl")
    foreign = write({"model": detectron2(backbone(1)), "__author__": "MOCO"}, tmp_path / "d2.pkl")
    (tmp_path / "folder.pkl").mkdir()
    (tmp_path / "b.yaml").mkdir()
    (tmp_path / "link.pkl").symlink_to("own.pkl")
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    for source, target, message in (
        ("own.pkl", "own.pkl", "own.pkl would be overwritten: name another"),
        ("own.pkl", "link.pkl", "own.pkl would be overwritten: name another"),
        ("d2.pkl", "d2.pkl", "d2.pkl would be overwritten"),
        ("a.pth", "d2.pkl", "d2.pkl would be overwritten, and no .yaml of this tool"),  # *.pkl
        ("a.pth", "folder.pkl", "folder.pkl' is a folder"),
        ("a.pth", "b.pkl", "b.yaml would be overwritten"),
    ):
        with pytest.raises(InputError, match=message):
            convert_file(tmp_path / source, tmp_path / target)
    with pytest.raises(InputError, match=r"cannot write '/proc/x.pkl'"):
        convert_file(tmp_path / "a.pth", "/proc/x.pkl")
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
    again = convert_file(foreign, tmp_path / "own.pkl")
    assert again.format.name != own.format.name


def test_yaml_of_folded_bn_freezes_it(tmp_path: Path) -> None:
    convert_file(write(caffe2(resnext(1), True), tmp_path / "r.pkl"), tmp_path / "out.pkl")
    recipe = read_recipe(tmp_path / "out.yaml")
    assert recipe["MODEL"]["RESNETS"]["NORM"] == "FrozenBN"
    assert "BACKBONE" not in recipe["MODEL"]
    assert recipe["INPUT"]["FORMAT"] == "BGR"


@pytest.mark.detectron2
@pytest.mark.parametrize("folded", [None, False, True])
def test_detectron2_reads_the_yaml(tmp_path: Path, folded: bool | None) -> None:
    """As a plain program of Detectron2 does, with its own backbone and checkpointer."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    content = moco(resnext(2, 32), resnext(2, 32)) if folded is None else caffe2(resnext(2), folded)
    file = write(content, tmp_path / ("x.pth" if folded is None else "x.pkl"))
    convert_file(file, tmp_path / "out.pkl")
    (tmp_path / "recipe.yaml").write_text("_BASE_: out.yaml\nSOLVER: {BASE_LR: 0.5}\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "recipe.yaml"))
    assert cfg.MODEL.RESNETS.NUM_GROUPS == 2
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    if folded is not True:
        cfg.MODEL.RESNETS.NORM = "BN"  # SyncBN needs a process group
    model = build_backbone(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    loaded = model.state_dict()
    for name, value in convert(file).backbone.arrays.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(loaded[name], torch.from_numpy(value)), name
