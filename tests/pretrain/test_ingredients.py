"""The small parts against hand-computed values and obvious references."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18, resnet50
from torchvision.transforms import RandomResizedCrop

from pretrain import schedule
from pretrain.bn_groups import GroupedBatchNorm2d, calls_as_one
from pretrain.dictionary import enqueue_, newest
from pretrain.encoder import build_encoder
from pretrain.info_nce import info_nce_logits
from pretrain.knn import knn_accuracy
from pretrain.momentum import momentum_update_
from pretrain.shuffled_bn import permutation
from pretrain.views import ViewRecipe, draw
from runtime.errors import InputError
from runtime.randomness import generator


@given(size=st.integers(1, 12), batches=st.lists(st.integers(1, 15), min_size=1, max_size=6))
def test_queue_is_a_fifo_that_wraps(size: int, batches: list[int]) -> None:
    queue, pointer = torch.zeros(1, size), torch.zeros(1, dtype=torch.long)
    expected, place, value = [0.0] * size, 0, 0.0
    for count in batches:
        keys = []
        for _ in range(count):
            value += 1
            keys.append([value])
            expected[place % size] = value
            place += 1
        enqueue_(queue, pointer, torch.tensor(keys))
    assert queue[0].tolist() == expected
    assert int(pointer) == place % size


@given(size=st.integers(1, 12), batches=st.integers(1, 5), batch=st.integers(1, 5))
def test_the_newest_keys_of_a_queue(size: int, batches: int, batch: int) -> None:
    queue, pointer = torch.zeros(1, size), torch.zeros(1, dtype=torch.long)
    history = [0.0] * size + [float(i) for i in range(batches * batch)]
    for keys in torch.tensor(history[size:]).split(batch):
        enqueue_(queue, pointer, keys[:, None])
    before = newest(queue, pointer, batch, skip=batch)
    if 2 * batch > size:
        assert before is None
    else:
        assert before is not None
        assert before.tolist() == [[key] for key in history[-2 * batch : -batch]]


def test_momentum_update() -> None:
    key, query = nn.Linear(1, 1), nn.Linear(1, 1)
    for module, value in ((key, 1.0), (query, 5.0)):
        nn.init.constant_(module.weight, value)
        nn.init.constant_(module.bias, -value)
    momentum_update_(key, query, 0.75)
    assert float(key.weight.detach()) == 0.75 * 1 + 0.25 * 5
    assert float(key.bias.detach()) == -(0.75 * 1 + 0.25 * 5)
    assert float(query.weight.detach()) == 5


def test_info_nce_logits() -> None:
    q, k = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    negatives = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    logits, labels = info_nce_logits(q, k, negatives, temperature=0.5)
    torch.testing.assert_close(logits, torch.tensor([[1.2, 0.0, -2.0]]))
    assert labels.tolist() == [0]


def test_grouped_bn_equals_separate_bn() -> None:
    torch.manual_seed(0)
    grouped = GroupedBatchNorm2d(3, group_size=4)
    alone = [nn.BatchNorm2d(3) for _ in range(2)]
    x = torch.randn(8, 3, 5, 5) * 3 + 1
    out = grouped(x)
    parts = [norm(part) for norm, part in zip(alone, x.split(4), strict=True)]
    assert torch.equal(out, torch.cat(parts))
    mean = (alone[0].running_mean + alone[1].running_mean) / 2
    torch.testing.assert_close(grouped.running_mean, mean)
    var = (alone[0].running_var + alone[1].running_var) / 2
    torch.testing.assert_close(grouped.running_var, var)
    assert int(grouped.num_batches_tracked) == 1
    with pytest.raises(ValueError, match="does not divide"):
        grouped(x[:6])


@pytest.mark.parametrize("running_stats", ["mean", "first"])
def test_calls_as_one_equal_one_call(running_stats: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 3, 5, 5) * 3 + 1
    whole, parts = (GroupedBatchNorm2d(3, 4, running_stats) for _ in range(2))
    expected = whole(x)
    with calls_as_one(parts):
        out = torch.cat([parts(part) for part in x.split(4)])
        assert torch.equal(parts.running_mean, torch.zeros(3))  # only at the end
    assert torch.equal(out, expected)
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name
    assert int(parts.num_batches_tracked) == 1
    first = nn.BatchNorm2d(3)
    first(x[:4])
    assert torch.equal(whole.running_var, first.running_var) == (running_stats == "first")


def test_encoders_are_torchvisions() -> None:
    for name, torchvisions in (("resnet18", resnet18), ("resnet50", resnet50)):
        torch.manual_seed(0)
        ours = build_encoder(name, 10).state_dict()
        torch.manual_seed(0)
        theirs = torchvisions(num_classes=10).state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_width_scales_every_layer() -> None:
    half, full = build_encoder("resnet18w0.5x", 7), build_encoder("resnet18", 7)
    for name, value in full.state_dict().items():
        if value.dim() and name != "fc.bias":
            expected = [n if n in (3, 7) else n // 2 for n in value.shape]
            if value.dim() == 4:
                expected[2:] = value.shape[2:]
                expected[:2] = [n if n == 3 else n // 2 for n in value.shape[:2]]
            assert list(half.state_dict()[name].shape) == expected, name
    assert half(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    # the paper (table 1): R50w2x has 94 million parameters, without the classifier
    wide = build_encoder("resnet50w2x", 1000)
    trunk = sum(p.numel() for n, p in wide.named_parameters() if not n.startswith("fc."))
    assert round(trunk / 1e6) == 94


def test_unknown_encoder_is_refused() -> None:
    with pytest.raises(InputError, match="resnet19"):
        build_encoder("resnet19", 10)


def test_permutation_is_a_function_of_seed_and_step() -> None:
    again = permutation(1, 2, 50)
    assert torch.equal(permutation(1, 2, 50), again)
    assert sorted(again.tolist()) == list(range(50))
    assert not torch.equal(permutation(1, 3, 50), again)
    assert not torch.equal(permutation(2, 2, 50), again)


def test_streams_of_different_places_differ() -> None:
    places = [(e, i, v) for e in range(3) for i in range(3) for v in range(2)]
    draws = {
        tuple(generator(0, "augmentation", *place).integers(2**63, size=2)) for place in places
    }
    draws |= {tuple(generator(0, "sample order", *p).integers(2**63, size=2)) for p in places}
    draws |= {tuple(generator(1, "augmentation", *p).integers(2**63, size=2)) for p in places}
    assert len(draws) == 3 * len(places)


def test_schedules() -> None:
    rates = [schedule.multistep(0.03, epoch, [120, 160], 0.1) for epoch in (0, 119, 120, 160)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.0003])
    assert schedule.cosine(0.03, 0, 200) == 0.03
    assert schedule.cosine(0.03, 100, 200) == pytest.approx(0.015)
    assert schedule.cosine(0.03, 199, 200) == pytest.approx(
        0.03 * 0.5 * (1 + math.cos(math.pi * 199 / 200))
    )


def test_warmup() -> None:
    assert [schedule.warmup(step, 4) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1, 1]
    assert schedule.warmup(0, 0) == 1


def test_knn_by_hand() -> None:
    train = torch.tensor([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    test = torch.tensor([[0.98, 0.199], [0.1, 0.995]])
    test = test / test.norm(dim=1, keepdim=True)
    assert knn_accuracy(train, labels, test, torch.tensor([0, 1]), k=2) == 100
    assert knn_accuracy(train, labels, test, torch.tensor([0, 0]), k=2) == 50


def test_knn_with_a_low_temperature_is_the_nearest() -> None:
    """exp(cos / τ) has no float below τ = 1 / 88."""
    train = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(30) % 3
    test = F.normalize(torch.randn(40, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    nearest = labels[(test @ train.T).argmax(1)]
    assert knn_accuracy(train, labels, test, nearest, k=20, temperature=1e-4) == 100


def test_crops_have_torchvisions_distribution() -> None:
    from scipy.stats import ks_2samp

    recipe, image = ViewRecipe(crop_size=8), torch.zeros(3, 90, 160)
    torch.manual_seed(0)
    ours, theirs = [], []
    for i in range(3000):
        ours.append(draw(recipe, 160, 90, generator(0, "test", i)).crop)
        theirs.append(RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]))
    for column in range(4):
        a, b = np.array(ours)[:, column], np.array(theirs)[:, column]
        assert ks_2samp(a, b).pvalue > 1e-3, column


def test_jitter_and_probabilities() -> None:
    recipe = ViewRecipe(jitter=(0.4, 0.4, 0.4, 0.1), jitter_prob=0.8, blur_prob=0.5)
    views = [draw(recipe, 32, 32, generator(5, "test", i)) for i in range(4000)]
    share = {
        "jitter": sum(bool(v.jitter) for v in views) / 4000,
        "gray": sum(v.grayscale for v in views) / 4000,
        "blur": sum(v.blur_sigma is not None for v in views) / 4000,
        "flip": sum(v.flip for v in views) / 4000,
    }
    expected = {"jitter": 0.8, "gray": 0.2, "blur": 0.5, "flip": 0.5}
    assert share == pytest.approx(expected, abs=0.03)
    first = [v.jitter[0][0] for v in views if v.jitter]
    assert {name: first.count(name) / len(first) for name in set(first)} == pytest.approx(
        dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.25), abs=0.04
    )
    factors = {name: [f for v in views for n, f in v.jitter if n == name] for name in set(first)}
    assert min(factors["hue"]) > -0.1
    assert max(factors["hue"]) < 0.1
    assert 0.6 < min(factors["contrast"]) < 0.61
    assert 1.39 < max(factors["contrast"]) < 1.4
    sigmas = [v.blur_sigma for v in views if v.blur_sigma is not None]
    assert 0.1 <= min(sigmas) < 0.12
    assert 1.95 < max(sigmas) <= 2.0


def test_streams_are_those_of_numpys_philox_with_this_key_and_counter() -> None:
    for seed, *place in ((0, 1, 2, 3), (2**63, 0, 2**40, 1), (7,)):
        key = np.array([seed, zlib.crc32(b"augmentation")], dtype=np.uint64)
        counter = np.array([0, *place, *[0] * (3 - len(place))], dtype=np.uint64)
        expected = np.random.Generator(np.random.Philox(key=key, counter=counter))
        drawn = generator(seed, "augmentation", *place)
        assert np.array_equal(drawn.random(50), expected.random(50))
        assert np.array_equal(drawn.permutation(20), expected.permutation(20))
