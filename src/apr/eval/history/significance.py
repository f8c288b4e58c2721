"""Whether two runs on the same tasks differ by more than chance. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb, lcm

import numpy as np

FINEST = 2520  # parts of a pass: exact for every mix of 1 to 10 samples a task


def mcnemar(fixed: int, broken: int) -> float:
    """McNemar's exact test, two-sided: the chance that `fixed + broken` fair coins fall at least
    as unevenly. 1 when nothing changed. McNemar 1947; exact form as in Agresti 2002, 10.1.4.
    """
    n = fixed + broken
    tail = sum(comb(n, i) for i in range(min(fixed, broken) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def permutation_p(differences: Sequence[Fraction]) -> float:
    """Two-sided paired permutation test of a mean of zero; one difference of pass rates a task.

    If the runs do not differ, each task's difference is as likely to have the other sign. All
    sign patterns are counted, so the result is exact, and for one sample a task it is McNemar's
    test. Rates with a common denominator above FINEST are rounded to that.
    Fisher 1935, The Design of Experiments, section 21; counted as Pagano and Tritchler 1983 do.
    """
    scale = min(lcm(*(d.denominator for d in differences)), FINEST)
    steps = [round(d * scale) for d in differences]
    chance = np.ones(1)  # of each sum, from the lowest to the highest, over the tasks so far
    for step in filter(None, map(abs, steps)):
        wider = np.zeros(len(chance) + 2 * step)
        wider[: len(chance)] += chance / 2
        wider[2 * step :] += chance / 2
        chance = wider
    reach = len(chance) // 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(sum(steps))
    return min(1.0, float(chance[far].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several, in the order given (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted
