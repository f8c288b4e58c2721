"""A model before and after pruning: perplexity, and speed where shapes have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apr.calibrate import perplexity
from apr.calibrate.texts import WIKITEXT, load_text
from apr.engine.runners.runtime import load_runtime
from apr.engine.throughput import PREFILL_TOKENS, measure
from apr.hub import resolve

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
