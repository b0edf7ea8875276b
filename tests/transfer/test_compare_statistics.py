from __future__ import annotations

import math

import pytest
from compare_synthetic import fair_results, make_results

from transfer.compare.headline import headline
from transfer.compare.statistics import (
    Difference,
    Summary,
    compare_arms,
    paired_difference,
    summary,
    values_by_seed,
)

# Two-sided 95 % quantiles of Student's t as printed in any table, by degrees of freedom.
T_TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_interval_against_the_printed_t_table(n: int):
    """Differences 1..n: mean (n + 1) / 2 and sample variance n (n + 1) / 12."""
    base = {seed: 10.0 * seed for seed in range(n)}
    ours = {seed: base[seed] + seed + 1 for seed in base}
    found = paired_difference(ours, base)
    half = T_TABLE[n - 1] * math.sqrt(n * (n + 1) / 12 / n)
    assert found.n == n
    assert found.mean == pytest.approx((n + 1) / 2)
    assert found.low == pytest.approx((n + 1) / 2 - half, rel=1e-3, abs=2e-3)
    assert found.high == pytest.approx((n + 1) / 2 + half, rel=1e-3, abs=2e-3)


def test_summary_by_hand():
    assert summary([]) == Summary(0, None, None)
    assert summary([7.0]) == Summary(1, 7.0, None)
    found = summary([2.0, 4.0, 9.0])  # deviations -3, -1, 4: variance 26 / 2
    assert (found.n, found.mean) == (3, 5.0)
    assert found.std == pytest.approx(math.sqrt(13))


def test_only_common_seeds_are_paired():
    found = paired_difference({1: 5.0, 2: 9.0, 8: 100.0}, {1: 4.0, 2: 6.0, 9: 0.0})
    half = T_TABLE[1] * 1.0  # differences 1 and 3: std sqrt(2), over sqrt(2)
    assert (found.n, found.mean) == (2, 2.0)
    assert found.low == pytest.approx(2 - half, abs=1e-3)


def test_one_pair_has_no_interval_and_none_no_mean():
    assert paired_difference({1: 5.0}, {1: 4.0}) == Difference(1, 1.0, None, None)
    assert paired_difference({1: 5.0}, {2: 4.0}) == Difference(0, None, None, None)


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(0.1, 2, 1), (-2, -0.1, -1), (-1, 1, 0), (0, 1, 0), (None, None, 0)]
)
def test_sign_needs_an_interval_without_zero(low, high, sign: int):
    assert Difference(3, 1.0, low, high).sign == sign


def test_values_that_are_not_numbers_are_left_out():
    runs = [make_results("a", seed, ap) for seed, ap in ((1, 50.0), (2, math.nan), (3, math.inf))]
    runs.append(make_results("a", 4, 0.0, metrics={"bbox": {"AP50": 3.0}}))
    assert values_by_seed(runs, "a", ("bbox", "AP")) == {1: 50.0}
    assert values_by_seed(runs, "a", ("bbox", "AP50"))[4] == 3.0


def test_rows_of_a_comparison():
    rows = compare_arms(fair_results(), "supervised")
    assert [row.arm for row in rows] == ["random", "supervised", "moco"]
    assert rows[1].differences == {}
    found = rows[2].differences[("bbox", "AP")]  # 2.3, 2.45, 2.55
    half = T_TABLE[2] * math.sqrt((0.0177777 + 0.0002777 + 0.0136111) / 2 / 3)
    assert found.mean == pytest.approx(7.3 / 3)
    assert found.high == pytest.approx(7.3 / 3 + half, abs=1e-3)
    assert rows[0].summaries[("bbox", "AP50")].mean == pytest.approx(58.8)


def sentences(aps: dict[str, list[float]], mismatches: tuple[str, ...] = ()) -> list[str]:
    runs = [make_results(a, seed, ap) for a, of in aps.items() for seed, ap in enumerate(of)]
    return headline(compare_arms(runs, "base"), "base", mismatches)


def test_headline_claims_only_what_the_interval_shows():
    base = [50.0, 50.2, 50.4]
    clear = sentences({"base": base, "new": [52.1, 52.2, 52.3]})
    assert clear[0].startswith("new is better than base: +2.00 box AP (95 % interval +1.75 to")
    assert sentences({"base": base, "new": [48.1, 48.2, 48.3]})[0].startswith("new is worse")
    noise = sentences({"base": base, "new": [50.9, 50.1, 50.8]})
    assert noise[0].startswith("No difference shown between new and base: +0.40 box AP")


def test_headline_of_one_seed_or_one_arm_or_an_unfair_comparison_makes_no_claim():
    assert "cannot tell" in sentences({"base": [50.0], "new": [60.0]})[0]
    assert "no other arm" in sentences({"base": [50.0, 51.0]})[0]
    unfair = sentences({"base": [50.0, 50.1], "new": [60.0, 60.1]}, ("The engine differs.",))
    assert unfair == [
        "The runs differ in more than their weights, so these numbers do not show which weights "
        "are better (see the first note)."
    ]
