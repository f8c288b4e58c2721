"""Benchmark scores of a run: the model that training began with, and the one that it made.

OUT/scores/before/BENCHMARK, OUT/scores/after/BENCHMARK: an evaluation each, as `apr eval` makes it;
one that was stopped goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.engine.request import Sampling
from apr.eval.run.request import shown_prompts
from apr.eval.run.result import Result
from apr.eval.run.settings import EvalSettings
from apr.eval.run.suite import evaluate_suite, names_of, settings_of
from apr.train.request import FinetuneRequest
from apr.train.run_folder import SCORES

# What several samples are drawn with, as for HumanEval's pass@10 elsewhere.
SAMPLING = Sampling(temperature=0.8, top_p=0.95)


@dataclass(frozen=True)
class ScoreRequest:
    """benchmark: one or several, as `apr eval --benchmark`. samples: a task's; one is greedy.
    limit: only the first tasks.
    """

    benchmark: str
    samples: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        for flag, value in (("samples", self.samples), ("limit", self.limit)):
            if value is not None and value < 1:
                raise UsageError(f"--benchmark-{flag} is {value}", "it must be 1 or more")


def check_scores(request: FinetuneRequest, scores: ScoreRequest, *, offline: bool = False) -> None:
    """Raises UsageError for what cannot be scored, before anything is trained."""
    settings = _before(request, scores, Path(SCORES), offline)
    for name in names_of(scores.benchmark):
        shown_prompts(settings_of(settings, name))


def score_run(
    request: FinetuneRequest,
    scores: ScoreRequest,
    folder: Path,
    *,
    offline: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """For each benchmark: name, tasks, samples, and pass@k with its interval before and after.

    folder: of a complete run.
    """
    before = replace(_before(request, scores, folder / SCORES, offline), progress=progress)
    after = replace(before, out=folder / SCORES / "after")
    if request.method == "full":
        after = replace(after, model=str(folder), adapter=None)
    else:
        after = replace(after, adapter=str(folder))
    pairs = zip(evaluate_suite(before).runs, evaluate_suite(after).runs, strict=True)
    return [
        {
            "benchmark": first.benchmark,
            "tasks": len(first.per_task),
            "samples": scores.samples,
            "before": {**_passes(first), "folder": str(here)},
            "after": {**_passes(second), "folder": str(there)},
        }
        for (first, here), (second, there) in pairs
    ]


def _before(
    request: FinetuneRequest, scores: ScoreRequest, folder: Path, offline: bool
) -> EvalSettings:
    return EvalSettings(
        model=request.model,
        adapter=None if request.adapter is None else str(request.adapter),
        benchmark=scores.benchmark,
        n_samples=scores.samples,
        sampling=SAMPLING if scores.samples > 1 else Sampling(),
        limit=scores.limit,
        out=folder / "before",
        fim_tokens=request.fim.tokens,
        offline=offline,
    )


def _passes(result: Result) -> dict[str, list[float]]:
    """pass@k -> [score, low, high], the last two its 95 % interval."""
    return {f"pass@{k}": list(score) for k, score in result.passes.items()}
