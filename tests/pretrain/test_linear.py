"""The linear protocol against torchvision and a plain loop; whole runs; what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import ROOT, write_images
from PIL import Image
from torchvision import transforms

from convert.conventions import Conventions
from convert.seen_images import SeenImages
from pretrain.augment.reference import apply
from pretrain.checks import check_values
from pretrain.encoder import build_encoder
from pretrain.knn import knn_accuracy
from pretrain.linear import evaluate as module
from pretrain.linear.config import LINEAR_RULES, load_cfg, view_recipe
from pretrain.linear.evaluate import evaluate
from pretrain.linear.features import knn_in_parts, outputs
from pretrain.linear.network import (
    backbone_tensors,
    build_network,
    check_unchanged,
    without_classifier,
)
from pretrain.loading.batches import EpochBatches
from pretrain.moco import MoCo
from pretrain.source.images import ImageFolder
from pretrain.views import draw
from runtime.config import leaves
from runtime.errors import InputError, Stopped
from runtime.randomness import generator, torch_generator

CONFIG = ROOT / "configs/linear_imagenet.yaml"
FINETUNE = ROOT / "configs/finetune_inat18.yaml"
TINY = """
VIEWS.CROP_SIZE 32 SOLVER.BATCH_SIZE 8 SOLVER.EPOCHS 3 SOLVER.MILESTONES (2,) SOLVER.BASE_LR 0.5
KNN.K 3 LOG_PERIOD 1 DATA.NUM_WORKERS 0 DEVICE cpu
""".split()
ARCH = "resnet18w0.125x"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """20 training and 7 test images in three classes; the last test batch is incomplete."""
    for split, counts in (("train", (8, 7, 5)), ("test", (3, 3, 1))):
        for seed, (name, count) in enumerate(zip("abc", counts, strict=True)):
            write_images(tmp_path / split / name, count, 40, seed + 10 * (split == "test"))
    return tmp_path / "train", tmp_path / "test"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An official MoCo checkpoint whose BN has seen data."""
    torch.manual_seed(1)
    moco = MoCo(ARCH, 8, 16)
    moco.encoder_q(torch.randn(8, 3, 32, 32))
    state = {f"module.{name}": value for name, value in moco.state_dict().items()}
    torch.save({"epoch": 1, "arch": ARCH, "state_dict": state}, tmp_path / "moco.pth.tar")
    return tmp_path / "moco.pth.tar"


def recipe(folders: tuple[Path, Path], weights: object, output: Path, *more: str) -> list[str]:
    train, test = map(str, folders)
    return [*TINY, "DATA.TRAIN", train, "DATA.TEST", test, "OUTPUT_DIR", str(output), *more]


def run(
    folders: tuple[Path, Path],
    weights: object,
    output: Path,
    *more: str,
    config: Path = CONFIG,
    resume: bool = False,
) -> dict:
    overrides = recipe(folders, weights, output, *more)
    return json.loads(evaluate(load_cfg(str(config), str(weights), overrides), resume).read_text())


def saved(output: Path) -> dict:
    name = (output / "last_checkpoint").read_text()
    return torch.load(output / name, weights_only=True)


def by_hand(folders: tuple[Path, Path], checkpoint: Path) -> tuple[torch.Tensor, float]:
    """The protocol in plain torch: one loop, features by torchvision's own transforms."""
    train, test = (ImageFolder.scan(folder) for folder in folders)
    cfg = load_cfg(str(CONFIG), str(checkpoint), TINY)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    prefix = "module.encoder_q."
    trunk = MoCo(ARCH, 8, 16).encoder_q
    trunk.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if prefix in n})
    trunk.fc = torch.nn.Identity()
    trunk.eval()
    normal = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    weight = torch.empty(3, 64).normal_(0, 0.01, generator=torch_generator(0, "linear classifier"))
    bias = torch.zeros(3)
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    labels = train.labels()
    for step, batch in enumerate(EpochBatches(20, 8, 6, 0)):
        views = []
        for epoch, index in batch:
            image = train.load(index)
            rng = generator(0, "augmentation", epoch, index, 0)
            view = apply(view_recipe(cfg), draw(view_recipe(cfg), *image.size, rng), image)
            views.append(normal(transforms.functional.to_tensor(view)))
        with torch.no_grad():
            features = trunk(torch.stack(views))
        probabilities = (features @ weight.T + bias).softmax(1)
        target = F.one_hot(torch.tensor([labels[index] for _, index in batch]), 3)
        error = (probabilities - target) / len(batch)
        lr = 0.5 if step < 4 else 0.05
        for value, v, grad in zip(
            (weight, bias), speed, (error.T @ features, error.sum(0)), strict=True
        ):
            v.copy_(0.9 * v + grad)
            value -= lr * v
    preprocess = transforms.Compose(
        [transforms.Resize(37), transforms.CenterCrop(32), transforms.ToTensor(), normal]
    )
    right = 0
    for index, label in enumerate(test.labels()):
        with torch.no_grad():
            features = trunk(preprocess(test.load(index))[None])
        right += int((features @ weight.T + bias).argmax()) == label
    return weight, right / len(test.files) * 100


