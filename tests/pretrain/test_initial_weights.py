"""MODEL.INIT: what is loaded, what is new, what is refused; and a run that starts from it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import ROOT, trained, write_images

from pretrain.config import load_cfg
from pretrain.encoder import build_encoder
from pretrain.initial_weights import load_initial_weights
from pretrain.moco import MoCo
from pretrain.trainer import pretrain
from runtime.errors import InputError

ARCH = "resnet18w0.125x"


def published(path: Path, **options: object) -> dict:
    """An official MoCo checkpoint in which no two tensors are equal."""
    torch.manual_seed(5)
    moco = MoCo(ARCH, 8, 16, **options)  # type: ignore[arg-type]
    state = {f"module.{name}": value for name, value in trained(moco.state_dict()).items()}
    content = {"epoch": 200, "arch": ARCH, "state_dict": state, "optimizer": {}}
    torch.save(content, path)
    return state


def equal_parts(model: MoCo, encoder: str, state: dict, prefix: str) -> set[str]:
    """``backbone`` and ``fc`` where all tensors of ``encoder`` are those of the file's prefix."""
    found = set()
    for part in ("backbone", "fc"):
        own = {
            name: value
            for name, value in getattr(model, encoder).state_dict().items()
            if name.startswith("fc.") == (part == "fc")
        }
        if all(torch.equal(v, state.get(f"{prefix}{n}", torch.zeros(0))) for n, v in own.items()):
            found.add(part)
    return found


def test_both_encoders_of_a_moco_checkpoint_are_taken_and_the_queue_is_new(tmp_path: Path) -> None:
    state = published(tmp_path / "moco.pth.tar")
    model = MoCo(ARCH, 8, 16)
    queue = model.queue.clone()
    said = load_initial_weights(model, ARCH, str(tmp_path / "moco.pth.tar"))
    assert equal_parts(model, "encoder_q", state, "module.encoder_q.") == {"backbone", "fc"}
    assert equal_parts(model, "encoder_k", state, "module.encoder_k.") == {"backbone", "fc"}
    assert torch.equal(model.queue, queue)
    assert not any(p.requires_grad for p in model.encoder_k.parameters())
    assert [line.split(": ", 1)[1] for line in said] == [
        f"{ARCH}, all 120 backbone tensors loaded",
        "loaded, 2 tensors",
        "the file's encoder_k",
        "new",
    ]
    assert "(official MoCo, query)" in said[0]


def test_another_head_is_new_and_said_so(tmp_path: Path) -> None:
    state = published(tmp_path / "v1.pth")
    for options, reason in (
        ({"mlp": True}, "the file has fc.weight, fc.bias, this model fc.0.weight"),
        ({"dim": 4}, "fc.weight is (8, 64) there, (4, 64) here"),
    ):
        model = MoCo(ARCH, **{"dim": 8, "queue_size": 16} | options)  # type: ignore[arg-type]
        head = copy.deepcopy(model.encoder_q.fc)
        said = load_initial_weights(model, ARCH, str(tmp_path / "v1.pth"))
        assert reason in said[1]
        assert "its head a copy of the query encoder's" in said[2]
        assert equal_parts(model, "encoder_q", state, "module.encoder_q.") == {"backbone"}
        assert equal_parts(model, "encoder_k", state, "module.encoder_k.") == {"backbone"}
        for encoder in (model.encoder_q, model.encoder_k):
            for name, value in encoder.fc.state_dict().items():
                assert torch.equal(value, head.state_dict()[name])


def test_supervised_weights_start_both_encoders(tmp_path: Path) -> None:
    weights = trained(torchvision.models.resnet18().state_dict())
    torch.save(weights, tmp_path / "r18.pth")
    model = MoCo("resnet18", 16, 16, mlp=True)
    said = load_initial_weights(model, "resnet18", str(tmp_path / "r18.pth"))
    assert equal_parts(model, "encoder_q", weights, "") == {"backbone"}
    assert equal_parts(model, "encoder_k", weights, "") == {"backbone"}
    assert said[2].endswith("a copy of the query encoder")
    for name, value in model.encoder_k.state_dict().items():
        assert torch.equal(value, model.encoder_q.state_dict()[name])


