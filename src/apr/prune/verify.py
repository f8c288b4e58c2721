"""Perplexity before and after pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apr.eval.perplexity import load_model, measure
from apr.eval.texts import WIKITEXT, load_text

WINDOW, WINDOWS = 512, 64


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
        model = load_model(ref, offline=offline)
        window = min(WINDOW, model.context)
        found = [measure(model, t.text, window=window, max_windows=WINDOWS) for t in self.texts]
        return [row.to_json()["perplexity"] for row in found]


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after / before - 1
