"""The monitor's measures against slow references, loops that follow the papers' formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pretrain.monitor.measures import (
    alignment,
    effective_rank,
    feature_spread,
    gradient_norm,
    retrieval,
    uniformity,
)


def units(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator), dim=1)


A, B = units(12, 5, seed=1), units(12, 5, seed=2)


def test_alignment() -> None:
    a, b = A.double().numpy(), B.double().numpy()
    slow = sum((a[i, c] - b[i, c]) ** 2 for i in range(12) for c in range(5)) / 12
    assert float(alignment(A, B)) == pytest.approx(slow, rel=1e-6)
    assert float(alignment(A, A)) == 0
    assert float(alignment(A, -A)) == pytest.approx(4)


def test_uniformity() -> None:
    a = A.double().numpy()
    pairs = [(i, j) for i in range(12) for j in range(i)]
    potentials = [math.exp(-2 * float(((a[i] - a[j]) ** 2).sum())) for i, j in pairs]
    slow = math.log(sum(potentials) / len(pairs))
    assert float(uniformity(A)) == pytest.approx(slow, rel=1e-6)
    assert float(uniformity(A[:1].expand(8, 5))) == pytest.approx(0, abs=1e-6)
    # orthogonal vectors: every distance is √2
    assert float(uniformity(torch.eye(6))) == pytest.approx(-4, rel=1e-6)


def test_feature_spread() -> None:
    rows = A.double().numpy() * np.arange(1, 13)[:, None]  # lengths do not count
    unit = rows / np.sqrt((rows**2).sum(1, keepdims=True))
    deviations = [math.sqrt(np.mean((c - c.mean()) ** 2)) for c in unit.T]
    slow = math.sqrt(5) * sum(deviations) / 5
    assert float(feature_spread(torch.from_numpy(rows))) == pytest.approx(slow, rel=1e-6)
    assert float(feature_spread(A[:1].expand(8, 5))) == pytest.approx(0, abs=1e-6)
    # even on the sphere: 1/√C in every dimension (SimSiam, section 4.1)
    assert float(feature_spread(units(4000, 64))) == pytest.approx(1, abs=0.01)


def test_effective_rank() -> None:
    a = A.double().numpy()
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(a.T @ a), 0, None))
    share = singular / singular.sum()
    slow = math.exp(-sum(p * math.log(p) for p in share))
    assert float(effective_rank(A)) == pytest.approx(slow, rel=1e-5)
    assert float(effective_rank(torch.eye(6))) == pytest.approx(6, rel=1e-6)
    assert float(effective_rank(A[:1].expand(8, 5))) == pytest.approx(1, abs=1e-3)
    three = units(50, 3) @ torch.linalg.qr(units(8, 8))[0][:3]  # 50 vectors in 3 of 8 dimensions
    assert 2.8 < float(effective_rank(three)) <= 3.001


def test_retrieval() -> None:
    noisy = F.normalize(A + 0.8 * B, dim=1)
    a, b = A.double().numpy(), noisy.double().numpy()
    hits = sum(max(range(12), key=lambda j: float(a[i] @ b[j])) == i for i in range(12))
    assert 0 < hits < 12
    assert float(retrieval(A, noisy)) == pytest.approx(100 * hits / 12)
    assert float(retrieval(A, A)) == 100
    assert float(retrieval(A, A.roll(1, 0))) == 0


def test_retrieval_among_others() -> None:
    generator = torch.Generator().manual_seed(5)
    q, noise, others = (
        F.normalize(torch.randn(12, 4, generator=generator), dim=1) for _ in range(3)
    )
    k = F.normalize(q + noise, dim=1)
    hits = 0
    for i in range(12):
        competitors = [float(q[i] @ others[j]) for j in range(12) if j != i]
        hits += float(q[i] @ k[i]) > max(competitors)
    assert 0 < hits < 12
    assert float(retrieval(q, k, others)) == pytest.approx(100 * hits / 12)
    assert float(retrieval(q, k, k)) == float(retrieval(q, k))


def test_retrieval_of_a_collapsed_encoder_is_chance() -> None:
    same = A[:1].expand(8, 5)
    assert float(retrieval(same, same)) == pytest.approx(100 / 8)


def test_gradient_norm() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    assert float(gradient_norm(model.parameters())) == 0
    model[:2](torch.ones(2, 3)).square().sum().backward()  # the last layer has no gradient
    total = sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None)
    assert float(gradient_norm(model.parameters())) == pytest.approx(math.sqrt(total), rel=1e-6)
    # the library that clips by the same norm
    library = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert float(gradient_norm(model.parameters())) == pytest.approx(float(library), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_measures_are_float32_whatever_the_precision(dtype: torch.dtype) -> None:
    a, b = A.to(dtype), B.to(dtype)
    for value in (alignment(a, b), uniformity(a), feature_spread(a), effective_rank(a)):
        assert value.dtype == torch.float32
