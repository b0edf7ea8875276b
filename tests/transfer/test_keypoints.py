"""Keypoints: names, what a flip does to them, refusals, and AP against pycocotools."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_synthetic import SHARED, make_cfg, needs_shared
from keypoints_synthetic import NAMES, SIGMAS, detect_keypoints, write_keypoints
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runtime.errors import InputError
from transfer.data.catalog import get_dataset, training_records
from transfer.data.geometry import Geometry
from transfer.data.keypoints import (
    flip_indices,
    keypoint_targets,
    read_keypoint_names,
    require_keypoints,
)
from transfer.data.mapper import Mapper
from transfer.engines.embedded.engine import EmbeddedEngine
from transfer.evaluation import build_evaluator
from transfer.run.job import Job
from transfer.run.resolve import resolve

TINY_COCO = SHARED / "tiny_coco"


def read(paths: tuple[str, str]):
    return get_dataset("coco:{}:{}".format(*paths))


def person(split: str):
    return read((f"{TINY_COCO}/annotations/person_keypoints_{split}.json", f"{TINY_COCO}/{split}"))


def change(path: str, edit) -> None:
    content = json.loads(Path(path).read_text())
    edit(content)
    Path(path).write_text(json.dumps(content))


def cfg_for(dataset, **keys):
    cfg = make_cfg()
    cfg.MODEL.KEYPOINT_ON = True
    cfg.MODEL.ROI_KEYPOINT_HEAD = type(cfg)({"MIN_KEYPOINTS_PER_IMAGE": 1})
    cfg.TEST = type(cfg)({"KEYPOINT_OKS_SIGMAS": list(SIGMAS)})
    cfg.merge_from_list([x for item in keys.items() for x in item])
    return cfg


def test_names_and_flips(tmp_path: Path) -> None:
    keypoints = read(write_keypoints(tmp_path)).metadata["keypoints"]
    assert keypoints["names"] == NAMES
    assert keypoints["flip"] == (("left_hand", "right_hand"),)
    assert keypoints["skeleton"] == [[1, 2], [1, 3]]
    assert flip_indices(keypoints) == (0, 2, 1, 3)


def test_names_of_other_styles() -> None:
    names = ["EyeLeft", "EyeRight", "LEFT EAR", "RIGHT EAR", "bright_spot"]
    keypoints = read_keypoint_names([{"keypoints": names}, {"name": "no points"}], "x.json")
    assert keypoints is not None
    assert keypoints["flip"] == (("EyeLeft", "EyeRight"), ("LEFT EAR", "RIGHT EAR"))
    assert read_keypoint_names([{"name": "cat"}], "x.json") is None


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"keypoints": "nose"}], "must be a list of names"),
        ([{"keypoints": ["a", "a"]}], "same name"),
        ([{"keypoints": ["a"]}, {"keypoints": ["b"]}], "must have the same"),
        ([{"keypoints": ["a", "b"], "skeleton": [[0, 1]]}], "numbers from 1"),
        ([{"keypoints": ["a", "b"], "skeleton": [[1, 3]]}], "numbers from 1"),
    ],
)
def test_wrong_names(categories, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_keypoint_names(categories, "x.json")


@pytest.mark.parametrize("flip", ["none", "horizontal"])
def test_targets_point_by_point(flip: str) -> None:
    values = [3.5, 4.5, 2, 0.5, 9.5, 1, 0.5, 0.5, 0, 21.5, 5.5, 2]  # the last is outside
    objects = [{"keypoints": values}, {}]
    geometry = Geometry((10, 20), (15, 40), flip)
    targets = keypoint_targets(objects, geometry, (0, 2, 1, 3))
    assert targets.dtype == torch.float32
    assert targets.shape == (2, 4, 3)
    expected = []
    for x, y, seen in np.array(values).reshape(-1, 3):
        x, y = x * 2, y * 1.5
        x = 40 - x if flip == "horizontal" else x
        labelled = seen > 0 and 0 <= x <= 40 and 0 <= y <= 15
        expected.append([x, y, seen] if labelled else [0, 0, 0])
    if flip == "horizontal":
        expected[1], expected[2] = expected[2], expected[1]
    assert targets[0].tolist() == expected
    assert not targets[1].any()


def test_a_flipped_person_has_the_left_hand_on_the_other_side(tmp_path: Path) -> None:
    dataset = read(write_keypoints(tmp_path))
    records = training_records(cfg_for(dataset), [dataset])
    mapper = Mapper(cfg_for(dataset), is_train=True)

    class Draws:
        def __init__(self, flip: float) -> None:
            self.flip = flip

        def choice(self, sizes):
            return sizes[0]

        def uniform(self):
            return self.flip

    seen = 0
    for record in records:
        plain, flipped = mapper(record, Draws(0.9)), mapper(record, Draws(0.1))
        width = plain["image"].shape[2]
        assert torch.equal(plain["image"].flip(2), flipped["image"])
        a, b = plain["targets"]["keypoints"], flipped["targets"]["keypoints"]
        assert len(a) == len(plain["targets"]["boxes"])
        for mine, other in zip(NAMES, (0, 2, 1, 3), strict=True):
            left, right = a[:, NAMES.index(mine)], b[:, other]
            labelled = left[:, 2] > 0
            assert torch.equal(left[:, 2], right[:, 2])
            assert torch.allclose(left[labelled, 0], width - right[labelled, 0], atol=1e-4)
            assert torch.equal(left[labelled, 1], right[labelled, 1])
            seen += int(labelled.sum())
    assert seen > 10


def test_images_with_too_few_keypoints_are_not_trained_on(tmp_path: Path) -> None:
    dataset = read(write_keypoints(tmp_path, images=12))
    counts = {
        r["image_id"]: sum(v > 0 for a in r["annotations"] for v in a["keypoints"][2::3])
        for r in dataset.records
    }
    for least in (0, 1, 4):
        key = "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE"
        records = training_records(cfg_for(dataset, **{key: least}), [dataset])
        with_objects = [
            r["image_id"]
            for r in dataset.records
            if any(not a["iscrowd"] for a in r["annotations"])
        ]
        assert [r["image_id"] for r in records] == [i for i in with_objects if counts[i] >= least]
    assert len(set(counts.values())) > 3


def edit_points(values):
    def edit(content) -> None:
        content["annotations"][0]["keypoints"] = values

    return edit


def rename(names):
    def edit(content) -> None:
        content["categories"][0]["keypoints"] = names

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_points([1, 1, 2, 1, 1, 2]), "an object has 2 keypoints, its categories name 4"),
        (edit_points([1, 1, 3] * 4), "visibility of a keypoint must be 0, 1 or 2, not 3"),
        (rename(["nose", "left_hand", "right_paw", "tail"]), "'left_hand' has no counterpart"),
        (rename(["nose", "right_hand", "hand", "tail"]), "'right_hand' has no counterpart"),
        (lambda c: c["categories"][0].pop("keypoints"), "whose categories name their 'keypoints'"),
    ],
)
def test_refusals(tmp_path: Path, edit, message: str) -> None:
    paths = write_keypoints(tmp_path)
    change(paths[0], edit)
    dataset = read(paths)
    with pytest.raises(InputError, match=message) as error:
        require_keypoints(cfg_for(dataset), [dataset])
    assert "\n" not in str(error.value)


def test_refusals_of_settings(tmp_path: Path) -> None:
    dataset = read(write_keypoints(tmp_path / "a"))
    assert require_keypoints(cfg_for(dataset), [dataset]) == 4
    with pytest.raises(InputError, match=r"KEYPOINT_OKS_SIGMAS has 0 numbers, .* 4 keypoints"):
        require_keypoints(cfg_for(dataset, **{"TEST.KEYPOINT_OKS_SIGMAS": []}), [dataset])
    with pytest.raises(InputError, match="RANDOM_FLIP vertical does not suit keypoints"):
        Mapper(cfg_for(dataset, **{"INPUT.RANDOM_FLIP": "vertical"}), is_train=True)
    other = read(write_keypoints(tmp_path / "b", names=("a", "b", "c", "d")))
    with pytest.raises(InputError, match="different keypoints"):
        require_keypoints(cfg_for(dataset), [dataset, other])


def test_the_number_of_keypoints_follows_from_the_data(tmp_path: Path) -> None:
    data = "coco:{}:{}".format(*write_keypoints(tmp_path))
    recipe = str(Path(__file__).parents[2] / "transfer/keypoint_R50_FPN_2x.yaml")
    sigmas = ["TEST.KEYPOINT_OKS_SIGMAS", str(list(SIGMAS))]
    key = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
    job = Job(recipe, "random", sigmas, [data], [data], "embedded", seed=1)
    resolved = resolve(EmbeddedEngine(), job, None)
    assert resolved.cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 4
    assert not any(key in deviation for deviation in resolved.deviations)
    with pytest.raises(InputError, match=r"NUM_KEYPOINTS 5, but .* has 4 keypoints"):
        resolve(EmbeddedEngine(), replace(job, overrides=[*sigmas, key, "5"]), None)


def by_pycocotools(json_file: str, dataset, detections, sigmas) -> list[float]:
    """The ten numbers of the official code."""
    results = []
    for record, found in zip(dataset.records, detections, strict=True):
        for box, score, points in zip(
            found["boxes"], found["scores"], found["keypoints"], strict=True
        ):
            x1, y1, x2, y2 = box.numpy()
            values = points.numpy().copy()
            values[:, :2] -= 0.5
            results.append(
                {
                    "image_id": record["image_id"],
                    "category_id": dataset.metadata["category_ids"][0],
                    "bbox": [float(v) for v in (x1, y1, x2 - x1, y2 - y1)],
                    "score": float(score),
                    "keypoints": values.reshape(-1).tolist(),
                }
            )
    truth = COCO(json_file)
    run = COCOeval(truth, truth.loadRes(results), "keypoints")
    if sigmas:
        run.params.kpt_oks_sigmas = np.array(sigmas)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return (run.stats * 100).tolist()


def compare(dataset, detections, sigmas=()) -> dict[str, float]:
    evaluator = build_evaluator(dataset, oks_sigmas=sigmas)
    before = copy.deepcopy(detections)
    for record, found in zip(dataset.records, detections, strict=True):
        evaluator.process([record], [found])
    scores = evaluator.evaluate()
    assert set(scores) == {"bbox", "keypoints"}
    expected = by_pycocotools(dataset.metadata["json_file"], dataset, detections, sigmas)
    names = ("AP", "AP50", "AP75", "APm", "APl")
    values = [scores["keypoints"][name] for name in names]
    # pycocotools writes -1 for what is not there
    assert np.nan_to_num(values, nan=-100) == pytest.approx(expected[:5], abs=1e-9)
    for found, same in zip(detections, before, strict=True):
        assert all(torch.equal(found[key], same[key]) for key in same)
    return scores["keypoints"]


@pytest.mark.parametrize("seed", range(3))
def test_keypoint_ap(tmp_path: Path, seed: int) -> None:
    dataset = read(write_keypoints(tmp_path, images=12, seed=seed))
    scores = compare(dataset, detect_keypoints(dataset.records, 4, seed), SIGMAS)
    assert 0 < scores["AP"] < scores["AP50"] <= 100
    assert scores["AP-cat"] == pytest.approx(scores["AP"])
    stricter = compare(dataset, detect_keypoints(dataset.records, 4, seed), [s / 2 for s in SIGMAS])
    assert stricter["AP"] < scores["AP"]


def test_exact_keypoints_score_100(tmp_path: Path) -> None:
    dataset = read(write_keypoints(tmp_path))
    evaluator = build_evaluator(dataset, oks_sigmas=SIGMAS)
    for record in dataset.records:
        objects = [a for a in record["annotations"] if any(a["keypoints"][2::3])]
        boxes = torch.tensor([a["bbox"] for a in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        points = torch.tensor([a["keypoints"] for a in objects]).reshape(-1, 4, 3)
        found = {"boxes": boxes, "scores": torch.ones(len(boxes)), "keypoints": points}
        evaluator.process([record], [found | {"classes": torch.zeros(len(boxes)).long()}])
    assert evaluator.evaluate()["keypoints"]["AP"] == pytest.approx(100)


@needs_shared
def test_real_persons() -> None:
    dataset = person("val2017")
    labelled = sum(any(a["keypoints"][2::3]) for r in dataset.records for a in r["annotations"])
    labelled += sum(
        any(a["keypoints"][2::3]) for r in person("train2017").records for a in r["annotations"]
    )
    assert labelled == 103
    assert len(dataset.metadata["keypoints"]["flip"]) == 8
    scores = compare(dataset, detect_keypoints(dataset.records, 17))
    assert 0 < scores["AP"] < 100
