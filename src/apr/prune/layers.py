"""Pruning the layers of a model one after another, into an open output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TypeVar

import torch

from apr.calibrate.statistics import Norms, Statistic
from apr.calibrate.stream import ModelStream, layer_prefix
from apr.calibrate.walk import Observe, Part, run_layer
from apr.common.progress import counted
from apr.model.transformer import Layer
from apr.prune.allocation import MagnitudeCounts, at_most, outlier_ratio, owl_sparsities
from apr.prune.methods import MatrixPruner, statistic_for
from apr.prune.output import PrunedOutput
from apr.prune.scores import prune_count, wanda_scores
from apr.prune.settings import PruneSettings

# Tokens a layer runs over at a time: enough for fast products, few enough for the cache.
BATCH_TOKENS = 2048

S = TypeVar("S", bound=Statistic)
# (index, layer, names of matrices with one input, statistic of that input)
TreatLayer = Callable[[int, Layer, Sequence[str], S], None]


def prune_layers(
    stream: ModelStream,
    settings: PruneSettings,
    ids: torch.Tensor | None,
    pruner: MatrixPruner,
    output: PrunedOutput,
    progress: bool,
) -> Iterator[float]:
    """Prune and write all matrices; the sparsity of each layer as it is done.

    ids: calibration, int64 (sequences, tokens); None for methods that need none.
    """
    if settings.allocation == "global":
        yield from _prune_globally(stream, settings.sparsity, output)
        return
    sparsities = [settings.sparsity] * stream.config.num_layers
    if settings.allocation == "owl":
        assert ids is not None
        sparsities = _owl(stream, settings, ids, progress)
    if settings.method == "magnitude":
        for index in counted(range(len(sparsities)), "pruning layer", progress):
            done = _Share(output)
            for name in stream.matrices(index):
                weight = stream.tensor(name).to(stream.device)
                output.put(name, pruner({name: weight}, None, sparsities[index])[name])
            yield done.sparsity()
        return
    assert ids is not None

    def treat(index: int, layer: Layer, names: Sequence[str], statistic: Statistic) -> None:
        prefix = layer_prefix(index)
        weights = {name: stream.tensor(f"{prefix}{name}.weight") for name in names}
        on = {f"{prefix}{name}.weight": w.to(stream.device) for name, w in weights.items()}
        pruned = pruner(on, statistic, sparsities[index])
        for name in names:
            value = pruned[f"{prefix}{name}.weight"]
            output.put(f"{prefix}{name}.weight", value)
            layer.get_parameter(f"{name}.weight").copy_(value)

    def observe(_: Sequence[str], size: int) -> Statistic:
        return statistic_for(settings, size, stream.device)

    done = _Share(output)
    for _ in walk(stream, ids, observe, treat, "pruning layer", progress):
        yield done.sparsity()
        done = _Share(output)


class _Share:
    """Zeros among what was written since."""

    def __init__(self, output: PrunedOutput) -> None:
        self._output, self._start = output, (output.zeros, output.parameters)

    def sparsity(self) -> float:
        zeros, size = self._output.zeros, self._output.parameters
        return (zeros - self._start[0]) / (size - self._start[1])


def walk(
    stream: ModelStream,
    ids: torch.Tensor,
    observe: Observe[S],
    treat: TreatLayer[S],
    label: str,
    progress: bool,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Run all layers over sequences, one layer in memory at a time; (index, its outputs).

    ids: int64 (sequences, tokens). observe, treat: as in `run_layer`. The outputs (tokens of all
    sequences, C) are overwritten by the next layer's.
    """
    x, parts = _parts(stream, ids)
    for index in counted(range(stream.config.num_layers), label, progress):
        layer = stream.layer(index)

        def treat_here(
            names: Sequence[str], found: S, index: int = index, layer: Layer = layer
        ) -> None:
            treat(index, layer, names, found)

        run_layer(layer, parts, stream.slides(index), observe, treat_here)
        del layer, treat_here
        yield index, x


@torch.no_grad()
def _parts(stream: ModelStream, ids: torch.Tensor) -> tuple[torch.Tensor, list[Part]]:
    """The first layer's input, and views of it of about BATCH_TOKENS."""
    count, length = ids.shape
    each = max(1, BATCH_TOKENS // length)
    sizes = {min(each, count - first) for first in range(0, count, each)}
    context = {n * length: (stream.tables(n, length), stream.attend(n, length)) for n in sizes}
    x = stream.embedded(ids.flatten())
    return x, [Part(part, *context[len(part)]) for part in x.split(each * length)]


def _owl(
    stream: ModelStream, settings: PruneSettings, ids: torch.Tensor, progress: bool
) -> list[float]:
    """Sparsities from the outliers of the unpruned model's layers."""
    scores: list[torch.Tensor] = []

    def treat(index: int, layer: Layer, names: Sequence[str], norms: Norms) -> None:
        # The scale of a layer's norms changes no ratio to the mean.
        found = norms.norms()
        scores.extend(wanda_scores(layer.get_parameter(f"{n}.weight"), found) for n in names)

    def observe(_: Sequence[str], size: int) -> Norms:
        return Norms(size, stream.device)

    outliers, sizes = [], []
    for _ in walk(stream, ids, observe, treat, "outliers, layer", progress):
        outliers.append(outlier_ratio(scores, settings.owl_outlier))
        sizes.append(sum(score.numel() for score in scores))
        scores.clear()
    return owl_sparsities(outliers, sizes, settings.sparsity, settings.owl_spread)


def _prune_globally(stream: ModelStream, sparsity: float, output: PrunedOutput) -> Iterator[float]:
    """Magnitude pruning with one threshold for all matrices."""
    layers = [stream.matrices(index) for index in range(stream.config.num_layers)]
    names = [name for matrices in layers for name in matrices]
    count = prune_count(sum(prod(stream.shapes[name]) for name in names), sparsity)
    counts, bits, below = MagnitudeCounts(), 0, 0
    for _ in range(2):
        for name in names:
            counts.add(stream.tensor(name))
        bits, below = counts.choose(count)
    ties = count - below
    for matrices in layers:
        done = _Share(output)
        for name in matrices:
            weight = stream.tensor(name)
            mask, used = at_most(weight, bits, ties)
            ties -= used
            output.put(name, weight.masked_fill(mask, 0))
        yield done.sparsity()
