"""`--benchmark FILE`: a benchmark of one's own, as rows (.jsonl) or as Python (.py).

A Python file is the user's program and runs in apr's own process when it is named.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from apr.common.errors import AprError, UsageError
from apr.eval.benchmarks import ROW_FILES
from apr.eval.benchmarks.own import OwnBenchmark
from apr.eval.benchmarks.task import Benchmark, Prompt, Task, Traits
from apr.sandbox import Job

METHODS: Mapping[str, type] = {"prompt": Prompt, "completion": str, "program": str, "job": Job}
_NAME = re.compile(r"[\w.+-]+")


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
    """What `benchmark()` of a Python file gives, checked as it is used. Its checksum is of the
    file and of the data it states; what goes wrong in it is told in one line.
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
        if not isinstance(getattr(found, "traits", Traits()), Traits):
            raise UsageError(f"{self._path}: its traits are no apr.eval.benchmarks.task.Traits")

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
