"""Verdicts and alarms on figures whose meaning is known."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.monitor import measures
from pretrain.monitor.signals import Signals
from pretrain.monitor.verdict import Contrast, leak, plain_verdict, verdict

N, K, TAU = 64, 512, 0.1
CONTRAST = Contrast(batch_size=N, negatives=K, filling=8, first_pass=15, temperature=TAU)
CHANCE = math.log(K + 1)


def figures_of(q: torch.Tensor, k: torch.Tensor, queue: torch.Tensor) -> dict[str, float]:
    """What a step with these unit queries, keys and negatives (rows) would show."""
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / TAU
    target = torch.zeros(len(q), dtype=torch.long)
    return {
        "loss": float(F.cross_entropy(logits, target)),
        "acc1": float((logits.argmax(1) == 0).float().mean() * 100),
        "batch_acc1": float(measures.retrieval(q, k)),
        "before_acc1": float(measures.retrieval(q, k, queue[-len(q) :])),
        "spread": float(measures.feature_spread(q)),
    }


def simulate(image: float, batch: float, noise: float, seed: int) -> dict[str, float]:
    """An encoder whose output holds that much of the image, of the batch, and of neither."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(1, 128, generator=generator)

    def outputs(batches: int, views: int) -> list[torch.Tensor]:
        images = image * torch.randn(batches * N, 128, generator=generator)
        codes = (batch * torch.randn(batches, 128, generator=generator)).repeat_interleave(N, 0)
        return [
            F.normalize(
                mean + images + codes + noise * torch.randn(images.shape, generator=generator),
                dim=1,
            )
            for _ in range(views)
        ]

    (queue,) = outputs(K // N, 1)
    return figures_of(*outputs(1, 2), queue)


@pytest.mark.parametrize("seed", range(5))
def test_simulated_encoders(seed: int) -> None:
    said = {
        name: verdict(100, simulate(*amounts, seed), CONTRAST)
        for name, amounts in {
            "image": (1.0, 0.0, 0.5),
            "batch": (0.05, 1.0, 0.3),
            "both": (1.0, 1.0, 0.5),
            "neither": (0.0, 0.0, 1.0),
            "constant": (0.001, 0.0, 0.001),
        }.items()
    }
    assert said == {
        "image": "learning",
        "batch": "leak",
        "both": "learning",
        "neither": "at chance",
        "constant": "collapsed: all images look alike to the encoder",
    }


def test_new_keys_told_from_old_ones_is_not_learning() -> None:
    """Keys drift away from the queue's: the loss falls though images are not told apart."""
    generator = torch.Generator().manual_seed(0)
    old, new = torch.zeros(128), torch.zeros(128)
    old[0] = new[1] = 3.0
    q, k = (F.normalize(new + 0.3 * torch.randn(N, 128, generator=generator)) for _ in range(2))
    age = torch.arange(K // N, 0, -1).repeat_interleave(N)[:, None] * N / K  # 1: the oldest
    keys = age * old + (1 - age) * new + 0.3 * torch.randn(K, 128, generator=generator)
    figures = figures_of(q, k, F.normalize(keys, dim=1))
    assert figures["loss"] < CHANCE - 0.5
    assert verdict(100, figures | {"acc1": 30.0}, CONTRAST).startswith("tells new keys from old")


def test_nothing_is_concluded_while_the_queue_is_random() -> None:
    figures = simulate(0.05, 1.0, 0.3, 0)
    assert verdict(8, figures, CONTRAST) == "dictionary still filling"
    assert leak(8, figures, CONTRAST) is None
    assert leak(9, figures, CONTRAST) is not None


@pytest.mark.parametrize(
    ("before_acc1", "batch_acc1", "leaks"),
    [(30, 12, False), (30, 10, True), (97, 98, False), (90, 71, False), (90, 70, True)],
)
def test_where_the_alarm_begins(before_acc1: float, batch_acc1: float, leaks: bool) -> None:
    figures = {"loss": 1.0, "acc1": 40.0, "batch_acc1": batch_acc1, "spread": 0.9}
    assert bool(leak(100, figures | {"before_acc1": before_acc1}, CONTRAST)) == leaks
    assert leak(100, figures, CONTRAST) is None  # a method without a batch before


def test_near_100_percent_in_the_first_pass_is_suspicious() -> None:
    solved = {"loss": 0.01, "acc1": 100.0, "batch_acc1": 100.0, "spread": 0.9}
    assert "views.png" in str(leak(23, solved, CONTRAST))
    assert leak(24, solved, CONTRAST) is None  # later it may have learnt that


def test_a_leak_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    signals = Signals(None, CONTRAST)  # type: ignore[arg-type]
    figures = {"loss": 0.1, "acc1": 90.0, "before_acc1": 99.9, "batch_acc1": 4.0, "spread": 0.5}
    with caplog.at_level(logging.WARNING, logger="moco"):
        assert signals.judge(5, figures) == "dictionary still filling"
        assert not caplog.records
        assert [signals.judge(done, figures) for done in range(20, 26)] == ["leak"] * 6
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "step 23: leak: 100 % of the queries" in record.getMessage()
    assert "MODEL.BN_GROUP_SIZE" in record.getMessage()


def test_an_alarm_rests_on_256_queries(caplog: pytest.LogCaptureFixture) -> None:
    """Four steps of 64: one odd step is not enough."""
    signals = Signals(None, CONTRAST)  # type: ignore[arg-type]
    fine = {"loss": 3.0, "acc1": 40.0, "before_acc1": 50.0, "batch_acc1": 50.0, "spread": 0.5}
    odd = fine | {"before_acc1": 60.0, "batch_acc1": 0.0}
    said = [signals.judge(100 + i, row) for i, row in enumerate([fine, fine, fine, odd, fine])]
    assert said == ["learning"] * 5
    assert not caplog.records


def test_a_supervised_loss() -> None:
    assert plain_verdict(math.log(10), math.log(10)) == "at chance"
    assert plain_verdict(math.log(8.9), math.log(10)) == "learning"
