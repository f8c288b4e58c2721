"""Weights of a model's matrices to zero: how much in each layer, and layer after layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch

from apr.calibrate.model_stream import ModelStream
from apr.calibrate.statistics import Norms, Statistic
from apr.calibrate.walk import LayerDone, SharedInput, walk
from apr.common.errors import UsageError
from apr.common.progress import counted
from apr.prune.masks import prune_count, wanda_scores
from apr.prune.prune_methods import STATISTICS, Method
from apr.prune.prune_settings import Pattern, PruneSettings
from apr.prune.pruned_folder import PrunedFolder


def chosen_matrices(stream: ModelStream, settings: PruneSettings, index: int) -> list[str]:
    """Names of the matrices of a layer that are to be pruned."""
    return [name for name in stream.matrices(index) if settings.chooses(index, name)]


def zero_weights(
    stream: ModelStream,
    method: Method,
    settings: PruneSettings,
    options: Mapping[str, Any],
    ids: torch.Tensor | None,
    output: PrunedFolder,
    progress: bool,
) -> Iterator[float]:
    """Prune and write all matrices; the sparsity of each layer as it is done.

    options: the method's own. ids: calibration, int64 (sequences, tokens); None where nothing asks
    for it.
    """
    output.begin(stream.config)
    layers = range(stream.config.num_layers)
    if settings.allocation == "global":
        yield from _one_threshold(stream, settings, output)
        return
    sparsities = dict.fromkeys(layers, settings.part)
    if settings.allocation == "owl":
        assert ids is not None
        sparsities = _owl(stream, settings, ids, progress)
    assert method.matrices is not None
    if method.asks == "nothing":
        for index in counted(layers, "pruning layer", progress):
            for name in chosen_matrices(stream, settings, index):
                weight = {name: stream.tensor(name).to(stream.device)}
                amount = (sparsities[index], settings.pattern)
                output.put(name, method.matrices(weight, None, *amount, **options).weights[name])
            yield output.share()
        return
    assert ids is not None
    for stop in walk(stream, ids, STATISTICS[method.asks], "pruning layer", progress):
        if isinstance(stop, LayerDone):
            yield output.share()
        else:
            running = {n: w for n, w in stop.weights().items() if settings.chooses(stop.index, n)}
            if running:
                amount = (sparsities[stop.index], settings.pattern)
                _prune_shared(stream, stop, running, method, amount, options, output)


def _prune_shared(
    stream: ModelStream,
    stop: SharedInput[Statistic],
    running: Mapping[str, torch.Tensor],
    method: Method,
    amount: tuple[float, Pattern | None],
    options: Mapping[str, Any],
    output: PrunedFolder,
) -> None:
    """Prune matrices of one input, in the file's precision, in the output and the layer.

    running: those the layer runs with, by their names in the model.
    """
    assert method.matrices is not None
    stored = {name: stream.tensor(name).to(stream.device) for name in running}
    with stop.named_errors():
        found = method.matrices(stored, stop.statistic, *amount, **options)
    for name, weight in running.items():
        output.put(name, found.weights[name])
        weight.copy_(found.weights[name])
    if found.raised is not None:
        output.damping |= dict.fromkeys(running, found.raised)


def _owl(
    stream: ModelStream, settings: PruneSettings, ids: torch.Tensor, progress: bool
) -> dict[int, float]:
    """Sparsities from the outliers of the unpruned model's layers, of those that are pruned."""
    scores: list[torch.Tensor] = []
    layers, outliers, sizes = [], [], []
    for stop in walk(stream, ids, Norms, "outliers, layer", progress):
        if isinstance(stop, SharedInput):
            # The scale of a layer's norms changes no ratio to the mean.
            norms = stop.statistic.norms()
            scores.extend(
                wanda_scores(weight, norms)
                for name, weight in stop.weights().items()
                if settings.chooses(stop.index, name)
            )
            continue
        if not scores:
            continue
        layers.append(stop.index)
        outliers.append(outlier_ratio(scores, settings.owl_outlier))
        sizes.append(sum(score.numel() for score in scores))
        scores.clear()
    found = owl_sparsities(outliers, sizes, settings.part, settings.owl_spread)
    return dict(zip(layers, found, strict=True))


def _one_threshold(
    stream: ModelStream, settings: PruneSettings, output: PrunedFolder
) -> Iterator[float]:
    """Magnitude pruning with one threshold for all matrices."""
    layers = [chosen_matrices(stream, settings, i) for i in range(stream.config.num_layers)]
    names = [name for matrices in layers for name in matrices]
    count = prune_count(sum(prod(stream.shapes[name]) for name in names), settings.part)
    counts, bits, below = MagnitudeCounts(), 0, 0
    for _ in range(2):
        for name in names:
            counts.add(stream.tensor(name))
        bits, below = counts.choose(count)
    ties = count - below
    for matrices in layers:
        for name in matrices:
            weight = stream.tensor(name)
            mask, used = at_most(weight, bits, ties)
            ties -= used
            output.put(name, weight.masked_fill(mask, 0))
        yield output.share()


# -- how much in each layer ----------------------------------------------------------------------


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
                f"`allocation` owl gives layer {layer} a sparsity of {value:.3f}",
                "a smaller `owl_spread`",
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
