"""Reading, mapping, order and grouping against Detectron2's own code: equal, bit for bit."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_synthetic import SHARED, needs_shared, random_coco, random_lvis, random_voc

detectron2 = pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.config import get_cfg  # noqa: E402
from detectron2.data import DatasetMapper, MetadataCatalog  # noqa: E402
from detectron2.data.build import filter_images_with_only_crowd_annotations  # noqa: E402
from detectron2.data.common import AspectRatioGroupedDataset  # noqa: E402
from detectron2.data.datasets.coco import load_coco_json  # noqa: E402
from detectron2.data.datasets.lvis import load_lvis_json  # noqa: E402
from detectron2.data.datasets.pascal_voc import load_voc_instances  # noqa: E402
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler  # noqa: E402
from numpy.random import RandomState  # noqa: E402

from transfer.data.catalog import get_dataset, training_records  # noqa: E402
from transfer.data.loader import build_train_loader  # noqa: E402
from transfer.data.mapper import Mapper, sample_rng  # noqa: E402
from transfer.data.order import repeat_factors, train_stream  # noqa: E402

OWN_KEYS = {"difficult", "area", "iscrowd"}  # of ours, for the evaluators


def without_own(records):
    return [
        {
            **r,
            "annotations": [
                {k: v for k, v in a.items() if k not in OWN_KEYS} for a in r["annotations"]
            ],
        }
        for r in records
    ]


def their_coco(json_file, image_root):
    return load_coco_json(json_file, image_root, f"test:{json_file}")


def make_d2_cfg(**keys):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 40, 48)
    cfg.INPUT.MAX_SIZE_TRAIN = 60
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 44, 70
    cfg.merge_from_list([x for item in keys.items() for x in item])
    return cfg


def assert_equal_samples(ours, theirs):
    assert ours["file_name"] == theirs["file_name"]
    assert torch.equal(ours["image"], theirs["image"])
    assert ours["image"].dtype == theirs["image"].dtype == torch.uint8
    if "instances" not in theirs:
        assert "targets" not in ours
        return
    targets, instances = ours["targets"], theirs["instances"]
    assert torch.equal(targets["boxes"], instances.gt_boxes.tensor)
    assert targets["boxes"].dtype == torch.float32
    assert torch.equal(targets["classes"], instances.gt_classes)
    if "polygons" in targets and len(instances):
        for mine, other in zip(targets["polygons"], instances.gt_masks.polygons, strict=True):
            assert len(mine) == len(other)
            for a, b in zip(mine, other, strict=True):
                assert a.dtype == b.dtype == np.float64
                assert np.array_equal(a, b)
    if "bitmasks" in targets and len(instances):
        assert torch.equal(targets["bitmasks"], instances.gt_masks.tensor)


def compare_mappers(cfg, records, rounds=3):
    ours, theirs = Mapper(cfg, is_train=True), DatasetMapper(cfg, is_train=True)
    for seed, record in enumerate(records * rounds):
        np.random.seed(seed)
        assert_equal_samples(ours(record, RandomState(seed)), theirs(record))
    ours, theirs = Mapper(cfg, is_train=False), DatasetMapper(cfg, is_train=False)
    for record in records:
        assert_equal_samples(ours(record), theirs(record))


def test_voc_records(tmp_path):
    folder = str(random_voc(tmp_path, ["cat", "dog", "eel"]))
    dataset = get_dataset(f"voc:{folder}:train")
    assert without_own(dataset.records) == load_voc_instances(folder, "train", dataset.classes)


@pytest.mark.parametrize("rle", [False, True])
def test_coco_records(tmp_path, rle):
    paths = random_coco(tmp_path, rle=rle)
    records = get_dataset("coco:{}:{}".format(*paths)).records
    theirs = their_coco(*paths)
    assert without_own(records) == without_own(theirs)
    usable = filter_images_with_only_crowd_annotations(theirs)
    cfg = make_d2_cfg(**{"DATASETS.TRAIN": ("coco:{}:{}".format(*paths),)})
    assert without_own(training_records(cfg)) == without_own(usable)


def test_lvis_records(tmp_path):
    path, root = random_lvis(tmp_path)
    records = get_dataset(f"lvis:{path}:{root}").records
    assert without_own(records) == load_lvis_json(path, f"{root}/")


@pytest.mark.parametrize("layout", ["BGR", "RGB", "L"])
@pytest.mark.parametrize("sampling", ["choice", "range"])
def test_mapper_on_voc(tmp_path, layout, sampling):
    folder = random_voc(tmp_path, ["cat", "dog"])
    cfg = make_d2_cfg(
        **{
            "INPUT.FORMAT": layout,
            "INPUT.MIN_SIZE_TRAIN_SAMPLING": sampling,
            "INPUT.MIN_SIZE_TRAIN": (30, 50) if sampling == "range" else (32, 0, 48),
        }
    )
    compare_mappers(cfg, get_dataset(f"voc:{folder}:train").records)


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("masks", ["no", "polygon", "bitmask", "rle"])
def test_mapper_on_coco(tmp_path, flip, whole, masks):
    paths = random_coco(tmp_path, rle=masks == "rle", whole=whole)
    cfg = make_d2_cfg(
        **{
            "INPUT.RANDOM_FLIP": flip,
            "MODEL.MASK_ON": masks != "no",
            "INPUT.MASK_FORMAT": "polygon" if masks in ("no", "polygon") else "bitmask",
        }
    )
    compare_mappers(cfg, get_dataset("coco:{}:{}".format(*paths)).records)


@pytest.mark.parametrize(("size", "seed", "shuffle"), [(7, 0, True), (50, 3, True), (5, 1, False)])
def test_stream(size, seed, shuffle):
    theirs = itertools.islice(TrainingSampler(size, shuffle=shuffle, seed=seed), 300)
    assert list(itertools.islice(train_stream(size, seed, shuffle), 300)) == list(theirs)


@pytest.mark.parametrize("sqrt", [True, False])
@pytest.mark.parametrize("threshold", [0.001, 0.4, 3.7])
def test_repeating_stream(tmp_path, threshold, sqrt):
    records = get_dataset("lvis:{}:{}".format(*random_lvis(tmp_path, images=20))).records
    factors = repeat_factors(records, threshold, sqrt)
    sampler = RepeatFactorTrainingSampler
    theirs = sampler.repeat_factors_from_category_frequency(records, threshold, sqrt)
    assert torch.equal(factors, theirs)
    assert factors.dtype == theirs.dtype
    assert (factors.max() > 1) == (threshold > 0.1)
    for shuffle in (True, False):
        expected = list(itertools.islice(sampler(theirs, shuffle=shuffle, seed=9), 500))
        ours = train_stream(len(records), 9, shuffle, factors)
        assert list(itertools.islice(ours, 500)) == expected


@needs_shared
def test_repeat_factors_of_real_photos():
    root = SHARED / "lvis3"
    records = get_dataset(f"lvis:{root}/lvis_v0.5_dev_3.json:{root}").records
    sampler = RepeatFactorTrainingSampler
    theirs = sampler.repeat_factors_from_category_frequency(records, 0.7)
    assert torch.equal(repeat_factors(records, 0.7), theirs)


@pytest.mark.parametrize("repeating", [False, True])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
def test_training_batches(tmp_path, monkeypatch, rank, world, repeating):
    paths = random_coco(tmp_path, images=15)
    name = "coco:{}:{}".format(*paths)
    cfg = make_d2_cfg(**{"DATASETS.TRAIN": (name,), "SOLVER.IMS_PER_BATCH": 4, "SEED": 11})
    records = training_records(cfg)
    sampler = TrainingSampler
    if repeating:
        cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
        cfg.DATALOADER.REPEAT_THRESHOLD = 1.5

        def sampler(_, seed):
            factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
            return RepeatFactorTrainingSampler(factors(records, 1.5), seed=seed)

    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: rank)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: world)
    mapper = DatasetMapper(cfg, is_train=True)

    def mapped():
        for count, index in enumerate(sampler(len(records), seed=11)):
            source = sample_rng(11, rank + count * world)
            monkeypatch.setattr("detectron2.data.transforms.augmentation_impl.np", shadow(source))
            monkeypatch.setattr("detectron2.data.transforms.augmentation.np", shadow(source))
            yield mapper(records[index])

    theirs = AspectRatioGroupedDataset(mapped(), 4 // world)
    ours = build_train_loader(cfg, records, rank, world, num_workers=0)
    for mine, other in itertools.islice(zip(ours, theirs, strict=False), 12):
        assert len(mine) == len(other) == 4 // world
        for a, b in zip(mine, other, strict=True):
            assert_equal_samples(a, b)


def shadow(source):
    """The numpy module, drawing from ``source``."""
    members = {name: getattr(np, name) for name in dir(np) if not name.startswith("__")}
    return SimpleNamespace(**{**members, "random": source})


@needs_shared
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_coco(split):
    root = SHARED / "tiny_coco"
    paths = f"{root}/annotations/instances_{split}2017.json", f"{root}/{split}2017"
    records = get_dataset("coco:{}:{}".format(*paths)).records
    assert without_own(records) == without_own(their_coco(*paths))
    cfg = make_d2_cfg(**{"MODEL.MASK_ON": True, "INPUT.MAX_SIZE_TRAIN": 300})
    cfg.INPUT.MIN_SIZE_TRAIN = (100, 150, 201)
    compare_mappers(cfg, records, rounds=1)


@needs_shared
def test_real_blood_cells_and_nuts():
    folder = str(SHARED / "bccd")
    dataset = get_dataset(f"voc:{folder}:test")
    assert without_own(dataset.records) == load_voc_instances(folder, "test", dataset.classes)
    compare_mappers(make_d2_cfg(), dataset.records[:10], rounds=1)
    paths = f"{SHARED}/nuts/trainval.json", f"{SHARED}/nuts/images"
    records = get_dataset("coco:{}:{}".format(*paths)).records
    assert without_own(records) == without_own(their_coco(*paths))
    compare_mappers(make_d2_cfg(**{"MODEL.MASK_ON": True}), records, rounds=1)


@needs_shared
def test_real_lvis():
    path, root = f"{SHARED}/lvis3/lvis_v0.5_dev_3.json", f"{SHARED}/lvis3"
    dataset = get_dataset(f"lvis:{path}:{root}")
    assert without_own(dataset.records) == load_lvis_json(path, f"{root}/", "lvis_v0.5_dev_3")
    assert list(dataset.classes) == MetadataCatalog.get("lvis_v0.5_dev_3").thing_classes
    cfg = make_d2_cfg(**{"MODEL.MASK_ON": True})
    compare_mappers(cfg, dataset.records, rounds=3)