def test_the_supervised_method_takes_a_head_that_fits(tmp_path: Path) -> None:
    weights = trained(torchvision.models.resnet18(num_classes=3).state_dict())
    torch.save(weights, tmp_path / "r18.pth")
    for classes, head in ((3, "loaded, 2 tensors"), (5, "new (fc.weight is")):
        model = build_encoder("resnet18", classes)
        said = load_initial_weights(model, "resnet18", str(tmp_path / "r18.pth"))
        assert len(said) == 2
        assert head in said[1]
        assert torch.equal(model.state_dict()["bn1.weight"], weights["bn1.weight"])


def change(state: dict, how: str) -> None:
    if how == "a tensor less":
        del state["module.encoder_q.layer2.0.bn1.running_var"]
    elif how == "nan":
        state["module.encoder_q.layer4.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    elif how == "key encoder in part":
        del state["module.encoder_k.layer1.0.conv1.weight"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("a tensor less", "missing layer2.0.bn1.running_var"),
        ("nan", "layer4.0.conv1.weight has values that are not finite"),
        ("key encoder in part", r"module.encoder_k is not a complete .*missing layer1.0.conv1"),
    ],
)
def test_incomplete_weights_are_refused(tmp_path: Path, how: str, message: str) -> None:
    state = published(tmp_path / "moco.pth")
    change(state, how)
    torch.save({"state_dict": state}, tmp_path / "moco.pth")
    with pytest.raises(InputError, match=message):
        load_initial_weights(MoCo(ARCH, 8, 16), ARCH, str(tmp_path / "moco.pth"))


TINY = f"""
MODEL.ARCH {ARCH} MODEL.DIM 8 MODEL.QUEUE_SIZE 8 MODEL.BN_GROUP_SIZE 4
VIEWS.CROP_SIZE 32 SOLVER.BATCH_SIZE 8 SOLVER.MILESTONES (1,) LOG_PERIOD 1
DATA.NUM_WORKERS 0 DEVICE cpu
""".split()


def run(tmp_path: Path, *more: str, resume: bool = False) -> dict:
    where = ["DATA.ROOT", str(tmp_path / "images"), "OUTPUT_DIR", str(tmp_path / "run")]
    cfg = load_cfg(ROOT / "configs/moco_v1_R50_200ep.yaml", [*TINY, *where, *more])
    return torch.load(pretrain(cfg, resume), weights_only=True)["state_dict"]


def test_a_run_starts_from_it_and_resuming_wins(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 16)
    state = published(tmp_path / "moco.pth")
    init = ("MODEL.INIT", str(tmp_path / "moco.pth"))
    still = ("SOLVER.BASE_LR", "1e-12")
    with pytest.raises(InputError, match=r"holds a resnet18w0.125x, but MODEL.ARCH is 'resnet18'"):
        run(tmp_path, *init, "MODEL.ARCH", "resnet18")
    assert not (tmp_path / "run").exists()

    (tmp_path / "run").mkdir()  # as of a run that was killed before its first checkpoint
    found = run(tmp_path, *init, *still, "SOLVER.EPOCHS", "2", resume=True)
    weight = "module.encoder_q.layer3.0.conv1.weight"
    torch.testing.assert_close(found[weight], state[weight])
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "all 120 backbone tensors loaded" in log
    assert "dictionary: new" in log

    (tmp_path / "moco.pth").unlink()  # a run that goes on does not need it any more
    (tmp_path / "run" / "checkpoint_final.pth").unlink()
    (tmp_path / "run" / "last_checkpoint").write_text("checkpoint_0000.pth")
    run(tmp_path, *init, *still, "SOLVER.EPOCHS", "2", resume=True)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "MODEL.INIT is not read again" in log
