"""The monitor beside real runs: what it writes, and that it changes nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_images
from PIL import Image
from test_trainer import run

from pretrain.encoder import build_encoder
from pretrain.features import CentreCrops, embed, encoder_at_rest
from pretrain.monitor.held_out import HeldOutViews, labelled_halves
from pretrain.source.images import ImageFolder
from pretrain.views import ViewRecipe
from runtime.errors import InputError

FIGURES = {"grad_norm", "batch_acc1", "alignment", "uniformity", "spread", "rank"}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").open()]


def test_monitor_changes_nothing(image_folder: Path, tmp_path: Path) -> None:
    """Bit for bit, random state included: with kNN and retrieval, and with neither."""
    plain = run(image_folder, tmp_path / "plain", "LOG_PERIOD", "100")
    state = torch.get_rng_state()
    data = ["MONITOR.KNN_DATA", str(image_folder), "MONITOR.RETRIEVAL_DATA", str(image_folder)]
    watched = run(image_folder, tmp_path / "watched", *data, "LOG_PERIOD", "1")
    assert torch.equal(state, torch.get_rng_state())
    assert plain["state_dict"].keys() == watched["state_dict"].keys()
    for name, value in plain["state_dict"].items():
        assert torch.equal(value, watched["state_dict"][name]), name
    assert rows(tmp_path / "plain")[-1]["loss"] == rows(tmp_path / "watched")[-2]["loss"]


def test_figures_of_a_run(image_folder: Path, tmp_path: Path) -> None:
    more = ["MONITOR.KNN_DATA", str(image_folder), "MONITOR.PERIOD", "2"]
    more += ["MODEL.QUEUE_SIZE", "16"]  # two batches: the one before is still there
    run(image_folder, tmp_path / "run", *more)
    steps = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert len(steps) == 9
    assert all(
        steps[0].keys() >= FIGURES | {"before_acc1"} and np.isfinite(list(row.values())).all()
        for row in steps
    )
    measured = {row["iteration"]: row for row in rows(tmp_path / "run") if "loss" not in row}
    assert list(measured) == [5, 8]  # after the second epoch, and at the end
    assert set(measured[8]) == {"iteration", "knn_acc1", "knn_chance"}
    assert measured[8]["knn_chance"] == 50
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "before training: kNN" in log
    assert "dictionary still filling" in log


def test_supervised_run_has_what_applies(image_folder: Path, tmp_path: Path) -> None:
    run(image_folder, tmp_path / "run", "METHOD", "supervised", "SOLVER.EPOCHS", "1")
    assert {"loss", "acc1", "grad_norm"} <= rows(tmp_path / "run")[0].keys()
    assert not FIGURES - {"grad_norm"} & rows(tmp_path / "run")[0].keys()
    assert "at chance" in (tmp_path / "run" / "log.txt").read_text()
    assert (tmp_path / "run" / "neighbours.png").exists()


def test_neighbours_are_sought_among_the_readable_images(
    image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "a" / "003.jpg").write_bytes(b"no image")
    run(image_folder, tmp_path / "run")
    shown = (tmp_path / "run" / "neighbours.txt").read_text()
    assert len(shown.splitlines()) == 8 * 7
    assert "a/003.jpg" not in shown


def test_names_of_any_bytes_are_shown_and_logged(image_folder: Path, tmp_path: Path) -> None:
    """Such a name ended a run in a traceback after its last step, and any start after it."""
    odd = tmp_path / os.fsdecode(b"images \xe9")
    shutil.copytree(image_folder, odd)
    for path in sorted((odd / "a").iterdir()):
        path.rename(path.with_name(os.fsdecode(b"\xe9\n") + path.name))
    run(odd, tmp_path / "run")
    assert len((tmp_path / "run" / "neighbours.txt").read_text().splitlines()) == 8 * 7
    assert "images \\udce9" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


def test_neighbours_are_the_nearest(image_folder: Path, tmp_path: Path) -> None:
    shutil.copy(image_folder / "a" / "003.jpg", image_folder / "b" / "twin.jpg")
    state = run(image_folder, tmp_path / "run")
    encoder = build_encoder("resnet18w0.125x", 8)
    prefix = "module.encoder_q."
    encoder.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state["state_dict"].items() if k.startswith(prefix)}
    )
    folder = ImageFolder.scan(image_folder)
    features = embed(encoder_at_rest(encoder), CentreCrops(folder, 32)).double()
    shown: dict[str, list[tuple[float, str]]] = {}
    query = ""
    for line in (tmp_path / "run" / "neighbours.txt").read_text().splitlines():
        if line.startswith("  "):
            cosine, name = line.split()
            shown[query].append((float(cosine), name))
        else:
            query = line
            shown[query] = []
    assert len(shown) == 8
    for query, found in shown.items():
        place = folder.files.index(query)
        slow = {
            name: float(features[place] @ features[i])
            for i, name in enumerate(folder.files)
            if i != place
        }
        nearest = sorted(slow.values(), reverse=True)[:6]
        assert [cosine for cosine, _ in found] == pytest.approx(nearest, abs=2e-3)
        assert all(slow[name] == pytest.approx(cosine, abs=2e-3) for cosine, name in found)
    width, height = Image.open(tmp_path / "run" / "neighbours.png").size
    assert width > 7 * 112
    assert height > 8 * 112


def test_embed_is_the_plain_evaluation(image_folder: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18w0.125x", 8)
    folder = ImageFolder.scan(image_folder)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    crops = CentreCrops(folder, 28, [5, 3, 20])
    found = embed(encoder_at_rest(encoder), crops, batch_size=2)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    encoder.eval().fc = torch.nn.Identity()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for item, index in enumerate((5, 3, 20)):
        image = folder.load(index).resize((32, 32), Image.Resampling.BILINEAR)
        pixels = np.asarray(image.crop((2, 2, 30, 30))).transpose(2, 0, 1) / np.float32(255)
        alone = F.normalize(encoder(((torch.from_numpy(pixels) - mean) / std)[None]), dim=1)[0]
        torch.testing.assert_close(found[item], alone, rtol=1e-4, atol=1e-5)


def test_held_out_views_are_new_and_repeatable(image_folder: Path) -> None:
    folder, recipe = ImageFolder.scan(image_folder), ViewRecipe(crop_size=32)
    first, again = HeldOutViews(folder, recipe, 1), HeldOutViews(folder, recipe, 1)
    assert len(first) == 48
    assert all(torch.equal(first[i], again[i]) for i in range(48))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], HeldOutViews(folder, recipe, 2)[0])


def test_halves_of_a_labelled_folder(image_folder: Path) -> None:
    known, asked = labelled_halves(image_folder)
    assert sorted(known.indices + asked.indices) == list(range(24))
    for half in (known, asked):
        assert half.labels.tolist() == [0] * 6 + [1] * 6
        assert [half.folder.files[i][0] for i in half.indices] == ["a"] * 6 + ["b"] * 6
    assert labelled_halves(image_folder)[0].indices == known.indices


def test_given_halves(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2)):
        for name in "ab":
            write_images(tmp_path / part / name, count)
    known, asked = labelled_halves(tmp_path)
    assert (len(known.indices), len(asked.indices)) == (6, 4)
    assert asked.folder.root == tmp_path / "val"
    write_images(tmp_path / "val" / "c", 1)
    with pytest.raises(InputError, match="class folder 'c' is in train or in val, not in both"):
        labelled_halves(tmp_path)


WRONG = {
    "not there": (["MONITOR.KNN_DATA", "/nonexistent"], "MONITOR.KNN_DATA '/nonexistent' is not"),
    "no views": (["MONITOR.RETRIEVAL_DATA", "/nonexistent"], "MONITOR.RETRIEVAL_DATA"),
    "period": (["MONITOR.PERIOD", "0"], "MONITOR.PERIOD 0 must be at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_folders_are_refused(name: str, image_folder: Path, tmp_path: Path) -> None:
    change, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        run(image_folder, tmp_path / "run", *change)
    assert not (tmp_path / "run").exists()


def test_a_class_of_one_image_is_refused(image_folder: Path) -> None:
    write_images(image_folder / "c", 1)
    with pytest.raises(InputError, match="class folder 'c' has a single image"):
        labelled_halves(image_folder)


@pytest.mark.parametrize("dictionary", ["memory_bank", "end_to_end"])
def test_every_dictionary_is_listened_to(
    dictionary: str, image_folder: Path, tmp_path: Path
) -> None:
    size = "8" if dictionary == "end_to_end" else "12"
    more = ["MODEL.DICTIONARY", dictionary, "MODEL.QUEUE_SIZE", size, "SOLVER.EPOCHS", "1"]
    run(image_folder, tmp_path / "run", *more)
    row = rows(tmp_path / "run")[-1]
    assert row.keys() >= FIGURES
    if dictionary == "end_to_end":  # the negatives are the batch's other keys
        assert row["batch_acc1"] == pytest.approx(row["acc1"])
