"""Benchmarks of one's own (`--benchmark FILE`, docs/evaluation.md): rows of tasks in a file, or a
Python file, which is the user's program and runs in apr's own process when it is named.

Whoever writes a Python file starts from `OwnBenchmark` and changes what is to be different:

    class Terse(OwnBenchmark):
        def prompt(self, task, style): ...

    def benchmark():
        return Terse.of_rows("terse", [{"task_id": "add/1", "prompt": ..., "test": ...}])
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Self, cast

from apr.common.errors import AprError, UsageError
from apr.common.record import sha256_of
from apr.common.rows import read_rows
from apr.eval.benchmarks.humaneval import (
    BASE_STOP,
    QUESTION,
    asked,
    behind_prompt,
    continued,
)
from apr.eval.benchmarks.own_rows import OwnTask, read_tasks
from apr.eval.benchmarks.task import ROW_FILES, Benchmark, Prompt, PromptStyle, Task
from apr.eval.code.extraction import chat_code, chat_function, cut_at, last_program
from apr.eval.code.prefixes import longest_prefix, parse
from apr.sandbox import Job

WORDS_STOP = ("\n```", "<file_sep>")  # of a base model that answers words with a program
REFERENCE_FACTOR = 10.0
METHODS: Mapping[str, type] = {"prompt": Prompt, "completion": str, "program": str, "job": Job}
_NAME = re.compile(r"[\w.+-]+")


class OwnBenchmark(Benchmark):
    """A task whose prompt begins a program is put and judged as HumanEval's; where the prompt is
    words, a completion is the whole program, as MBPP's.

    Tasks with a `canonical_solution` have it run first, so that a test that nothing can pass is
    named before a model is blamed for it.
    """

    max_tokens = 1024

    def __init__(self, name: str, tasks: Mapping[str, OwnTask], data_sha256: str) -> None:
        if not tasks:
            raise UsageError(f"{name} has no tasks")
        self.name = name
        self.version = f"{name}-2"
        self.data_sha256 = data_sha256
        self._tasks = dict(tasks)
        self.tasks: Mapping[str, Task] = self._tasks
        self.references = any(task.canonical_solution for task in tasks.values())
        self.groups = {name: task.groups for name, task in self._tasks.items() if task.groups}
        self.notes = _notes(self._tasks.values())
        self.libraries = _libraries(self._tasks.values())

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """The rows of a file of JSON lines, or of one array. Raises UsageError naming the line."""
        unit = "row" if path.name.removesuffix(".gz").endswith(".json") else "line"
        tasks = read_tasks((f"{path} {unit} {number}", row) for number, row in read_rows(path))
        return cls(path.name, tasks, sha256_of(path))

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
            text = style.ended(task.prompt)
            return Prompt(text, messages=None, prefill="", stop=own.stop or usual)
        question = QUESTION.format(prompt=task.prompt.strip())
        return asked(question, style.prefill and not own.cases)  # it begins with a function

    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        own = self._tasks[task.task_id]
        if style.mode == "base" and own.continued:
            return continued(task, cut_at(text, own.stop or BASE_STOP), style)
        if style.mode == "base":
            return longest_prefix(cut_at(text, own.stop or WORDS_STOP).lstrip("\n"))
        if own.cases:
            # Statements that only show how a function is used are the program here.
            return last_program(text)
        if own.continued:
            return behind_prompt(task, chat_code(text, task.entry_point, style.prefill))
        return chat_function(text, task.entry_point, task.prompt, style.prefill)

    def whole(self, task: Task, completion: str) -> str:
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

    def judge_beside(self, task_id: str, beside: bool = True) -> bool:
        own = self._tasks[task_id]
        if own.stated or own.judge == ("in-process" if beside else "proxy") or own.cases:
            return False
        self._tasks[task_id] = replace(own, judge="in-process" if beside else "proxy")
        return True


def _notes(tasks: Iterable[OwnTask]) -> tuple[str, ...]:
    """What a user may have overlooked, to be told with the score."""
    nameless = [t.task_id for t in tasks if t.entry_point and t.entry_point not in t.prompt]
    if not nameless:
        return ()
    more = f" and {len(nameless) - 1} more" if len(nameless) > 1 else ""
    return (f"the prompt of {nameless[0]}{more} does not name the function that is judged",)


def _libraries(tasks: Iterable[OwnTask]) -> tuple[str, ...]:
    """numpy, and what the tasks themselves import that is not of the standard library."""
    found = {"numpy"}
    for task in tasks:
        head = task.prompt if task.continued else ""
        for source in (task.test, head + (task.canonical_solution or "    pass")):
            tree = parse(source)
            for node in ast.walk(tree) if tree else ():
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return tuple(sorted(found - sys.stdlib_module_names))


def load_own(name: str) -> Benchmark:
    """The benchmark of a file. Raises UsageError naming file and line or member."""
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--benchmark {name}: no such file")
    if name.endswith(".py"):
        return cast(Benchmark, PythonBenchmark(path))
    if not name.endswith(ROW_FILES):
        raise UsageError(
            f"--benchmark {name} is no file of tasks", f"{', '.join(ROW_FILES)} or .py"
        )
    return OwnBenchmark.of_file(path)


class PythonBenchmark:
    """What `benchmark()` of a Python file gives, checked as it is used; what it does not state is
    as in `Benchmark`. Its checksum is of the file and of the data it states; what goes wrong in it
    is told in one line.
    """

    def __init__(self, path: Path) -> None:
        source = path.read_bytes()
        self._path = path
        make = getattr(self._guarded("its statements", _module)(path, source), "benchmark", None)
        if not callable(make):
            raise UsageError(f"{path} defines no function benchmark()", "it gives the benchmark")
        self._benchmark = self._guarded("benchmark()", make)()
        self._check()
        stated = str(self._benchmark.data_sha256).encode()
        self.data_sha256 = hashlib.sha256(source + b"\0" + stated).hexdigest()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if not hasattr(self._benchmark, name):
            usual = getattr(Benchmark, name)
            return partial(usual, self) if callable(usual) else usual
        value = getattr(self._benchmark, name)
        return self._guarded(f"{name}()", value, METHODS.get(name)) if callable(value) else value

    def _check(self) -> None:
        """Raises UsageError for what no benchmark is like."""
        found = self._benchmark
        for name, kind in {"name": str, "version": str, "data_sha256": str}.items():
            if not isinstance(getattr(found, name, None), kind):
                raise UsageError(f"{self._path}: its benchmark has no text {name!r}")
        if not _NAME.fullmatch(found.name):
            raise UsageError(
                f"{self._path}: name {found.name!r} cannot be part of a file's name",
                "letters, digits and . _ + -",
            )
        missing = [name for name in METHODS if not callable(getattr(found, name, None))]
        if missing:
            raise UsageError(
                f"{self._path}: its benchmark has no method {missing[0]}()",
                "subclass apr.eval.benchmarks.own.OwnBenchmark, or see apr.eval.benchmarks.task",
            )
        tasks = getattr(found, "tasks", None)
        if not (isinstance(tasks, Mapping) and tasks):
            raise UsageError(f"{self._path}: its benchmark has no tasks", "task id -> Task")
        for task_id, task in tasks.items():
            if not isinstance(task, Task) or task.task_id != task_id:
                raise UsageError(f"{self._path}: tasks[{task_id!r}] is no Task of this task_id")
        if hasattr(found, "traits"):
            raise UsageError(
                f"{self._path}: its benchmark has traits",
                "state each as an attribute or method of the benchmark, as notes or read_row",
            )

    def _guarded(self, what: str, call: Callable[..., Any], kind: type | None = None) -> Any:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                value = call(*args, **kwargs)
            except AprError:
                raise
            except (Exception, SystemExit) as error:
                of = f" of {args[0].task_id}" if args and isinstance(args[0], Task) else ""
                line = _line(self._path, error)
                raise UsageError(
                    f"{self._path}{line}: {what}{of} raised {type(error).__name__}: {error}"
                ) from error
            if kind is not None and not isinstance(value, kind):
                raise UsageError(
                    f"{self._path}: {what} gave {type(value).__name__}, not {kind.__name__}"
                )
            return value

        return guarded


def _module(path: Path, source: bytes) -> ModuleType:
    spec = importlib.util.spec_from_loader(f"apr_own_{path.stem}", loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    return module


def _line(path: Path, error: BaseException) -> str:
    """Where in the file an error came from, in words; empty if it did not."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f" line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f" line {frames[-1].lineno}" if frames else ""
