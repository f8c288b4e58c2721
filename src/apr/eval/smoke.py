"""A quick look at whether a model still works: perplexity on Python, and twenty tasks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr.eval.evaluate import evaluate
from apr.eval.perplexity import perplexity, python_sample
from apr.eval.settings import EvalSettings
from apr.hub import resolve
from apr.model.load import load_transformer
from apr.text import load_tokenizer

WINDOW, WINDOWS = 512, 4
# So much worse than the worst input is no longer a model.
BROKEN = 10.0


def smoke_test(
    folder: str | Path, inputs: Sequence[str] = (), tasks: int = 20, *, progress: bool = True
) -> dict[str, Any]:
    """Perplexity of a model and of those it was made of, and its first HumanEval tasks, greedy.

    inputs: references; those written MODEL+ADAPTER are left out. Returns "perplexity" (a list with
    the result first), "tasks", "passed" and "broken": whether its perplexity is not finite or ten
    times the worst input's.
    """
    found = [_perplexity(str(folder))]
    found += [_perplexity(ref) for ref in inputs if "+" not in ref]
    with tempfile.TemporaryDirectory(prefix="apr-smoke-") as out:
        settings = EvalSettings(
            model=str(folder), limit=tasks, out=Path(out) / "run", progress=progress
        )
        result, _ = evaluate(settings)
    own, others = found[0]["perplexity"], [row["perplexity"] for row in found[1:]]
    broken = not math.isfinite(own) or (bool(others) and own > BROKEN * max(others))
    return {
        "perplexity": found,
        "tasks": len(result.per_task),
        "passed": sum(verdict.verdict == "passed" for verdict in result.verdicts),
        "broken": broken,
    }


def _perplexity(ref: str) -> dict[str, Any]:
    path = resolve(ref)
    model, tokenizer = load_transformer(path), load_tokenizer(path)
    window = min(WINDOW, model.config.max_position)
    measured = perplexity(model, tokenizer, python_sample(), window=window, max_windows=WINDOWS)
    return {
        "model": ref,
        "perplexity": measured.perplexity,
        "bits_per_byte": measured.bits_per_byte,
    }
