"""Task arithmetic and its sparse relatives: base + lambda * (merged deltas of the models).

One formula with four switches, which is how MergeKit sees them too: which elements of each delta
are kept (all, the largest, the middle, a random part), how what is kept is scaled up, whether the
models elect a sign for each element, and whether the sum is divided by the weights that took part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from apr.common.errors import UsageError
from apr.kernels.cpu import merging
from apr.merge.operands import (
    Combine,
    Operands,
    from_fp32,
    models_and_base,
    output_arrays,
)
from apr.merge.select import NOTHING, Threshold, largest_deltas

Consensus = Literal["sum", "count"]
Rules = tuple[np.ndarray, np.ndarray, np.ndarray]
RescaleNorm = Literal["density", "l1"]
ELECTIONS = {None: merging.NO_ELECTION, "sum": merging.BY_SUM, "count": merging.BY_COUNT}


@dataclass(frozen=True)
class Keep:
    """Which elements of a delta stay, and what they are multiplied with.

    mode, numbers: as `apr.kernels.cpu.merging` takes them (numbers without the scale).
    """

    mode: int
    numbers: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    scale: float = 1.0

    def rule(self, start: int) -> tuple[float, ...]:
        """The kernel's rule for a block whose first element is `start`."""
        a, b, c, d = self.numbers
        if self.mode == merging.KEEP_MAGNITUDE:
            return (self.scale, a, b - start, c, d - start)
        return (self.scale, a, start, 0.0, 0.0)


def keep_all() -> Keep:
    return Keep(merging.KEEP_ALL)


def keep_largest(x: Operands, density: Sequence[float]) -> list[Keep]:
    """The density * n elements of largest magnitude (TIES, Yadav et al. 2023, Algorithm 1)."""
    ks = [x.count if p >= 1 else max(1, int(p * x.count)) if p > 0 else 0 for p in density]
    return [_between(least, NOTHING) for least in largest_deltas(x, ks)]


def keep_middle(
    x: Operands, density: Sequence[float], gamma: Sequence[float], zero_small_tensors: bool
) -> list[Keep]:
    """All but the gamma * n largest and the smallest, density * n in all (Model Breadcrumbs,
    Davari & Belilovsky 2024, eq. 2).

    zero_small_tensors: MergeKit's behaviour where gamma * n < 1: nothing at all is kept.
    """
    n = x.count
    upper, lower = [], []
    for p, share in zip(density, gamma, strict=True):
        kept = n if p >= 1 else int(p * n)
        # If need be, fewer of the largest are removed to reach the density asked for.
        top = min(int(share * n), n - kept)
        upper.append(top)
        lower.append(0 if zero_small_tensors and top == 0 and kept < n else top + kept)
    least, most = largest_deltas(x, lower), largest_deltas(x, upper)
    return [_between(*pair) for pair in zip(least, most, strict=True)]


def _between(least: Threshold, most: Threshold) -> Keep:
    numbers = (least.value, float(least.cut), most.value, float(most.cut))
    return Keep(merging.KEEP_MAGNITUDE, numbers)


def keep_random(density: float, rescale: bool) -> Keep:
    """Each element with probability density, scaled by 1 / density (DARE, Yu et al. 2023, eq. 3)"""
    if density >= 1:
        return keep_all()
    if density <= 0:
        return _between(NOTHING, NOTHING)
    limit = float(round(density * 2**32))
    return Keep(merging.KEEP_RANDOM, (limit, 0.0, 0.0, 0.0), 1 / density if rescale else 1.0)


def with_l1_norms(x: Operands, keeps: Sequence[Keep]) -> list[Keep]:
    """Scaled so that each delta keeps its L1 norm: MergeKit's rescaling."""
    norms = np.zeros((len(keeps), 2))
    plain = [Keep(keep.mode, keep.numbers) for keep in keeps]
    for start, end in x.blocks:
        raw, inputs = models_and_base(x, start, end)
        bad = merging.delta_norms(*inputs, raw.count, *_rules(x, plain, start), norms)
        raw.check(bad)
    return [
        Keep(keep.mode, keep.numbers, _ratio(before, after))
        for keep, (before, after) in zip(keeps, norms.tolist(), strict=True)
    ]


def _ratio(before: float, after: float) -> float:
    return before / after if min(before, after) >= 1e-7 else 1.0


def _rules(x: Operands, keeps: Sequence[Keep], start: int) -> Rules:
    """(modes, rules, keys) as kernels take them."""
    modes = np.array([keep.mode for keep in keeps], np.int64)
    rules = np.array([keep.rule(start) for keep in keeps], np.float64).reshape(-1, 5)
    keys = np.array([x.key(m) for m in range(len(keeps))], np.uint64)
    return modes, rules, keys


