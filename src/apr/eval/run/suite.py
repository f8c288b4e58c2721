"""Several benchmarks with one model, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apr.common.errors import AprError, UsageError
from apr.eval.benchmarks import ALL, GROUPS
from apr.eval.benchmarks.task import Dates
from apr.eval.generators import Model
from apr.eval.generators.model import find_model
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.evaluate import evaluate
from apr.eval.run.identity import shown_prompts
from apr.eval.run.result import Result


@dataclass(frozen=True)
class SuiteResult:
    """runs: result and folder of each benchmark. left_out: benchmark of `all` -> why not."""

    runs: Sequence[tuple[Result, Path]]
    left_out: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmarks": [{**result.to_json(), "folder": str(path)} for result, path in self.runs],
            "left_out": dict(self.left_out),
        }


def is_suite(benchmark: str) -> bool:
    """Whether `--benchmark` names more than one: a list with commas, or a group."""
    return benchmark in GROUPS or ("," in benchmark and not Path(benchmark).is_file())


def evaluate_suite(settings: EvalSettings, model: Model | None = None) -> SuiteResult:
    """Run or resume each benchmark of `settings.benchmark` in a folder of its own (below
    `settings.out` if given). The model is loaded once, if at all.

    What keeps a benchmark from being run is found out before the first one is. For members of
    `all` (no data here, not for this model) it is a reason to leave them out. Raises UsageError.
    """
    if settings.data is not None:
        raise UsageError("--data with several benchmarks", "run them one by one")
    model = model or find_model(settings)
    chosen: dict[str, EvalSettings] = {}
    left_out: dict[str, str] = {}
    for name, optional in names_of(settings.benchmark).items():
        single = settings_of(settings, name)
        try:
            if optional and name.startswith("bigcodebench") and not settings.python:
                raise UsageError("--python names no interpreter that has its libraries")
            shown_prompts(single, model)
        except AprError as error:
            if not optional:
                raise
            left_out[name] = error.message
        else:
            chosen[name] = single
    if not chosen:
        raise UsageError("--benchmark all: none can be run here", "apr data list shows the data")
    runs = []
    for number, (name, single) in enumerate(chosen.items(), 1):
        if settings.progress:
            print(f"apr: {name} ({number} of {len(chosen)})", file=sys.stderr)
        try:
            runs.append(evaluate(single, model))
        except AprError as error:
            error.message = f"{name}: {error.message}"
            raise
    return SuiteResult(runs, left_out)


def names_of(text: str) -> dict[str, bool]:
    """The benchmarks of a list, each once -> whether it may be left out. Raises UsageError."""
    names: dict[str, bool] = {}
    for part in (part.strip() for part in text.split(",")):
        if not part:
            raise UsageError(f"--benchmark {text}: a name is missing", "names with commas between")
        for name in GROUPS.get(part, (part,)):
            names[name] = names.get(name, True) and part == ALL
    return names


def settings_of(settings: EvalSettings, name: str) -> EvalSettings:
    """For one benchmark: without what only others have, if there are others that do."""
    names = names_of(settings.benchmark)
    has_split = any(other.startswith("bigcodebench") for other in names)
    has_dates = any(other.startswith("livecodebench") for other in names)
    return replace(
        settings,
        benchmark=name,
        out=settings.out / Path(name).name if settings.out else None,
        split=None if has_split and not name.startswith("bigcodebench") else settings.split,
        dates=Dates() if has_dates and not name.startswith("livecodebench") else settings.dates,
    )
