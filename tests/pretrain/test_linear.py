"""The linear protocol against torchvision and a plain loop, and whole runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import ROOT, write_images
from linear_runs import ARCH, CONFIG, FINETUNE, TINY, recipe, run, saved
from torchvision import transforms

from convert.conventions import Conventions
from pretrain.augment.reference import apply
from pretrain.checks import check_values
from pretrain.encoder import build_encoder
from pretrain.knn import knn_accuracy
from pretrain.linear import evaluate as module
from pretrain.linear.config import LINEAR_RULES, load_cfg, view_recipe
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
from runtime.errors import Stopped
from runtime.randomness import generator, torch_generator

pytest_plugins = ("linear_runs",)  # its fixtures


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
