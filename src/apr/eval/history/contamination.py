"""What it means for a score that a model saw the benchmark before it was asked.

What the model was trained on decides: `apr data decontaminate` says which tasks are in it, and
their score stands beside that of the others. Where the training data is not known, there are
signs: samples that repeat a reference solution (run/suspect.py), and LiveCodeBench's dates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.eval.history.read import Run
from apr.eval.run.result import benchmark_pass_at_k, confidence_interval, natural


@dataclass(frozen=True)
class Contamination:
    """Scores of a run's tasks that are in some training data, and of the others.

    Each: k of pass@k -> (score, lower, upper); empty where there are no such tasks.
    """

    run: str
    data: str
    in_data: tuple[str, ...]
    others: tuple[str, ...]
    scores_in_data: dict[int, tuple[float, float, float]]
    scores_of_others: dict[int, tuple[float, float, float]]

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "data": self.data,
            "tasks_in_data": list(self.in_data),
            "tasks": len(self.in_data) + len(self.others),
            "in_data": _scores_json(self.scores_in_data),
            "others": _scores_json(self.scores_of_others),
        }


def contamination(run: Run, report: Path) -> Contamination:
    """Split a run's score by what `apr data decontaminate --report` found. Raises UsageError."""
    data, found = _read_report(report, run.benchmark)
    counts = {task: (len(p), sum(p)) for task, p in run.passes().items()}
    tasks = sorted(counts, key=natural)
    dirty = tuple(task for task in tasks if task in found or task.rpartition("/")[2] in found)
    clean = tuple(task for task in tasks if task not in dirty)
    ks = [k for k in (1, 10, 100) if k <= min(n for n, _ in counts.values())]
    scores = [
        {
            k: (benchmark_pass_at_k(part, k), *confidence_interval(part, k))
            for k in (ks if names else ())
        }
        for names in (dirty, clean)
        for part in [{name: counts[name] for name in names}]
    ]
    return Contamination(str(run.path), data, dirty, clean, *scores)


def _read_report(path: Path, benchmark: str) -> tuple[str, set[str]]:
    """The data that was looked through, and the tasks of the benchmark that are in it."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        data, tasks = str(report["data"]), dict(report["tasks"])
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        hint = "apr data decontaminate DATA --reference … --report FILE writes one"
        raise UsageError(f"{path} is no report of apr data decontaminate", hint) from None
    same = [names for name, names in tasks.items() if _family(name) == _family(benchmark)]
    if not same:
        raise UsageError(
            f"{path} is about {', '.join(tasks)}, the run about {benchmark}",
            f"apr data decontaminate {data} --reference {_family(benchmark)} --report {path}",
        )
    return data, {str(task) for names in same for task in names}


def _family(name: str) -> str:
    """Benchmarks with the same tasks have the same: humaneval+@v0.1.9 and humaneval. A file of
    tasks has its name, wherever it lies.
    """
    return re.split(r"[+@=]|-hard|-sanitized", Path(name).name)[0]


def _scores_json(scores: Mapping[int, tuple[float, float, float]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for k, (score, low, high) in scores.items():
        value |= {f"pass@{k}": score, f"pass@{k}_ci95": [low, high]}
    return value
