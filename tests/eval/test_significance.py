"""Tests of differences against scipy 1.17.1 and statsmodels 0.15.0 (values stored), brute force."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.eval.history.compare import FINEST, holm, mcnemar, permutation_p
from apr.eval.run.result import mean_interval

# (fixed, broken) -> statsmodels mcnemar([[5, fixed], [broken, 9]], exact=True).pvalue, which
# scipy.stats.binomtest(fixed, fixed + broken, 0.5).pvalue equals to the last digit.
MCNEMAR = {
    (1, 0): 1.0,
    (3, 0): 0.25,
    (5, 1): 0.21875,
    (1, 6): 0.125,
    (10, 10): 1.0,
    (11, 10): 1.0,
    (12, 25): 0.04703102743951604,
    (40, 17): 0.0032015437674503813,
    (0, 30): 1.862645149230957e-09,
    (200, 260): 0.0058839224731039984,
    (123, 45): 1.4454317999387014e-09,
}
# Tenths and the like: scipy.stats.permutation_test(permutation_type="samples", n_resamples=inf).
PERMUTATION = [
    (5, [3, -5, -4, -3, -4, 3, 4, 1], 0.703125),
    (10, [-10, -9, -4, -1, 3, 0, -5, -7, 4, 5, -10, -8], 0.0595703125),
    (4, [0, -1, 3, 0, -1, -1, 1, 1, -3, 2, 2, 4, 3, -2, -2, 1], 0.4691162109375),
]
# statsmodels.stats.multitest.multipletests(method="holm")
HOLM = [
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
    ([0.5, 0.9, 0.2], [1.0, 1.0, 0.6]),
    ([0.001, 0.001, 0.02, 0.6, 0.049], [0.005, 0.005, 0.06, 0.6, 0.098]),
]
# scipy.stats.bootstrap(method="percentile", n_resamples=200000)
BOOTSTRAP = [
    ([1] * 14 + [-1] * 5 + [0] * 145, (0.006098, 0.109756)),
    ([0.3] * 30 + [-0.1] * 25 + [0] * 60 + [-0.5] * 10 + [0.9] * 4, (-0.004651, 0.084496)),
]
ninths = st.lists(st.integers(-9, 9).map(lambda i: Fraction(i, 9)), min_size=1, max_size=9)


@pytest.mark.parametrize("counts", MCNEMAR)
def test_mcnemar_is_statsmodels(counts: tuple[int, int]) -> None:
    assert mcnemar(*counts) == pytest.approx(MCNEMAR[counts], rel=1e-12)
    assert mcnemar(*reversed(counts)) == mcnemar(*counts)


def test_mcnemar_of_no_change() -> None:
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(("scale", "steps", "wanted"), PERMUTATION)
def test_permutation_is_scipy(scale: int, steps: list[int], wanted: float) -> None:
    assert permutation_p([Fraction(s, scale) for s in steps]) == pytest.approx(wanted, rel=1e-12)


@given(ninths)
def test_permutation_counts_every_pattern_of_signs(differences: list[Fraction]) -> None:
    patterns = list(product((1, -1), repeat=len(differences)))
    sums = [sum(s * d for s, d in zip(p, differences, strict=True)) for p in patterns]
    wanted = sum(abs(s) >= abs(sum(differences)) for s in sums) / len(patterns)
    assert permutation_p(differences) == pytest.approx(wanted, abs=1e-12)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_permutation_of_one_sample_a_task_is_mcnemar(fixed: int, broken: int, same: int) -> None:
    differences = [Fraction(1)] * fixed + [Fraction(-1)] * broken + [Fraction(0)] * (same + 1)
    assert permutation_p(differences) == pytest.approx(mcnemar(fixed, broken), abs=1e-12)


def test_rates_without_a_small_common_denominator_are_rounded() -> None:
    """A mean of these of zero is not doubted, and of nearly one is, as with exact rates."""
    primes = [101, 103, 107, 109, 113, 127, 131, 137, 139, 149]
    assert FINEST < 101 * 103
    ups = [Fraction(p - 1, p) for p in primes]
    assert permutation_p(ups) == pytest.approx(2 / 2**10, abs=1e-12)
    exact = [Fraction(i + 1, p) for i, p in enumerate(primes[:8])]
    sums = [
        abs(sum(s * d for s, d in zip(signs, exact, strict=True)))
        for signs in product((1, -1), repeat=8)
    ]
    observed = exact[:4] + [-d for d in exact[4:]]
    wanted = sum(s >= abs(sum(observed)) for s in sums) / 2**8
    assert permutation_p(observed) == pytest.approx(wanted, abs=4 / 2**8)


@pytest.mark.parametrize(("values", "wanted"), HOLM)
def test_holm_is_statsmodels(values: list[float], wanted: list[float]) -> None:
    assert holm(values) == pytest.approx(wanted, rel=1e-12)


def test_holm_of_nothing() -> None:
    assert holm([]) == []


@pytest.mark.parametrize(("differences", "wanted"), BOOTSTRAP)
def test_interval_is_scipys(differences: list[float], wanted: tuple[float, float]) -> None:
    """2000 draws place a 2.5 % quantile of a mean with this spread to about 0.004."""
    assert mean_interval(differences) == pytest.approx(wanted, abs=0.008)
