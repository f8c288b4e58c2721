"""Reference solutions first: which tests can pass here at all, and how long right answers take.

Results are kept, for one state of data, interpreter, its packages and the level of isolation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.common.errors import AprError
from apr.common.files import write_whole
from apr.common.progress import EvalProgress
from apr.eval.benchmarks.task import Benchmark, Task
from apr.eval.run.judging import judge, reference_of
from apr.eval.run.result import natural
from apr.hub.cache import cache_root, unwritable
from apr.sandbox import Outcome, Sandbox
from apr.sandbox.interpreter import Interpreter

RULES = 1  # to be raised when judging changes, so that what was found before is forgotten
_MISSING = re.compile(r"No module named '([\w.]+)'")
_SHOWN = 8
PATIENCE = 12.0  # a reference gets the time of programs whose reference took so many seconds


@dataclass(frozen=True)
class References:
    """seconds: CPU time of the reference solutions that pass. broken: task -> why the others do
    not. excluded: whether broken tasks are left out of the score.
    """

    interpreter: Interpreter
    seconds: Mapping[str, float]
    broken: Mapping[str, str]
    excluded: bool = False

    def counts(self, task_id: str) -> bool:
        """Whether a task is part of the score."""
        return not (self.excluded and task_id in self.broken)

    @property
    def missing(self) -> dict[str, list[str]]:
        """Library that is not installed -> tasks that need it."""
        found: dict[str, list[str]] = {}
        for task, reason in self.broken.items():
            if match := _MISSING.search(reason):
                found.setdefault(match[1].partition(".")[0], []).append(task)
        return found

    def to_json(self) -> dict[str, Any]:
        """As plain data; empty if no reference was run."""
        if not (self.seconds or self.broken):
            return {}
        return {
            "tasks": len(self.seconds) + len(self.broken),
            "passed": len(self.seconds),
            "broken": dict(self.broken),
            "missing_libraries": self.missing,
            "broken_tasks_excluded": self.excluded,
            "python": self.interpreter.version,
            "python_path": self.interpreter.path,
        }

    def summary(self) -> str:
        total = len(self.seconds) + len(self.broken)
        where = f"Python {self.interpreter.version}, {self.interpreter.path}"
        return f"{len(self.seconds)} of {total} reference solutions pass with {where}"

    def notes(self) -> tuple[str, ...]:
        """What people should know, in a few lines; nothing if every reference passes."""
        if not self.broken:
            return ()
        total = len(self.seconds) + len(self.broken)
        what = "left out of the score" if self.excluded else "counted all the same"
        lines = [f"{len(self.broken)} of {total} tasks, whose reference fails here, are {what}"]
        lines += [
            f"cannot be imported here: {library} (needed by {_named(tasks)})"
            for library, tasks in sorted(self.missing.items(), key=lambda item: -len(item[1]))
        ]
        unrunnable = {task for tasks in self.missing.values() for task in tasks}
        others = [
            f"{task}: {reason.partition(chr(10))[0][:160]}"
            for task, reason in self.broken.items()
            if task not in unrunnable
        ]
        return (*lines, *others[:_SHOWN], *_and_more(len(others) - _SHOWN))


def _and_more(count: int) -> tuple[str, ...]:
    return (f"and {count} more; --json names all",) if count > 0 else ()


def _named(tasks: list[str]) -> str:
    names = ", ".join(tasks[:_SHOWN])
    return names if len(tasks) <= _SHOWN else f"{names} and {len(tasks) - _SHOWN} more"


def check_references(
    benchmark: Benchmark,
    sandbox: Sandbox,
    interpreter: Interpreter,
    tasks: Iterable[Task],
    excluded: bool = False,
    fresh: bool = False,
    progress: bool = True,
) -> References:
    """Run the reference solutions of `tasks` that have not been run in this state before; none if
    the benchmark does not ask for it.

    fresh: all of them. Raises AprError if the sandbox itself fails, or if nothing would be left
    to score.
    """
    if not benchmark.references:
        return References(interpreter, {}, {})
    path = _cache_path(benchmark, sandbox, interpreter)
    known = {} if fresh else _read(path)
    wanted = [task for task in tasks if task.canonical_solution]
    todo = [task for task in wanted if task.task_id not in known]
    if todo:
        shown = EvalProgress(len(todo), enabled=progress)

        def keep(outcome: Outcome) -> None:
            name = outcome.job_id.rpartition("#")[0]
            if outcome.verdict == "sandbox-error":
                raise AprError(f"the sandbox failed on the reference of {name}: {outcome.detail}")
            shown.verdict(outcome.passed)
            known[name] = outcome.cpu_seconds if outcome.passed else outcome.detail

        samples = [reference_of(benchmark, task) for task in todo]
        try:
            judge(benchmark, sandbox, samples, {task.task_id: PATIENCE for task in todo}, keep)
        finally:
            shown.close()
        _write(path, known)
    found = sorted(
        ((task.task_id, known[task.task_id]) for task in wanted), key=lambda item: natural(item[0])
    )
    seconds = {task: value for task, value in found if not isinstance(value, str)}
    broken = {task: value for task, value in found if isinstance(value, str)}
    if excluded and broken and not seconds:
        raise AprError(
            f"no reference solution passes with {interpreter.path}: {next(iter(broken.values()))}",
            "--python names an interpreter that has the benchmark's libraries",
        )
    return References(interpreter, seconds, broken, excluded)


def _cache_path(benchmark: Benchmark, sandbox: Sandbox, interpreter: Interpreter) -> Path:
    state = json.dumps([RULES, benchmark.data_sha256, interpreter.fingerprint, sandbox.level])
    name = hashlib.sha256(state.encode()).hexdigest()[:24]
    return cache_root() / "references" / f"{benchmark.name}-{name}.json"


def _read(path: Path) -> dict[str, float | str]:
    """What was found before; nothing if the file is damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path, known: Mapping[str, float | str]) -> None:
    try:
        write_whole(path, json.dumps(known))
    except OSError as error:
        raise unwritable(path, error) from None
