"""A quick look at whether a model still works: perplexity on Python, and twenty tasks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr.calibrate.perplexity import load_model, measure
from apr.calibrate.texts import BUILTIN, load_text
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.evaluate import evaluate

WINDOW = 512
# So much worse than the worst input is no longer a model.
BROKEN = 10.0


def smoke_test(
    folder: str | Path, inputs: Sequence[str] = (), tasks: int = 20, *, progress: bool = True
) -> dict[str, Any]:
    """Perplexity of a model and of those it was made of, and its first HumanEval tasks, greedy.

    inputs: references of models (not of adapters). Returns "perplexity" (a list with the result
    first; on apr's own Python sample, bf16, None where not finite), "tasks", "passed" and
    "verdict": "broken" where the result's perplexity is not finite or above ten times the worst
    input's, else "ok".
    """
    found = [_perplexity(str(folder))]
    found += [_perplexity(ref) for ref in inputs]
    with tempfile.TemporaryDirectory(prefix="apr-smoke-") as out:
        settings = EvalSettings(
            model=str(folder), limit=tasks, out=Path(out) / "run", progress=progress
        )
        result, _ = evaluate(settings)
    own, *others = [row["perplexity"] for row in found]
    worst = max((value for value in others if value is not None), default=None)
    broken = own is None or (worst is not None and own > BROKEN * worst)
    return {
        "perplexity": found,
        "tasks": len(result.per_task),
        "passed": sum(verdict.verdict == "passed" for verdict in result.verdicts),
        "verdict": "broken" if broken else "ok",
    }


def _perplexity(ref: str) -> dict[str, Any]:
    model = load_model(ref)
    window = min(WINDOW, model.context)
    found = measure(model, load_text(BUILTIN).text, window=window).to_json()
    return {"model": ref, **{name: found[name] for name in ("perplexity", "bits_per_byte")}}
