"""What pruning does: to each layer of the unpruned model, before anything is written, and to the
whole model's perplexity and speed, before against after.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from apr.calibrate import perplexity
from apr.calibrate.statistics import Hessian
from apr.calibrate.texts import WIKITEXT, load_text
from apr.calibrate.walk import SharedInput, walk
from apr.common.errors import UsageError
from apr.engine.runners.runtime import load_runtime
from apr.engine.throughput import PREFILL_TOKENS, measure
from apr.hub import resolve
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
    """For each layer that is pruned: the relative error of each matrix's outputs when it alone is
    pruned as the settings say (all else unpruned), its part of outliers (OWL), its block influence
    (ShortGPT), and the sparsity OWL would give it.

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
            every = zip(stop.names, stop.weights().items(), strict=True)
            weights = {
                short: weight
                for short, (name, weight) in every
                if settings.chooses(stop.index, name)
            }
            if not weights:
                continue
            with stop.named_errors():
                norms, hessian = stop.statistic.norms(), stop.statistic.take()
                found = method.matrices(
                    weights, stop.statistic, settings.part, settings.pattern, **prepared.options
                )
            scores.extend(wanda_scores(weight, norms) for weight in weights.values())
            for name, pruned in found.weights.items():
                errors[name] = output_error(weights[name], pruned, hessian)
            continue
        if not errors:  # nothing is pruned here
            before = stop.outputs.clone()
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
        [row["outliers"] for row in rows], sizes, settings.part, settings.owl_spread
    )
    for row, value in zip(rows, owl, strict=True):
        row["owl_sparsity"] = value
    return {**prepared.summary(), "layer_table": rows}


WINDOW, WINDOWS, REPEATS = 512, 64, 5
# Prompts of a measurement are made of ids below this.
_LEAST_VOCABULARY = 1000


class Verification:
    """Texts to measure on: as `apr eval --perplexity` takes them, read when this is made.

    data: WikiText-2's file. Raises UsageError for texts that cannot be read.
    """

    def __init__(self, texts: tuple[str, ...], data: Path | None = None) -> None:
        self.texts = [load_text(name, data if name == WIKITEXT else None) for name in texts]

    def compare(
        self, before: str, after: str | Path, *, offline: bool = False
    ) -> list[dict[str, Any]]:
        """A row for each text; perplexities are None where not finite.

        bf16, at most WINDOWS windows of WINDOW tokens. Models are loaded one after the other.
        """
        old, new = self._measure(str(before), offline), self._measure(str(after), offline)
        return [
            {"text": text.name, "before": was, "after": now, "change": _change(was, now)}
            for text, was, now in zip(self.texts, old, new, strict=True)
        ]

    def _measure(self, ref: str, offline: bool) -> list[float | None]:
        model = perplexity.load_model(ref, offline=offline)
        window = min(WINDOW, model.context)
        found = [
            perplexity.measure(model, t.text, window=window, max_windows=WINDOWS)
            for t in self.texts
        ]
        return [row.to_json()["perplexity"] for row in found]


def compare_speed(before: str, after: str | Path, *, offline: bool = False) -> list[dict[str, Any]]:
    """Tokens per second of both models (medians), and their ratio, as `apr bench` measures them.

    Both are in memory, and their repeats take turns, so that a busy machine slows both. Empty for
    models with too short a context or too few tokens to be timed.
    """
    runtimes = [load_runtime(resolve(str(ref), offline=offline)) for ref in (before, after)]
    if any(
        r.context <= PREFILL_TOKENS or r.config.vocab_size < _LEAST_VOCABULARY for r in runtimes
    ):
        return []
    rounds = [[measure(runtime, 1, 1) for runtime in runtimes] for _ in range(REPEATS)]
    rows = []
    for test in range(2):  # prefill, one stream
        rates = [[side[test].tok_per_sec for side in pair] for pair in rounds]
        old, new = (sorted(side)[REPEATS // 2] for side in zip(*rates, strict=True))
        ratios = sorted(now / was for was, now in rates)
        rows.append(
            {
                "test": rounds[0][0][test].name,
                "before": old,
                "after": new,
                "ratio": ratios[REPEATS // 2],
            }
        )
    return rows


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after / before - 1
