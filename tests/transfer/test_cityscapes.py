"""Cityscapes: the reader against its own pictures of the instances, the evaluator by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util

pytest.importorskip("cityscapesscripts")
pytest.importorskip("shapely")

from cityscapes_synthetic import write_cityscapes
from cityscapesscripts.evaluation import (
    evalInstanceLevelSemanticLabeling as script,  # noqa: N813
)

from runtime.errors import InputError
from transfer.data.catalog import get_dataset
from transfer.evaluation import build_evaluator
from transfer.run.finetune import finetune
from transfer.run.job import Job

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_cityscapes(tmp_path / "cityscapes", {"train": 3, "val": 5})


def read(root: Path, split: str = "val"):
    return get_dataset(f"cityscapes:{root}:{split}")


def truth_of(record) -> np.ndarray:
    path = record["file_name"].replace("leftImg8bit.png", "gtFine_instanceIds.png")
    return np.asarray(Image.open(path.replace("leftImg8bit", "gtFine")))


def mask_of(annotation, record) -> np.ndarray:
    size = record["height"], record["width"]
    runs = mask_util.frPyObjects(annotation["segmentation"], *size)
    return mask_util.decode(mask_util.merge(runs)).astype(bool)


def perfect(record):
    """Every object of the picture of instances, found exactly."""
    ids = truth_of(record)
    objects = [i for i in np.unique(ids) if i >= 24000]
    label_ids = (24, 25, 26, 27, 28, 31, 32, 33)
    masks = np.array([ids == i for i in objects]).reshape(-1, *ids.shape)
    return {
        "boxes": torch.zeros(len(objects), 4),
        "scores": torch.linspace(0.9, 0.5, len(objects)),
        "classes": torch.tensor([label_ids.index(i // 1000) for i in objects], dtype=torch.int64),
        "masks": torch.from_numpy(masks),
    }


def evaluate(dataset, detections):
    evaluator = build_evaluator(dataset)
    for record, found in zip(dataset.records, detections, strict=True):
        evaluator.process([record], [found])
    return evaluator.evaluate()["segm"]


def test_objects_are_those_of_the_instance_pictures(root: Path) -> None:
    dataset = read(root)
    assert dataset.classes == CLASSES
    assert len(dataset.records) == 5
    assert dataset.records == sorted(dataset.records, key=lambda r: r["file_name"])
    objects = 0
    for record in dataset.records:
        ids = truth_of(record)
        pictured = [ids == i for i in np.unique(ids) if i >= 24000 and (ids == i).sum() > 60]
        for drawn in pictured:  # by its polygon too, but for pixels at the edge and filled holes
            overlaps = [
                (drawn & mask).sum() / (drawn | mask).sum()
                for mask in (mask_of(a, record) for a in record["annotations"])
            ]
            assert max(overlaps) > 0.7
        objects += len(pictured)
        for a in record["annotations"]:
            assert a["bbox_mode"] == 0
            points = np.concatenate(a["segmentation"]).reshape(-1, 2)
            assert a["bbox"] == (*points.min(axis=0), *points.max(axis=0))
    assert objects > 8
    assert any(a["iscrowd"] for r in dataset.records for a in r["annotations"])


def test_built_in_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    assert get_dataset("cityscapes_fine_instance_seg_val").records == read(root).records
    with pytest.raises(InputError, match="leftImg8bit/test is no folder"):
        get_dataset("cityscapes_fine_instance_seg_test")


def test_many_images_are_read_by_several_processes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = read(root).records
    monkeypatch.setattr("transfer.data.cityscapes._FEW", 2)
    assert read(root).records == alone


def test_perfect_masks_score_100_and_none_score_0(root: Path) -> None:
    dataset = read(root)
    scores = evaluate(dataset, [perfect(r) for r in dataset.records])
    assert scores["AP"] == scores["AP50"] == 100
    assert scores["AP-car"] == 100
    assert np.isnan(scores["AP-train"])  # there is none
    assert "AP75" not in scores
    nothing = [{k: v[:0] for k, v in perfect(r).items()} for r in dataset.records]
    assert evaluate(dataset, nothing)["AP"] == 0


def test_half_a_mask_counts_at_the_thresholds_below_its_overlap(tmp_path: Path) -> None:
    square = [[20, 10], [59, 10], [59, 49], [20, 49]]  # 40 x 40 pixels
    write_one(tmp_path, [{"label": "car", "polygon": square}])
    dataset = read(tmp_path)
    found = perfect(dataset.records[0])
    found["masks"][:, :, 50:] = False  # 30 of 40 columns: an overlap of 0.75
    scores = evaluate(dataset, [found])
    assert scores["AP50"] == 100
    assert scores["AP"] == pytest.approx(50)  # 0.50 to 0.70 of ten thresholds
    assert scores["AP-car"] == scores["AP"]


def write_one(root: Path, objects, split: str = "val") -> None:
    from cityscapes_synthetic import draw_ids

    for part in ("leftImg8bit", "gtFine"):
        (root / part / split / "ulm").mkdir(parents=True)
    stem = root / "gtFine" / split / "ulm" / "ulm_000000_000019_gtFine_"
    pixels = np.asarray(draw_ids(objects, 100, 60)["instanceIds"]).astype(np.uint16)
    Image.fromarray(pixels).save(f"{stem}instanceIds.png")
    content = {"imgHeight": 60, "imgWidth": 100, "objects": objects}
    Path(f"{stem}polygons.json").write_text(json.dumps(content))
    image = root / "leftImg8bit" / split / "ulm" / "ulm_000000_000019_leftImg8bit.png"
    Image.new("RGB", (100, 60)).save(image)


def test_evaluation_leaves_nothing_behind(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("cwd", "tmp"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    before, in1d = dict(vars(script.args)), hasattr(np, "in1d")
    files = sorted(root.rglob("*"))
    dataset = read(root)
    evaluate(dataset, [perfect(r) for r in dataset.records])
    assert vars(script.args) == before
    assert script.np is np
    assert hasattr(np, "in1d") == in1d
    assert sorted(root.rglob("*")) == files
    assert not list((tmp_path / "cwd").iterdir())
    assert not list((tmp_path / "tmp").iterdir())


def test_a_detector_without_masks_is_refused(root: Path) -> None:
    dataset = read(root)
    found = {k: v for k, v in perfect(dataset.records[0]).items() if k != "masks"}
    with pytest.raises(InputError, match=r"MODEL\.MASK_ON True"):
        build_evaluator(dataset).process(dataset.records[:1], [found])


def test_a_recipe_without_masks_is_refused_before_training(root: Path, tmp_path: Path) -> None:
    data = f"cityscapes:{root}:val"
    recipe = str(Path(__file__).parents[2] / "transfer/Base_FPN.yaml")
    job = Job(recipe, "random", (), [data], [data], "embedded", output=str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"MODEL\.MASK_ON True"):
        finetune(job)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("gtFine_instanceIds.png", "cannot read .*gtFine_instanceIds.png: No such file"),
        ("gtFine_polygons.json", "cannot read .*gtFine_polygons.json: No such file"),
    ],
)
def test_missing_annotations(root: Path, ending: str, message: str) -> None:
    for path in root.glob(f"gtFine/val/*/*{ending}"):
        path.unlink()
    with pytest.raises(InputError, match=rf"{message}.*\(4 more") as error:
        read(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["leftImg8bit", "gtFine"])
def test_files_of_another_resolution(root: Path, part: str) -> None:
    ending = "leftImg8bit" if part == "leftImg8bit" else "instanceIds"
    path = sorted((root / part / "val/aachen").glob(f"*{ending}.png"))[0]
    Image.open(path).resize((64, 32)).save(path)
    with pytest.raises(InputError, match=r"64 x 32, but .* says 128 x 64"):
        read(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no annotation of Cityscapes"),
        ('{"imgHeight": 64, "imgWidth": 128}', "no annotation of Cityscapes: KeyError"),
        (
            '{"imgHeight": 64, "imgWidth": 128, "objects": [{"label": "cow", "polygon": []}]}',
            "malformed object: KeyError.'cow'",
        ),
        (
            '{"imgHeight": 64, "imgWidth": 128, "objects": [{"label": "car", "polygon": [[1, 2]]}]'
            "}",
            "malformed object: ValueError",
        ),
    ],
)
def test_damaged_polygons(root: Path, content: str, message: str) -> None:
    next(root.glob("gtFine/val/aachen/*polygons.json")).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read(root)
    assert "\n" not in str(error.value)


def test_notes(root: Path, tmp_path: Path) -> None:
    assert read(root).metadata["notes"] == ["5 images of 128 x 64, Cityscapes' own are 2048 x 1024"]
    write_one(tmp_path / "empty", [{"label": "road", "polygon": [[0, 0], [9, 0], [9, 9]]}])
    assert any("without any object" in note for note in read(tmp_path / "empty").metadata["notes"])


def test_missing_packages_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers.labels", None)
    with pytest.raises(InputError, match=r"pip install 'cityscapesscripts>=2\.2'"):
        read(root)