def test_equals_a_plain_loop(folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path) -> None:
    results = run(folders, checkpoint, tmp_path / "run", "DATA.PIPELINE", "reference")
    weight, top1 = by_hand(folders, checkpoint)
    found = saved(tmp_path / "run")["state_dict"]["module.fc.weight"]
    torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-5)
    assert results["top1"] == pytest.approx(top1)
    assert results["test"]["images"] == 7
    assert (results["top5"], results["classes"]) == (None, 3)
    assert (results["architecture"], results["format"]) == (ARCH, "official MoCo")
    assert results["recipe"]["SOLVER"]["BASE_LR"] == 0.5
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").open()]
    assert [row["iteration"] for row in rows if "loss" in row] == list(range(6))
    tests = [row["top1"] for row in rows if "top1" in row]
    assert (len(tests), tests[-1]) == (3, results["top1"])
    assert results["best_top1"] == max(tests)
    assert results["best_epoch"] == 1 + tests.index(max(tests))


def test_features_are_torchvisions(tmp_path: Path) -> None:
    """A torchvision checkpoint through its own transforms and model: 7 images, none left out."""
    write_images(tmp_path / "images", 7, 50)
    folder = ImageFolder.scan(tmp_path / "images")
    torch.manual_seed(0)
    reference = torchvision.models.resnet18()
    with torch.no_grad():
        reference(torch.randn(4, 3, 64, 64))  # the converter refuses BN that has seen nothing
    torch.save(reference.eval().state_dict(), tmp_path / "r18.pth")
    cfg = load_cfg(str(CONFIG), str(tmp_path / "r18.pth"), [])
    network = build_network(cfg, 3)
    with without_classifier(network.model.eval()) as model:
        found = outputs(model, folder, 32, network.prepare, 0)
    reference.fc = torch.nn.Identity()
    preprocess = transforms.Compose(
        [
            transforms.Resize(37),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.no_grad():
        expected = reference(torch.stack([preprocess(folder.load(i)) for i in range(7)]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(network.model.fc, torch.nn.Linear)


def test_pixels_follow_the_conventions(checkpoint: Path) -> None:
    network = build_network(load_cfg(str(CONFIG), str(checkpoint), []), 3)
    values = network.conventions.to_dict()
    values |= {"channel_order": "BGR", "pixel_mean": [1, 2, 3], "pixel_std": [1, 2, 4]}
    bgr = Conventions.from_dict(values, "test")
    images = torch.tensor([[[[11]], [[22]], [[33]]]], dtype=torch.uint8)
    found = type(network)(network.model, network.architecture, bgr).prepare(images)
    assert found.flatten().tolist() == [32.0, 10.0, 2.0]


def test_weights_of_caffe_get_bgr_pixels_and_their_strides(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = build_encoder("resnet50w0.125x", 3).state_dict()
    trained = {n: v + 1 if v.dim() < 2 else v for n, v in state.items() if "fc." not in n}
    content = {
        "meta": {"cfg": "model = dict(backbone=dict(style='caffe', type='ResNet'))"},
        "state_dict": {f"backbone.{name}": value for name, value in trained.items()},
    }
    torch.save(content, tmp_path / "caffe.pth")
    network = build_network(load_cfg(str(CONFIG), str(tmp_path / "caffe.pth"), []), 3)
    pixels = network.prepare(torch.full((1, 3, 1, 1), 200, dtype=torch.uint8)).flatten()
    torch.testing.assert_close(pixels, torch.tensor([200 - 103.53, 200 - 116.28, 200 - 123.675]))
    for layer, stride in (("layer1", (1, 1)), ("layer2", (2, 2)), ("layer4", (2, 2))):
        block = getattr(network.model, layer)[0]
        assert (block.conv1.stride, block.conv2.stride) == (stride, (1, 1))
        assert block.downsample[0].stride == stride
    assert network.model.layer2[1].conv1.stride == (1, 1)
    assert network.model(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_shipped_recipes_are_the_papers() -> None:
    found = {}
    for path in [*sorted((ROOT / "configs").glob("linear_*.yaml")), FINETUNE]:
        cfg = load_cfg(str(path), "random", [])
        check_values(cfg, LINEAR_RULES)
        assert {key for key, _ in leaves(cfg)} <= set(LINEAR_RULES)
        solver = cfg.SOLVER
        found[path.stem] = (cfg.MODE, solver.BASE_LR, solver.WEIGHT_DECAY, solver.MILESTONES)
        assert (solver.BATCH_SIZE, solver.EPOCHS, cfg.VIEWS.CROP_SIZE) == (256, 100, 224)
    assert found == {
        "linear_imagenet": ("linear", 30.0, 0.0, [60, 80]),
        "linear_inat18": ("linear", 30.0, 0.0, [60, 80]),
        "finetune_inat18": ("finetune", 0.025, 0.0001, [70, 90]),
    }


def test_knn_in_parts_is_knn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.linear.features.KNN_ROWS", 4)
    torch.manual_seed(0)
    train, test = torch.randn(30, 5), torch.randn(11, 5)
    labels, truth = torch.randint(3, (30,)), torch.randint(3, (11,))
    whole = knn_accuracy(F.normalize(train), labels, F.normalize(test), truth, 5)
    assert knn_in_parts(train, labels, test, truth, 5, 0.07) == pytest.approx(whole)


@pytest.mark.parametrize("config", [CONFIG, FINETUNE])
def test_stopped_and_resumed_equals_unbroken(
    config: Path,
    folders: tuple[Path, Path],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(folders, checkpoint, tmp_path / "whole", config=config)
    step = module._Run._step
    with monkeypatch.context() as patch:

        def stopping(self: object, model: torch.nn.Module, batch: object, number: int) -> object:
            if number == 2:  # in the middle of an epoch
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, model, batch, number)

        patch.setattr(module._Run, "_step", stopping)
        with pytest.raises(Stopped):
            run(folders, checkpoint, tmp_path / "broken", config=config)
    assert saved(tmp_path / "broken")["step"] == 3
    resumed = run(folders, checkpoint, tmp_path / "broken", config=config, resume=True)
    for key in ("top1", "best_top1", "best_epoch", "knn"):
        assert resumed[key] == whole[key], key
    first, second = saved(tmp_path / "whole"), saved(tmp_path / "broken")
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    kept = sorted(path.name for path in (tmp_path / "broken").glob("checkpoint_*.pth"))
    assert kept == ["checkpoint_0000004.pth", "checkpoint_0000006.pth"]
    assert run(folders, checkpoint, tmp_path / "broken", config=config, resume=True) == resumed


def test_finetuning_trains_every_layer_and_bn(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    results = run(folders, checkpoint, tmp_path / "run", config=FINETUNE)
    assert (results["mode"], results["knn"], results["backbone_unchanged"]) == (
        "finetune",
        None,
        None,
    )
    before = torch.load(checkpoint, weights_only=True)["state_dict"]
    after = saved(tmp_path / "run")["state_dict"]
    for name, value in after.items():
        if ".fc." not in name:
            old = before[name.replace("module.", "module.encoder_q.", 1)]
            assert not torch.equal(value, old), name


def test_frozen_backbone_is_the_checkpoints_and_a_change_is_found(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folders, checkpoint, tmp_path / "run")
    before = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in saved(tmp_path / "run")["state_dict"].items():
        if ".fc." not in name:
            assert torch.equal(value, before[name.replace("module.", "module.encoder_q.", 1)])

    network = build_network(load_cfg(str(CONFIG), str(checkpoint), []), 3)
    tensors = backbone_tensors(network.model)
    network.model(torch.randn(4, 3, 32, 32))  # training mode: BN's running statistics move
    with pytest.raises(RuntimeError, match=r"has changed \(60 tensors, bn1.running_mean first\)"):
        check_unchanged(network.model, tensors)

    step = module._Run._step

    def careless(self: object, model: torch.nn.Module, batch: object, number: int) -> object:
        loss = step(self, model, batch, number)
        self.model.bn1.running_var[0] += 1e-6  # type: ignore[attr-defined]
        return loss

    monkeypatch.setattr(module._Run, "_step", careless)
    with pytest.raises(RuntimeError, match=r"\(1 tensors, bn1.running_var first\)"):
        run(folders, checkpoint, tmp_path / "careless")
    assert not (tmp_path / "careless" / "results.json").exists()


def test_two_processes_find_what_one_finds(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    one = run(folders, checkpoint, tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["tools/linear_eval.py", "--config", str(CONFIG), "--weights", str(checkpoint)]
    command += recipe(folders, checkpoint, tmp_path / "two")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["processes"] == 2
    for key in ("top1", "best_top1", "knn"):
        assert two[key] == pytest.approx(one[key]), key
    first, second = (saved(tmp_path / name)["state_dict"] for name in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)


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
    from pretrain.linear.config import test_labels as labels_of

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


def test_a_damaged_image_is_named(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    good = (folders[1] / "c" / "000.jpg").read_bytes()
    for place in folders:
        (place / "c" / "000.jpg").write_bytes(b"no image")
        with pytest.raises(InputError, match=r"cannot read image .*c/000.jpg"):
            run(folders, checkpoint, tmp_path / place.name, "KNN.K", "0")
        (place / "c" / "000.jpg").write_bytes(good)
