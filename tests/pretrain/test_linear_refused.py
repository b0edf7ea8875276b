"""The linear protocol: what is refused, and what is not taken for granted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_runs import ARCH, run
from PIL import Image

from convert.seen_images import SeenImages
from pretrain.source.images import ImageFolder
from runtime.errors import InputError

pytest_plugins = ("linear_runs",)  # its fixtures


def test_random_arm_needs_an_explicit_word(folders: tuple[Path, Path], tmp_path: Path) -> None:
    results = run(folders, "random", tmp_path / "run", "MODEL.ARCH", ARCH)
    assert (results["format"], results["weights_sha256"]) == ("random", None)
    with pytest.raises(InputError, match=r"MODEL.ARCH resnet50"):
        run(folders, "random", tmp_path / "other")
    with pytest.raises(InputError, match="be random for the control arm"):
        run(folders, "", tmp_path / "other")


WRONG = {
    "mode": (["MODE", "probe"], "MODE 'probe' must be linear or finetune"),
    "arch": (["MODEL.ARCH", "resnet50"], f"holds a {ARCH}"),
    "batch": (["SOLVER.BATCH_SIZE", "21"], "exceeds the 20 images"),
    "no train": (["DATA.TRAIN", "/nonexistent"], "DATA.TRAIN '/nonexistent' is not a folder"),
    "unknown key": (["SOLVER.LR", "1"], "unknown key 'SOLVER.LR'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_and_nothing_is_written(
    name: str, folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    change, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        run(folders, checkpoint, tmp_path / "run", *change)
    assert not (tmp_path / "run").exists()


def test_wrong_folders_and_weights_are_refused(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    train, test = folders
    with pytest.raises(InputError, match="are the same images"):
        run((train, train), checkpoint, tmp_path / "run")
    (test / "b").rename(test / "z")
    with pytest.raises(InputError, match=r"z/000.jpg' is of class 'z', which DATA.TRAIN does"):
        run(folders, checkpoint, tmp_path / "run")
    (test / "z").rename(test / "b")
    state = torch.load(checkpoint, weights_only=True)
    del state["state_dict"]["module.encoder_q.layer4.1.bn2.running_var"]
    torch.save(state, tmp_path / "incomplete.pth")
    with pytest.raises(InputError, match=r"missing layer4.1.bn2.running_var"):
        run(folders, tmp_path / "incomplete.pth", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_without_test_images_shifts_nothing(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    from pretrain.linear.data import test_labels as labels_of

    for path in (folders[1] / "a").iterdir():
        path.unlink()
    train, test = (ImageFolder.scan(folder) for folder in folders)
    assert labels_of(train, test) == [1, 1, 1, 2]


def test_other_weights_recipe_or_images_are_not_resumed(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    run(folders, checkpoint, tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run"):
        run(folders, checkpoint, tmp_path / "run")
    with pytest.raises(InputError, match=r"SOLVER.BASE_LR is 0.1, but 'run' was begun with 0.5"):
        run(folders, checkpoint, tmp_path / "run", "SOLVER.BASE_LR", "0.1", resume=True)
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"]["module.encoder_q.bn1.weight"] += 1
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(InputError, match="the weights are not those"):
        run(folders, tmp_path / "other.pth", tmp_path / "run", resume=True)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folders[1] / "a" / "new.png")
    with pytest.raises(InputError, match="the test images are not those"):
        run(folders, checkpoint, tmp_path / "run", resume=True)


def test_test_images_of_the_pretraining_are_refused(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    test = ImageFolder.scan(folders[1])
    state = torch.load(checkpoint, weights_only=True)
    state["seen_images"] = SeenImages.of(2, test.sha256).to_dict(tensor=True)
    torch.save(state, checkpoint)
    with pytest.raises(InputError, match="2 of 7 test images were among the images of pretraining"):
        run(folders, checkpoint, tmp_path / "run")
    results = run(folders, checkpoint, tmp_path / "run", "DATA.ALLOW_SEEN", "True")
    assert results["test_images_seen"] == 2


def test_test_images_of_the_training_and_late_milestones_are_told_of(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("a/000.jpg", "b/001.jpg"):
        shutil.copy(folders[0] / name, folders[1] / "c" / name.replace("/", "_"))
    results = run(folders, checkpoint, tmp_path / "run", "SOLVER.EPOCHS", "1")
    assert results["test_images_in_train"] == 2
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "SOLVER.MILESTONES 2 never come in SOLVER.EPOCHS 1" in log
    assert "2 of 9 test images were among those of DATA.TRAIN, 'c/a_000.jpg' for one" in log


def test_a_damaged_image_is_named(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    good = (folders[1] / "c" / "000.jpg").read_bytes()
    for place in folders:
        (place / "c" / "000.jpg").write_bytes(b"no image")
        with pytest.raises(InputError, match=r"cannot read image .*c/000.jpg"):
            run(folders, checkpoint, tmp_path / place.name, "KNN.K", "0")
        (place / "c" / "000.jpg").write_bytes(good)
