"""What pruning does to each layer of the unpruned model: a table, nothing written."""

from __future__ import annotations

from typing import Any

import torch

from apr.calibrate.statistics import Hessian
from apr.calibrate.walk import SharedInput, walk
from apr.common.errors import UsageError
from apr.prune.masks import wanda_scores
from apr.prune.matrices import outlier_ratio, owl_sparsities
from apr.prune.prune_run import PreparedPrune
from apr.prune.smaller import block_influence


def output_error(weight: torch.Tensor, pruned: torch.Tensor, hessian: torch.Tensor) -> float:
    """||W X - W' X||^2 / ||W X||^2 from H = X X^T: what a layer's outputs lose, 0 to about 1."""
    w, lost = weight.float(), weight.float() - pruned.float()
    total = float(((w @ hessian) * w).sum())
    return float(((lost @ hessian) * lost).sum()) / total if total else 0.0


def analyze(prepared: PreparedPrune, *, progress: bool = True) -> dict[str, Any]:
    """For each layer: the relative error of each matrix's outputs when it alone is pruned as the
    settings say (all else unpruned), its part of outliers (OWL), its block influence (ShortGPT),
    and the sparsity OWL would give it.

    Raises AprError when activations are not finite.
    """
    stream, settings, method = prepared.stream, prepared.settings, prepared.method
    assert prepared.calibration is not None
    if method.matrices is None:
        raise UsageError(
            f"`analyze` has no meaning with `method` {settings.method}",
            "magnitude, wanda or sparsegpt: the table shows what decides about layers as well",
        )
    errors: dict[str, float] = {}
    scores: list[torch.Tensor] = []
    rows: list[dict[str, Any]] = []
    sizes = []
    ids = prepared.calibration.ids
    before = stream.embedded(ids.flatten())
    for stop in walk(stream, ids, Hessian, "layer", progress):
        if isinstance(stop, SharedInput):
            weights = dict(zip(stop.names, stop.weights().values(), strict=True))
            with stop.named_errors():
                norms, hessian = stop.statistic.norms(), stop.statistic.take()
                found = method.matrices(
                    weights, stop.statistic, settings.sparsity, settings.pattern, **prepared.options
                )
            scores.extend(wanda_scores(weight, norms) for weight in weights.values())
            for name, pruned in found.weights.items():
                errors[name] = output_error(weights[name], pruned, hessian)
            continue
        rows.append(
            {
                "layer": stop.index,
                "influence": block_influence(before, stop.outputs),
                "outliers": outlier_ratio(scores, settings.owl_outlier),
                "error": sum(errors.values()) / len(errors),
                "errors": dict(errors),
            }
        )
        sizes.append(sum(score.numel() for score in scores))
        before = stop.outputs.clone()
        errors.clear()
        scores.clear()
    owl = owl_sparsities(
        [row["outliers"] for row in rows], sizes, settings.sparsity, settings.owl_spread
    )
    for row, value in zip(rows, owl, strict=True):
        row["owl_sparsity"] = value
    return {**prepared.summary(), "layer_table": rows}
