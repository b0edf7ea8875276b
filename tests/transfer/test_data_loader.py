"""Order, grouping and loading: pure functions of the recipe, whatever the machine."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch
from data_synthetic import make_cfg, random_coco, write_image

from runtime.errors import InputError
from transfer.data.catalog import get_dataset, training_records
from transfer.data.loader import build_test_loader, build_train_loader
from transfer.data.order import grouped_batches, repeat_factors, train_stream
from transfer.data.packed import PackedList


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return "coco:{}:{}".format(*random_coco(tmp_path_factory.mktemp("coco"), images=14))


@pytest.fixture
def cfg(name):
    return make_cfg("DATASETS.TRAIN", (name,), "MODEL.MASK_ON", True)


def take(loader, number):
    return list(itertools.islice(loader, number))


def prints(batch):
    """What a batch is, pixels and boxes included."""
    return [
        (
            sample["image_id"],
            hashlib.sha256(sample["image"].numpy().tobytes()).hexdigest(),
            sample["targets"]["boxes"].tolist(),
        )
        for sample in batch
    ]


def ids(batches):
    return [[sample["image_id"] for sample in batch] for batch in batches]


def test_stream_is_one_permutation_after_the_other():
    generator = torch.Generator().manual_seed(9)
    epochs = [torch.randperm(13, generator=generator).tolist() for _ in range(3)]
    assert list(itertools.islice(train_stream(13, 9), 39)) == [i for epoch in epochs for i in epoch]
    assert list(itertools.islice(train_stream(3, 9, shuffle=False), 7)) == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="seed"):
        train_stream(3, -1)


def images(*labels):
    return [{"annotations": [{"category_id": c} for c in shown]} for shown in labels]


def test_repeat_factors_by_hand():
    records = images([0, 0, 1], [0], [0, 2], [])  # class 0 in 3 of 4 images, 1 and 2 in one each
    assert repeat_factors(records, 0.5).tolist() == pytest.approx([2**0.5, 1, 2**0.5, 1])
    assert repeat_factors(records, 1.5, sqrt=False).tolist() == [6, 2, 6, 1]
    assert repeat_factors(records, 0.001).tolist() == [1, 1, 1, 1]


def test_repeating_stream_rounds_at_random_in_each_epoch():
    factors = torch.tensor([1.0, 2.25, 1.5, 3.0])
    generator, expected = torch.Generator().manual_seed(3), []
    for _ in range(400):  # as Detectron2 does it, one index after the other
        draws = torch.rand(4, generator=generator).tolist()
        epoch = [
            i
            for i, (factor, draw) in enumerate(zip(factors.tolist(), draws, strict=True))
            for _ in range(int(factor) + (draw < factor % 1))
        ]
        assert 7 <= len(epoch) <= 9
        expected += [epoch[k] for k in torch.randperm(len(epoch), generator=generator)]
    stream = list(itertools.islice(train_stream(4, 3, repeats=factors), len(expected)))
    assert stream == expected
    shares = [stream.count(i) / 400 for i in range(4)]
    assert shares == pytest.approx(factors.tolist(), abs=0.1)
    again = itertools.islice(train_stream(4, 3, shuffle=False, repeats=torch.ones(4)), 9)
    assert list(again) == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_grouping_gives_out_a_bucket_once_it_is_full():
    wide = [True, False, True, True, False]
    stream = enumerate([0, 1, 2, 4, 3, 1, 0])
    assert list(grouped_batches(stream, 2, wide)) == [
        [(0, 0), (2, 2)],
        [(1, 1), (3, 4)],
        [(4, 3), (6, 0)],
    ]


def test_a_batch_is_wide_or_not(cfg):
    records = training_records(cfg)
    batches = take(build_train_loader(cfg, records), 12)
    assert all(len(batch) == 4 for batch in batches)
    kinds = [{s["width"] > s["height"] for s in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    assert len(set.union(*kinds)) == 2


@pytest.fixture(params=["TrainingSampler", "RepeatFactorTrainingSampler"])
def sampler(cfg, request):
    cfg.DATALOADER.SAMPLER_TRAIN = request.param
    cfg.DATALOADER.REPEAT_THRESHOLD = 2.0


@pytest.mark.usefixtures("sampler")
@pytest.mark.parametrize("grouping", [True, False])
def test_any_start_and_any_number_of_workers_give_the_same_batches(cfg, grouping):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    records = training_records(cfg)
    whole = [prints(b) for b in take(build_train_loader(cfg, records), 9)]
    assert len({str(batch) for batch in whole}) == 9
    for start in range(1, 9):
        rest = take(build_train_loader(cfg, records, start=start), 9 - start)
        assert [prints(b) for b in rest] == whole[start:]
    parallel = take(build_train_loader(cfg, records, start=2, num_workers=2), 5)
    assert [prints(b) for b in parallel] == whole[2:7]


@pytest.mark.usefixtures("sampler")
def test_processes_share_the_stream(cfg):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    records = training_records(cfg)
    single = [prints(b) for b in take(build_train_loader(cfg, records), 5)]
    both = [take(build_train_loader(cfg, records, rank, 2), 5) for rank in range(2)]
    for one, left, right in zip(single, *both, strict=True):
        assert prints(left) == one[0::2]  # the same augmentation too
        assert prints(right) == one[1::2]


def test_rare_classes_are_seen_more_often(cfg):
    records = training_records(cfg)
    rare = records[0]["image_id"]
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = int(record["image_id"] == rare)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 9 / len(records)  # of 1 / len(records): 3 times
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = len(records) + 2  # one epoch
    for epoch in ids(take(build_train_loader(cfg, records), 2)):
        assert epoch.count(rare) == 3
        assert len(set(epoch)) == len(records)


def test_another_seed_gives_another_order_and_other_draws(cfg):
    records = training_records(cfg)
    first = take(build_train_loader(cfg, records), 4)
    cfg.SEED = 6
    second = take(build_train_loader(cfg, records), 4)
    assert ids(first) != ids(second)


def test_images_are_drawn_anew_in_each_epoch(cfg):
    records = training_records(cfg)[:1]
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 1, "INPUT.MAX_SIZE_TRAIN", 200])
    batches = take(build_train_loader(cfg, records), 60)
    assert len({batch[0]["image"].shape for batch in batches}) == 3  # the three sizes
    assert len({prints(batch)[0][1] for batch in batches}) == 6  # flipped and not


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEED", -1, "must not be negative"),
        ("SOLVER.IMS_PER_BATCH", 3, "not a multiple of 2 processes"),
        ("DATALOADER.SAMPLER_TRAIN", "Other", "use TrainingSampler or RepeatFactorTrainingSampler"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "REPEAT_THRESHOLD 0.0"),
    ],
)
def test_wrong_settings_are_refused(cfg, key, value, message):
    records = training_records(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=message):
        build_train_loader(cfg, records, rank=0, world=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line_from_a_worker_too(tmp_path, workers):
    path = random_coco(tmp_path, images=3)
    dataset = get_dataset("coco:{}:{}".format(*path))
    write_image(tmp_path / "images/1.png", 5, 5)
    batches = iter(build_test_loader(make_cfg(), dataset, num_workers=workers))
    assert ids([next(batches)]) == [[0]]
    with pytest.raises(InputError, match=r"^image .*1\.png is 5 x 5, .* repair the annotation$"):
        next(batches)


def test_testing_sees_each_image_once_in_order(name):
    loader = build_test_loader(make_cfg(), get_dataset(name))
    assert len(loader) == 14
    for _ in range(2):
        assert ids(loader) == [[i] for i in range(14)]


def test_packed_list_gives_copies():
    items = [{"a": [i]} for i in range(5)]
    packed = PackedList(items)
    assert [packed[i] for i in range(len(packed))] == items
    packed[2]["a"].append(1)
    assert packed[2] == {"a": [2]}
