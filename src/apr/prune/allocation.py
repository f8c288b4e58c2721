"""How much to take from each layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from apr.common.errors import UsageError


def outlier_ratio(scores: Iterable[torch.Tensor], times: float) -> float:
    """Part of a layer's scores above `times` their mean.

    OWL's layerwise outlier distribution (Yin et al. 2024, arXiv:2310.05175, section 3.2); scores:
    Wanda's, of all matrices of the layer.
    """
    found = list(scores)
    size = sum(score.numel() for score in found)
    mean = sum(float(score.double().sum()) for score in found) / size
    return sum(int((score > times * mean).sum()) for score in found) / size


def owl_sparsities(
    outliers: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float
) -> list[float]:
    """Sparsity of each layer: least where most outliers are, at most 2 * spread apart.

    outliers: of each layer. sizes: its weights, all layers of the papers' models being equal; the
    mean weighted by them is `sparsity`. arXiv:2310.05175, section 3.3. Raises UsageError when a
    layer would have none or all of its weights left.
    """
    low, high = min(outliers), max(outliers)
    scaled = [(x - low) / (high - low) * 2 * spread if high > low else 0.0 for x in outliers]
    mean = sum(x * n for x, n in zip(scaled, sizes, strict=True)) / sum(sizes)
    found = [sparsity + mean - x for x in scaled]
    for layer, value in enumerate(found):
        if not 0 < value < 1:
            raise UsageError(
                f"--allocation owl gives layer {layer} a sparsity of {value:.3f}",
                "a smaller --owl-spread",
            )
    return found


class MagnitudeCounts:
    """Finds one threshold for the absolute values of many tensors without keeping them.

    Absolute fp32 values are ordered as their bits are, so two passes over the tensors, 16 bits
    each, find a value exactly.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(1 << 16, dtype=torch.int64)
        self._upper: int | None = None
        self._below = 0

    def add(self, weight: torch.Tensor) -> None:
        bits = magnitude_bits(weight)
        if self._upper is None:
            places = bits >> 16
        else:
            places = bits[bits >> 16 == self._upper] & 0xFFFF
        self._counts += torch.bincount(places, minlength=1 << 16)

    def choose(self, count: int) -> tuple[int, int]:
        """(upper or all 32 bits of the count-th smallest value, how many are surely smaller).

        The first call begins the second pass: `add` all tensors again.
        """
        sums = self._counts.cumsum(0) + self._below
        place = int(torch.searchsorted(sums, count))
        below = int(sums[place]) - int(self._counts[place])
        if self._upper is None:
            self._upper, self._below = place, below
            self._counts = torch.zeros_like(self._counts)
            return place, below
        return self._upper << 16 | place, below


def magnitude_bits(weight: torch.Tensor) -> torch.Tensor:
    """The bits of absolute fp32 values, flat, int64: ordered as the values are."""
    return weight.float().abs().flatten().view(torch.int32).long()


def at_most(weight: torch.Tensor, bits: int, ties: int) -> tuple[torch.Tensor, int]:
    """(mask of values below `bits` and of the first `ties` equal to it, how many equal ones)."""
    found = magnitude_bits(weight)
    equal = found == bits
    equal &= equal.cumsum(0) <= ties
    return ((found < bits) | equal).view(weight.shape), int(equal.sum())
