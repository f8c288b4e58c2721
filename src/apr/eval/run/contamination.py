"""Signs that a model saw a benchmark before it was asked, and what they mean for its score.

What a model was trained on decides; where that is known, `apr data decontaminate` says which tasks
are in it, and their score stands beside that of the others. Where it is not, samples that repeat
a reference solution are a sign. (The third, dates, is LiveCodeBench's own.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.eval.benchmarks.task import Benchmark
from apr.eval.generators import Submission
from apr.eval.history.read import Run
from apr.eval.run.result import benchmark_pass_at_k, confidence_interval, natural

# Words of a reference solution that nobody writes by chance: of 877 recorded samples of two models
# 31 repeat their reference, and none of these has more than 15 words.
LEAST_WORDS = 20
_WORD = re.compile(r"\w+")


def repeated_references(
    benchmark: Benchmark, samples: Mapping[tuple[str, int], Submission]
) -> dict[str, Any]:
    """Samples that hold the reference solution of their task, word for word, layout aside.

    samples: by task id and number. Returns {"samples", "of", "tasks"}, where "of"
    counts the samples of tasks whose solution has LEAST_WORDS words or more; nothing where there
    are none, for infilling, where the missing part is mostly told by what is around it, and where
    a solution is no program.
    """
    if benchmark.name.startswith("infilling") or not benchmark.writes_code:
        return {}
    references = {name: _words(t.canonical_solution) for name, t in benchmark.tasks.items()}
    asked = [key for key in samples if references[key[0]].count(" ") > LEAST_WORDS]
    found = [key for key in asked if references[key[0]] in _words(samples[key].program)]
    tasks = sorted({task for task, _ in found}, key=natural)
    return {"samples": len(found), "of": len(asked), "tasks": tasks} if asked else {}


def _words(code: str) -> str:
    return f" {' '.join(_WORD.findall(code))} "


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
