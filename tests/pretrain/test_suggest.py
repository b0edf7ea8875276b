"""--suggest: what it sees, what it chooses, and that the recipe it writes is one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_images
from PIL import Image

from pretrain.checks import check_values
from pretrain.config import load_cfg
from pretrain.source.images import ImageFolder
from pretrain.suggest import survey as survey_module
from pretrain.suggest import trial
from pretrain.suggest.choice import Choice, Machine, choose
from pretrain.suggest.suggested_recipe import _usable_gpus, render, suggest
from pretrain.suggest.survey import Survey, survey
from runtime.config import get
from runtime.errors import InputError

CPU, GPUS = Machine(0, "", 0.0, 2), Machine(8, "V100", 16.0, 40)
COLOUR = Survey(1000, 1000, 0, 500, 0, 12, 0, 375)


def images(count: int, **changes: int) -> Survey:
    return replace(COLOUR, count=count, compared=min(count, 4000), **changes)


def chosen(survey: Survey, machine: Machine) -> dict:
    return {choice.key: choice.value for choice in choose("photos", survey, machine)}


@pytest.mark.parametrize("machine", [CPU, GPUS], ids=["cpu", "gpus"])
@pytest.mark.parametrize("count", [32, 60, 364, 1000, 2001, 12_000, 100_000, 1_281_167])
def test_every_choice_is_a_recipe_that_can_run(
    count: int, machine: Machine, tmp_path: Path
) -> None:
    choices = choose("photos", images(count), machine)
    (tmp_path / "recipe.yaml").write_text(render(choices, ["A comment: with a colon"]))
    cfg = load_cfg(str(tmp_path / "recipe.yaml"), [])
    check_values(cfg)
    assert all(get(cfg, choice.key) == choice.value for choice in choices)
    batch, group, queue = cfg.SOLVER.BATCH_SIZE, cfg.MODEL.BN_GROUP_SIZE, cfg.MODEL.QUEUE_SIZE
    assert batch <= count
    assert batch % group == 0
    assert batch >= 2 * group
    assert queue <= min(count - batch, 65536, max(batch, count // 4))
    assert pytest.approx(0.03 * batch / 256) == cfg.SOLVER.BASE_LR
    assert count // batch * cfg.SOLVER.EPOCHS / 10 > cfg.SOLVER.WARMUP_STEPS


def test_of_imagenet_on_gpus_it_is_mocos_own_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(render(choose("x", images(1_281_167), GPUS), []))
    published = load_cfg(str(ROOT / "configs/moco_v2_R50_200ep.yaml"), [])
    cfg = load_cfg(str(tmp_path / "x.yaml"), [])
    for section in ("MODEL", "VIEWS"):
        assert cfg[section] == published[section]
    for key in ("BATCH_SIZE", "BASE_LR", "SCHEDULE", "EPOCHS"):
        assert cfg.SOLVER[key] == published.SOLVER[key]


def test_the_images_decide_crop_and_colour() -> None:
    assert chosen(images(5000, short_side=160), GPUS)["VIEWS.CROP_SIZE"] == 128
    assert chosen(images(5000, short_side=32), GPUS)["VIEWS.CROP_SIZE"] == 32
    assert chosen(images(5000, short_side=480), CPU)["VIEWS.CROP_SIZE"] == 96
    grey = chosen(images(5000, grey=500), GPUS)
    assert (grey["VIEWS.JITTER"], grey["VIEWS.GRAYSCALE_PROB"]) == ([0.4, 0.4, 0.0, 0.0], 0.0)
    halved = chosen(images(5000, duplicates=2000), GPUS)
    assert halved["MODEL.QUEUE_SIZE"] <= 2500 / 4


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="holds 16 different images: need 32"):
        choose("photos", replace(COLOUR, count=32, compared=32, duplicates=16), CPU)


def test_share_of_own_keys_in_the_queue() -> None:
    """The reason given for the queue, against counting in two epochs of real orders."""
    count, queue = 400, 100
    rng = np.random.default_rng(0)
    own = 0
    for _ in range(200):
        first, second = rng.permutation(count), rng.permutation(count)
        stream = np.concatenate([first, second])
        own += sum(
            stream[place] in stream[place - queue : place] for place in range(count, 2 * count)
        )
    (choice,) = [c for c in choose("x", images(count), CPU) if c.key == "MODEL.QUEUE_SIZE"]
    assert own / (200 * count) == pytest.approx(queue**2 / (2 * count**2), rel=0.05)
    assert f"{choice.value**2 / (2 * count**2):.1%}" in choice.reason


def test_comments_are_comments(tmp_path: Path) -> None:
    text = render([Choice("SEED", 1, "long " * 60), Choice("DATA.ROOT", "a: #b\n'", "")], ["x" * 9])
    (tmp_path / "x.yaml").write_text(text)
    cfg = load_cfg(str(tmp_path / "x.yaml"), [])
    assert (cfg.SEED, cfg.DATA.ROOT) == (1, "a: #b\n'")
    assert max(map(len, text.splitlines())) <= 100


def test_a_root_of_any_bytes_is_found_again(tmp_path: Path) -> None:
    """A name that is no text, or has control characters, ended in a traceback."""
    root = os.path.join(tmp_path, os.fsdecode(b"im\xe9ages \x07 # a: b\n"))
    text = render(choose(root, images(100), CPU), [f"Suggested for {root}"])
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert root == load_cfg(str(tmp_path / "x.yaml"), []).DATA.ROOT


def test_the_recipe_can_be_used_in_any_folder() -> None:
    for root, written in {
        "photos": f"{os.getcwd()}/photos",
        "x-{0..3}.tar": f"{os.getcwd()}/x-{{0..3}}.tar",
        "s3://bucket/x/": "s3://bucket/x/",
    }.items():
        assert choose(root, images(100), CPU)[0].value == written


def test_usable_gpus() -> None:
    assert [_usable_gpus(8, n) for n in (0, 1, 3, 8, 16)] == [0, 1, 2, 8, 8]


def test_survey_counts(tmp_path: Path) -> None:
    write_images(tmp_path, 10, size=40)
    for copy in ("x.jpg", "y.jpg"):
        shutil.copy(tmp_path / "003.jpg", tmp_path / copy)
    Image.open(tmp_path / "004.jpg").convert("L").save(tmp_path / "grey.png")
    Image.new("L", (50, 60)).save(tmp_path / "mask.png")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    seen = survey(ImageFolder.scan(tmp_path))
    assert seen == Survey(15, 15, 2, 15, 1, 2, 1, 40)
    assert (seen.distinct, seen.grey_share) == (13, 2 / 14)


def test_of_many_images_a_part_finds_the_share_of_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(300):  # a third of the files repeat another
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i % 200]) * (100 + i % 200))
    monkeypatch.setattr(survey_module, "MOST_COMPARED", 120)
    compared, duplicates = survey_module._duplicates(ImageFolder.scan(tmp_path))
    assert 120 <= compared <= 121
    assert duplicates / compared == pytest.approx(1 / 3, abs=0.08)


def test_command_line_writes_a_recipe_once(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 40)
    output = tmp_path / "recipe.yaml"
    command = [sys.executable, "tools/pretrain.py", "--suggest", str(tmp_path / "photos")]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    assert re.search(r"# Time: \d+:\d\d:\d\d .* for 400 steps of \d+\.\d\d s", text)
    cfg = load_cfg(str(output), [])
    assert str(tmp_path / "photos") == cfg.DATA.ROOT
    assert cfg.SOLVER.BATCH_SIZE == 16
    with pytest.raises(InputError, match="is there already"):
        suggest(str(tmp_path / "photos"), str(output))
    assert output.read_text() == text


def test_a_recipe_that_fails_is_not_suggested(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load_cfg(str(ROOT / "configs/moco_v2_R50_200ep.yaml"), [])
    cfg.SOLVER.BATCH_SIZE, cfg.MODEL.BN_GROUP_SIZE = 8, 2
    for message, tries in (("CUDA out of memory", [1, 2, 4]), ("no such thing", [1])):
        parts: list[int] = []

        def failing(
            cfg: object, source: object, gpus: int, n: int, *_: object, parts=parts, said=message
        ) -> subprocess.CompletedProcess:
            parts.append(n)
            return subprocess.CompletedProcess([], 1, "", f"log\n{said}\n")

        monkeypatch.setattr(trial, "_run", failing)
        with pytest.raises(InputError, match=f"tried and failed: {message}"):
            trial.run_trial(cfg, ImageFolder.scan(image_folder), 0)
        assert parts == tries


def test_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--suggest .* holds no images"):
        suggest(str(tmp_path), None)
