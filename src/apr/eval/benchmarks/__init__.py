"""One file a benchmark: where its data is, how a task is asked, how an answer is judged."""

from __future__ import annotations

import importlib
from pathlib import Path

from apr.errors import UsageError
from apr.eval.task import Benchmark

# Modules of this package; each has load(data: Path | None) -> Benchmark.
BENCHMARKS: tuple[str, ...] = ("humaneval",)


def load_benchmark(name: str, data: Path | None = None) -> Benchmark:
    """The benchmark of that name. data: a file to read instead of its own.

    Raises UsageError for a name that is not in BENCHMARKS.
    """
    if name not in BENCHMARKS:
        raise UsageError(f"no benchmark {name!r}", f"known: {', '.join(BENCHMARKS)}")
    return importlib.import_module(f"{__name__}.{name}").load(data)
