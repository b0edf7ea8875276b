"""The page of measured differences says what was measured."""

from __future__ import annotations

import pytest
import torch
from parity_page import Page


def test_the_largest_difference_is_shown_with_how_much_was_compared() -> None:
    page = Page()
    a = {"x": torch.zeros(3), "y": [1, 2]}
    b = {"x": torch.tensor([0.0, 0.5, -0.25]), "y": [1, 2]}
    assert page.note("T", "row", "column", a, a) == 0
    assert page.note("T", "row", "column", a, b) == 0.5
    assert page.tables == {"T": {"row": {"column": (0.5, 6)}}}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        ("a", "b"),
        (torch.tensor([float("nan")]), torch.zeros(1)),
    ],
)
def test_what_cannot_be_equal_differs_infinitely(a: object, b: object) -> None:
    assert Page().note("T", "row", "column", a, b) == float("inf")


def test_equal_nans_are_equal_and_other_names_are_an_error() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert Page().note("T", "row", "column", nan, nan.clone()) == 0
    with pytest.raises(AssertionError, match="different names"):
        Page().note("T", "row", "column", {"a": 1}, {"b": 1})
    with pytest.raises(AssertionError, match="nothing to compare"):
        Page().note("T", "row", "column", [], [])
