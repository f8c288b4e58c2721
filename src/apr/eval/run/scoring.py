"""pass@k and its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from apr.common.errors import UsageError

RESAMPLES = 2000


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples passes, c of n having passed.

    Chen et al. 2021 (arXiv:2107.03374) eq. 1, 1 - C(n-c, k) / C(n, k), as the product of figure 3,
    which neither overflows nor cancels. Raises UsageError when n < k.
    """
    if k < 1:
        raise UsageError(f"k is {k}", "pass@k needs k of 1 or more")
    if n < k:
        raise UsageError(
            f"pass@{k} needs {k} samples a task and there are {n}", "more samples, or a smaller k"
        )
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples passed")
    if n - c < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def benchmark_pass_at_k(counts: Mapping[str, tuple[int, int]], k: int) -> float:
    """Mean over tasks. counts: task -> (samples, passed)."""
    return float(np.mean([pass_at_k(n, c, k) for n, c in counts.values()]))


def confidence_interval(
    counts: Mapping[str, tuple[int, int]], k: int, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval over tasks, as fractions."""
    return mean_interval([pass_at_k(n, c, k) for n, c in counts.values()], level, seed)


def mean_interval(
    values: Sequence[float], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the mean (Efron 1979; percentiles), one value a task."""
    found = np.array(values)
    draws = np.random.default_rng(seed).integers(0, len(found), (RESAMPLES, len(found)))
    means = found[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
