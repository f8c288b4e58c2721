"""What a run's model was asked, made again from its settings."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import get_args

from apr.common.errors import UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.task import Mode, Newline, Prompt, PromptStyle
from apr.eval.history.read import Run
from apr.eval.strategies.strategy import load_strategy


def prompts_of(run: Run) -> Callable[[str], Prompt]:
    """Task id -> the prompt. Raises UsageError for runs that asked in several turns, and where the
    benchmark's data is not at hand in the run's version.
    """
    known = run.settings
    if known is None or "benchmark" not in known:
        raise UsageError(f"{run.path} is no finished run of apr eval", "let it end first")
    data = Path(known["data"]) if known.get("data") else None
    benchmark = load_benchmark(str(known["benchmark"]), data, split=known.get("split"))
    recorded = run.results["settings"]
    if not benchmark.data_sha256.startswith(recorded.get("data", "?")):
        raise UsageError(f"{run.path} was made with another version of {benchmark.name}'s data")
    how = known.get("asking", {})
    exemplars, templates = how.get("exemplars"), how.get("prompt_template", ())
    strategy = load_strategy(
        how.get("prompt_strategy", "standard"),
        how.get("system", ""),
        Path(exemplars) if exemplars else None,
        tuple(map(Path, templates)),
        how.get("rounds"),
    )
    if strategy.rounds or len(strategy.templates) > 1:
        raise UsageError(f"{run.path}: answers of several turns have no single prompt")
    style = _style(recorded["prompt"])
    return lambda task_id: strategy.prompt(benchmark, benchmark.tasks[task_id], style)


def _style(words: str) -> PromptStyle:
    """The style that calls itself so."""
    flags = (False, True)
    for mode, newline, prefill, merge in product(get_args(Mode), get_args(Newline), flags, flags):
        style = PromptStyle(mode, newline, prefill, merge)
        if style.describe() == words:
            return style
    raise UsageError(f"prompts are put as {words!r}, which this version of apr does not know")
