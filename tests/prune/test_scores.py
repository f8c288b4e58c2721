"""Masks of lowest scores against sorting; patterns; counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.errors import UsageError
from apr.prune.pattern import Pattern, parse_pattern
from apr.prune.scores import lowest, lowest_of_groups, lowest_of_rows, prune_count

few_values = st.lists(st.integers(0, 3), min_size=12, max_size=12)  # many ties


@settings(max_examples=60, deadline=None)
@given(few_values, st.integers(0, 6))
def test_rows_lose_exactly_their_lowest_the_first_of_equals(values: list[int], count: int) -> None:
    scores = torch.tensor(values).float().view(2, 6)
    order = scores.sort(dim=1, stable=True).indices[:, :count]
    expected = torch.zeros(2, 6, dtype=torch.bool).scatter_(1, order, True)
    assert torch.equal(lowest_of_rows(scores, count), expected)


@settings(max_examples=60, deadline=None)
@given(few_values)
def test_groups_lose_exactly_their_lowest(values: list[int]) -> None:
    scores = torch.tensor(values).float().view(1, 12)
    mask = lowest_of_groups(scores, Pattern(1, 4))
    for first in range(0, 12, 4):
        group = values[first : first + 4]
        ranked = sorted(range(4), key=lambda i: (group[i], i))
        assert sorted(mask[0, first : first + 4].nonzero().flatten().tolist()) == sorted(ranked[:3])


def test_lowest_of_all_is_one_group() -> None:
    scores = torch.tensor([[5.0, 1.0], [2.0, 9.0]])
    assert lowest(scores, 2).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(("size", "part", "count"), [(100, 0.29, 29), (10, 0.55, 5), (7, 0.5, 3)])
def test_counts_round_down_in_decimal(size: int, part: float, count: int) -> None:
    assert prune_count(size, part) == count


def test_patterns() -> None:
    found = parse_pattern("2:4")
    assert (found.kept, found.group, found.zeros, found.sparsity) == (2, 4, 2, 0.5)
    assert str(found) == "2:4"


@pytest.mark.parametrize("text", ["4:2", "0:4", "4:4", "2-4", "2:4:8", "-1:4", "a:b", ""])
def test_words_that_are_no_pattern(text: str) -> None:
    with pytest.raises(UsageError, match="is no N:M"):
        parse_pattern(text)
