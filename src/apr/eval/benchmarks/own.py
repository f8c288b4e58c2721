"""Benchmarks of one's own: rows of tasks in a file, or a Python file (docs/evaluation.md).

Whoever writes a Python file starts from `OwnBenchmark` and changes what is to be different:

    class Terse(OwnBenchmark):
        def prompt(self, task, style): ...

    def benchmark():
        return Terse.of_rows("terse", [{"task_id": "add/1", "prompt": ..., "test": ...}])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from apr.common.errors import UsageError
from apr.common.rows import read_rows
from apr.eval.benchmarks.humaneval import (
    BASE_STOP,
    PREFILL,
    PREFILL_STOP,
    QUESTION,
    behind_prompt,
    continued,
    raw_prompt,
)
from apr.eval.benchmarks.own_rows import OwnTask, read_tasks
from apr.eval.benchmarks.task import Prompt, PromptStyle, Task, Traits
from apr.eval.code.extraction import chat_code, cut_at, fenced_blocks, longest_prefix
from apr.sandbox import Job

WORDS_STOP = ("\n```", "<file_sep>")  # of a base model that answers words with a program
MAX_TOKENS = 1024
REFERENCE_FACTOR = 10.0


class OwnBenchmark:
    """See `task.Benchmark`. A task whose prompt begins a program is put and judged as
    HumanEval's; where the prompt is words, a completion is the whole program, as MBPP's.

    Tasks with a `canonical_solution` have it run first, so that a test that nothing can pass is
    named before a model is blamed for it.
    """

    def __init__(self, name: str, tasks: Mapping[str, OwnTask], data_sha256: str) -> None:
        if not tasks:
            raise UsageError(f"{name} has no tasks")
        self.name = name
        self.version = f"{name}-1"
        self.data_sha256 = data_sha256
        self._tasks = dict(tasks)
        self.tasks: Mapping[str, Task] = self._tasks
        solved = any(task.canonical_solution for task in tasks.values())
        self.traits = Traits(
            groups={name: task.groups for name, task in self._tasks.items() if task.groups},
            notes=_notes(self._tasks.values()),
            max_tokens=MAX_TOKENS,
            references=solved,
        )

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """The rows of a file of JSON lines, or of one array. Raises UsageError naming the line."""
        unit = "row" if path.name.removesuffix(".gz").endswith(".json") else "line"
        tasks = read_tasks((f"{path} {unit} {number}", row) for number, row in read_rows(path))
        return cls(path.name, tasks, hashlib.sha256(path.read_bytes()).hexdigest())

    @classmethod
    def of_rows(cls, name: str, rows: Iterable[Mapping[str, Any]]) -> Self:
        """Rows made by a program. Raises UsageError naming the row."""
        found = list(rows)
        tasks = read_tasks((f"{name} row {number}", row) for number, row in enumerate(found, 1))
        return cls(name, tasks, hashlib.sha256(json.dumps(found).encode()).hexdigest())

    def prompt(self, task: Task, style: PromptStyle) -> Prompt:
        own = self._tasks[task.task_id]
        if style.mode == "base":
            usual = BASE_STOP if own.continued else WORDS_STOP
            text = raw_prompt(task, style)
            return Prompt(text, messages=None, prefill="", stop=own.stop or usual)
        question = QUESTION.format(prompt=task.prompt.strip())
        begun = style.prefill and not own.cases  # the beginning speaks of a function
        return Prompt(
            text=None,
            messages=[{"role": "user", "content": question}],
            prefill=PREFILL if begun else "",
            stop=PREFILL_STOP if begun else (),
        )

    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        own = self._tasks[task.task_id]
        if style.mode == "base" and own.continued:
            return continued(task, cut_at(text, own.stop or BASE_STOP), style)
        if style.mode == "base":
            return longest_prefix(cut_at(text, own.stop or WORDS_STOP).lstrip("\n"))
        if own.cases:
            # Statements that only show how a function is used are the program here.
            blocks = fenced_blocks(text)
            return blocks[-1] if blocks else text
        code = chat_code(text, task.entry_point, fenced=style.prefill)
        return behind_prompt(task, code) if own.continued else code

    def program(self, task: Task, row: Mapping[str, Any]) -> str:
        completion = row.get("completion")
        if not isinstance(completion, str):
            return row["solution"]
        return task.prompt + completion if self._tasks[task.task_id].continued else completion

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float = 0.0) -> Job:
        own = self._tasks[task.task_id]
        return Job(
            job_id=job_id,
            program=program,
            test=task.test,
            entry_point=task.entry_point,
            trusted_prefix=task.prompt if own.continued and own.judge == "proxy" else "",
            cases=(lambda: own.cases) if own.cases else None,
            time_limit=max(own.time_limit, REFERENCE_FACTOR * reference_seconds),
            judge=own.judge,
        )


def _notes(tasks: Iterable[OwnTask]) -> tuple[str, ...]:
    """What a user may have overlooked, to be told with the score."""
    nameless = [t.task_id for t in tasks if t.entry_point and t.entry_point not in t.prompt]
    if not nameless:
        return ()
    more = f" and {len(nameless) - 1} more" if len(nameless) > 1 else ""
    return (f"the prompt of {nameless[0]}{more} does not name the function that is judged",)
