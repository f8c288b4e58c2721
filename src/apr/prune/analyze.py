"""What pruning does to each layer of the unpruned model: a table, nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from apr.calibrate.statistics import Hessian
from apr.common.errors import UsageError
from apr.model.transformer import Layer
from apr.prune.allocation import outlier_ratio, owl_sparsities
from apr.prune.driver import PreparedPrune
from apr.prune.layers import walk
from apr.prune.methods import MatrixPruner
from apr.prune.scores import wanda_scores
from apr.prune.shrink import block_influence


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
    stream, settings = prepared.stream, prepared.settings
    assert prepared.calibration is not None
    if settings.shrinks:
        raise UsageError(
            f"--analyze has no meaning with --method {settings.method}",
            "magnitude, wanda or sparsegpt: the table shows what decides about layers as well",
        )
    pruner = MatrixPruner(settings)
    errors: dict[str, float] = {}
    scores: list[torch.Tensor] = []

    def treat(index: int, layer: Layer, names: Sequence[str], found: Hessian) -> None:
        weights: dict[str, torch.Tensor] = {n: layer.get_parameter(f"{n}.weight") for n in names}
        norms, matrix = found.norms(), found.take()
        scores.extend(wanda_scores(weight, norms) for weight in weights.values())
        for name, pruned in pruner(weights, found, settings.sparsity).items():
            errors[name] = output_error(weights[name], pruned, matrix)

    def observe(_: Sequence[str], size: int) -> Hessian:
        return Hessian(size, stream.device)

    rows: list[dict[str, Any]] = []
    sizes = []
    before = stream.embedded(prepared.calibration.ids.flatten())
    for index, x in walk(stream, prepared.calibration.ids, observe, treat, "layer", progress):
        rows.append(
            {
                "layer": index,
                "influence": block_influence(before, x),
                "outliers": outlier_ratio(scores, settings.owl_outlier),
                "error": sum(errors.values()) / len(errors),
                "errors": dict(errors),
            }
        )
        sizes.append(sum(score.numel() for score in scores))
        before = x.clone()
        errors.clear()
        scores.clear()
    owl = owl_sparsities(
        [row["outliers"] for row in rows], sizes, settings.sparsity, settings.owl_spread
    )
    for row, value in zip(rows, owl, strict=True):
        row["owl_sparsity"] = value
    return {**prepared.summary(), "layer_table": rows}