def combine_deltas(
    x: Operands,
    weights: Sequence[float] | np.ndarray,
    keeps: Sequence[Keep],
    consensus: Consensus | None = None,
    normalize: bool = False,
    scale: float = 1.0,
) -> Combine:
    """base + scale * sum of the kept deltas times their weights.

    consensus: per element, only deltas count whose weighted sign is the elected one: that of the
    sum of weighted deltas ("sum", TIES eq. 2) or of most models ("count"); + where they tie.
    normalize: divide by the sum of the weights that took part.
    """
    w = np.asarray(weights, np.float32)

    def combine(start: int, end: int, out: torch.Tensor) -> None:
        raw, inputs = models_and_base(x, start, end)
        bad = merging.merge_deltas(
            *inputs,
            w,
            *_rules(x, keeps, start),
            ELECTIONS[consensus],
            normalize,
            np.float32(scale),
            *output_arrays(out),
            raw.count,
        )
        raw.check(bad)

    return combine


def merge_fp32(
    base: torch.Tensor,
    deltas: torch.Tensor,
    weights: Sequence[float],
    consensus: Consensus | None,
    normalize: bool,
    scale: float,
) -> torch.Tensor:
    """`combine_deltas` on tensors: base (...), deltas (M, ...), fp32."""
    w = torch.tensor(weights, dtype=torch.float32).view(-1, *[1] * base.dim())
    weighted = deltas * w
    # Weights that cancel leave a sum of rounding errors, by which nothing is divided.
    rounding = 1e-6 * float(sum(map(abs, weights)))
    if consensus is None:
        total = float(sum(weights))
        divisor = torch.tensor(total if abs(total) >= max(rounding, 1e-8) else 1.0)
        merged = weighted.sum(0)
    else:
        votes = weighted if consensus == "sum" else weighted.sign()
        elected = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
        agrees = weighted.sign() == elected
        merged = (weighted * agrees).sum(0)
        divisor = (w * agrees).sum(0)
        divisor = torch.where(divisor.abs() > rounding, divisor, 1.0)
    if normalize:
        merged = merged / divisor
    return base + scale * merged


# -- DELLA ---------------------------------------------------------------------------------------


def keep_probabilities(deltas: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Probability to keep each element, by the rank of its magnitude in its row (MAGPRUNE, Deep
    et al. 2024, eq. 1): from density - epsilon for the smallest to density + epsilon.

    deltas: (rows, width). epsilon is half of the paper's, as in MergeKit.
    """
    order = deltas.abs().argsort(dim=-1, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(-1, order, torch.arange(deltas.shape[-1]).expand_as(order))
    last = max(1, deltas.shape[-1] - 1)
    return density - epsilon + ranks.float() / last * (2 * epsilon)


def della(
    x: Operands,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    consensus: Consensus | None,
    normalize: bool,
    scale: float,
    rescale: RescaleNorm | None,
) -> Combine:
    """Deltas thinned by MAGPRUNE, scaled by 1 / probability ("density") or to their L1 norm."""
    for p, e in zip(density, epsilon, strict=True):
        if 0 < p < 1 and not (p - e > 0 and p + e < 1):
            raise UsageError(
                f"density {p} with epsilon {e}", "density +/- epsilon must lie between 0 and 1"
            )

    def thinned(m: int, delta: torch.Tensor, start: int) -> torch.Tensor:
        if density[m] >= 1:
            return delta
        if density[m] <= 0:
            return torch.zeros_like(delta)
        probability = keep_probabilities(delta, density[m], epsilon[m])
        words = np.empty(delta.numel(), np.uint32)
        merging.random_words(x.key(m), start, words)
        uniform = torch.from_numpy(words.astype(np.float32)).view_as(delta) / 2.0**32
        kept = torch.where(uniform < probability, delta, 0.0)
        return kept / probability if rescale == "density" else kept

    scales = [1.0] * len(x.models)
    if rescale == "l1":
        norms = torch.zeros(len(x.models), 2, dtype=torch.float64)
        for start, end in x.blocks:
            _, deltas = x.deltas(start, end)
            for m, delta in enumerate(deltas):
                norms[m, 0] += delta.abs().sum(dtype=torch.float64)
                norms[m, 1] += thinned(m, delta, start).abs().sum(dtype=torch.float64)
        scales = [_ratio(before, after) for before, after in norms.tolist()]

    def block(start: int, end: int) -> torch.Tensor:
        base, deltas = x.deltas(start, end)
        for m in range(len(x.models)):
            deltas[m] = thinned(m, deltas[m], start) * scales[m]
        return merge_fp32(base, deltas, weight, consensus, normalize, scale)

    return from_fp32(x, block)
