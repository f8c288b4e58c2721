"""Whether two runs on the same tasks differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

RESAMPLES = 10_000


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947): of the tasks on which two runs differ, half
    would go either way by chance. fixed, broken: how many went each way.
    """
    n, least = fixed + broken, min(fixed, broken)
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(comb(n, i) for i in range(least + 1)) / 2**n)


def paired_permutation(a: Sequence[float], b: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of the mean difference of paired values, by random changes of sign.

    With the value itself among the draws, so it is never 0 (Phipson & Smyth 2010).
    """
    differences = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    seen = abs(differences.sum())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (RESAMPLES, len(differences)))
    as_far = np.count_nonzero(np.abs(signs @ differences) >= seen - 1e-12)
    return float((as_far + 1) / (RESAMPLES + 1))


def paired_interval(
    a: Sequence[float], b: Sequence[float], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval over tasks of mean(b) - mean(a) (Efron 1979; percentiles)."""
    differences = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
