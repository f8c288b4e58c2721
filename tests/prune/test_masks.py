"""Masks of lowest scores against sorting; patterns; counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.common.errors import UsageError
from apr.prune.masks import lowest, lowest_of_groups, lowest_of_rows, prune_count
from apr.prune.prune_settings import parse_pattern

few_values = st.lists(st.integers(0, 3), min_size=12, max_size=12)  # many ties


@settings(max_examples=60, deadline=None)
@given(few_values, st.integers(0, 6))
def test_rows_lose_exactly_their_lowest_the_first_of_equals(values: list[int], count: int) -> None:
    scores = torch.tensor(values).float().view(2, 6)
    order = scores.sort(dim=1, stable=True).indices[:, :count]
    expected = torch.zeros(2, 6, dtype=torch.bool).scatter_(1, order, True)
    assert torch.equal(lowest_of_rows(scores, count), expected)


@pytest.mark.parametrize("name", ["1:4", "2:4", "4:8", "1:2", "5:12"])  # compared, and sorted
@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 3), min_size=48, max_size=48))
def test_groups_lose_exactly_their_lowest(name: str, values: list[int]) -> None:
    pattern = parse_pattern(name)
    mask = lowest_of_groups(torch.tensor(values).float().view(2, 24), pattern).flatten()
    for first in range(0, 48, pattern.group):
        group = values[first : first + pattern.group]
        ranked = sorted(range(pattern.group), key=lambda i: (group[i], i))
        found = mask[first : first + pattern.group].nonzero().flatten().tolist()
        assert found == sorted(ranked[: pattern.zeros])


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
