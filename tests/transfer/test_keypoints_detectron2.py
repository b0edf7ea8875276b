"""Keypoints against Detectron2's own reader, mapper and evaluator: equal, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_synthetic import SHARED, needs_shared
from keypoints_synthetic import NAMES, SIGMAS, detect_keypoints, write_keypoints

detectron2 = pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.config import get_cfg  # noqa: E402
from detectron2.data import DatasetMapper, MetadataCatalog  # noqa: E402
from detectron2.data.build import (  # noqa: E402
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
)
from detectron2.data.datasets.builtin_meta import (  # noqa: E402
    COCO_PERSON_KEYPOINT_FLIP_MAP,
    COCO_PERSON_KEYPOINT_NAMES,
)
from detectron2.evaluation import COCOEvaluator  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from numpy.random import RandomState  # noqa: E402
from test_data_detectron2 import assert_equal_samples, their_coco, without_own  # noqa: E402

from transfer.data.catalog import get_dataset, training_records  # noqa: E402
from transfer.data.mapper import Mapper  # noqa: E402
from transfer.engines.detectron2.convert import to_instances  # noqa: E402
from transfer.evaluation import build_evaluator  # noqa: E402
from transfer.recipe.load import leaves, load_cfg  # noqa: E402

CONFIGS = Path(detectron2.__file__).parent / "model_zoo/configs"
RECIPE = Path(__file__).parents[2] / "transfer/keypoint_R50_FPN_2x.yaml"


def dataset_of(paths):
    """The data set, and its names as Detectron2's metadata."""
    dataset = get_dataset("coco:{}:{}".format(*paths))
    keypoints = dataset.metadata["keypoints"]
    contiguous = {c: i for i, c in enumerate(dataset.metadata["category_ids"])}
    MetadataCatalog.get(dataset.name).set(
        json_file=paths[0],
        thing_classes=list(dataset.classes),
        thing_dataset_id_to_contiguous_id=contiguous,
        keypoint_names=keypoints["names"],
        keypoint_flip_map=keypoints["flip"],
    )
    return dataset


def tiny_coco(split):
    root = SHARED / "tiny_coco"
    return f"{root}/annotations/person_keypoints_{split}.json", f"{root}/{split}"


def compare_training(dataset, paths, rounds, masks="no"):
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON = True
    cfg.MODEL.MASK_ON = masks != "no"
    cfg.INPUT.MASK_FORMAT = "bitmask" if masks == "bitmask" else "polygon"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64, 100, 133), 180
    cfg.DATASETS.TRAIN = (dataset.name,)
    records = training_records(cfg, [dataset])
    theirs = filter_images_with_only_crowd_annotations(their_coco(*paths))
    theirs = filter_images_with_few_keypoints(theirs, 1)
    plain = [{k: v for k, v in r.items() if k != "keypoint_flip"} for r in records]
    assert without_own(plain) == without_own(theirs)
    assert 0 < len(records) < len(dataset.records)
    mapper, reference = Mapper(cfg, is_train=True), DatasetMapper(cfg, is_train=True)
    points = 0
    for seed, record in enumerate(records * rounds):
        np.random.seed(seed)
        ours, expected = mapper(record, RandomState(seed)), reference(record)
        assert_equal_samples(ours, expected)
        given = ours["targets"]["keypoints"]
        assert given.dtype == torch.float32
        assert torch.equal(given, expected["instances"].gt_keypoints.tensor)
        assert torch.equal(to_instances(ours)["instances"].gt_keypoints.tensor, given)
        points += int((given[..., 2] > 0).sum())
    assert points > 50


@pytest.mark.parametrize("masks", ["no", "polygon", "bitmask"])
def test_mapper(tmp_path: Path, masks: str) -> None:
    paths = write_keypoints(tmp_path, images=12)
    compare_training(dataset_of(paths), paths, rounds=4, masks=masks)


@needs_shared
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_mapper_on_real_persons(split: str) -> None:
    paths = tiny_coco(split)
    dataset = dataset_of(paths)
    assert dataset.metadata["keypoints"]["names"] == COCO_PERSON_KEYPOINT_NAMES
    assert dataset.metadata["keypoints"]["flip"] == COCO_PERSON_KEYPOINT_FLIP_MAP
    compare_training(dataset, paths, rounds=2)


def compare_evaluators(dataset, detections, sigmas):
    ours = build_evaluator(dataset, oks_sigmas=sigmas)
    theirs = COCOEvaluator(dataset.name, distributed=False, kpt_oks_sigmas=sigmas)
    theirs.reset()
    for record, found in zip(dataset.records, detections, strict=True):
        ours.process([record], [found])
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(found["boxes"].clone())
        instances.scores, instances.pred_classes = found["scores"], found["classes"]
        instances.pred_keypoints = found["keypoints"].clone()  # theirs moves them in place
        theirs.process([record], [{"instances": instances}])
    scores, expected = ours.evaluate(), theirs.evaluate()
    assert set(scores) == set(expected) == {"bbox", "keypoints"}
    for task, values in expected.items():  # of one class, theirs leaves the AP of each class out
        given = [scores[task][name] for name in values]
        np.testing.assert_allclose(given, list(values.values()), rtol=0, atol=1e-12)
    assert 0 < scores["keypoints"]["AP"] < 100


@pytest.mark.parametrize("seed", range(2))
def test_evaluator(tmp_path: Path, seed: int) -> None:
    dataset = dataset_of(write_keypoints(tmp_path, images=12, seed=seed))
    compare_evaluators(dataset, detect_keypoints(dataset.records, len(NAMES), seed), list(SIGMAS))


@needs_shared
def test_evaluator_on_real_persons() -> None:
    dataset = dataset_of(tiny_coco("val2017"))
    compare_evaluators(dataset, detect_keypoints(dataset.records, 17), [])


def test_recipe_is_the_stock_one_but_for_what_moco_changes() -> None:
    path = CONFIGS / "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"
    if not path.is_file():
        pytest.skip("this Detectron2 came without its recipes")
    stock = get_cfg()
    stock.merge_from_file(str(path))
    ours = dict(leaves(load_cfg(RECIPE, [], get_cfg())))
    different = {key for key, value in leaves(stock) if ours[key] != value}
    # convention of the weights; trained BN in backbone and FPN; 2x; statistics before evaluation
    conventions = {"MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT", "MODEL.WEIGHTS"}
    conventions |= {"MODEL.RESNETS.STRIDE_IN_1X1"}
    norms = {"MODEL.RESNETS.NORM", "MODEL.FPN.NORM", "MODEL.BACKBONE.FREEZE_AT"}
    schedule = {"SOLVER.STEPS", "SOLVER.MAX_ITER"}
    assert different == conventions | norms | schedule | {"TEST.PRECISE_BN.ENABLED"}
    assert (ours["SOLVER.STEPS"], ours["SOLVER.MAX_ITER"]) == ((120000, 160000), 180000)
    assert [ours[key] for key in sorted(norms)] == [0, "SyncBN", "SyncBN"]
