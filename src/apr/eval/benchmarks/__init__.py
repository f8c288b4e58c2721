"""The benchmarks, one file each."""

from __future__ import annotations

from pathlib import Path

from apr.errors import UsageError
from apr.eval.task import Benchmark

NAMES = ("humaneval",)


def load_benchmark(name: str, data: Path | None = None) -> Benchmark:
    """A benchmark by name; data: its file, if not the one its package brings.

    Raises UsageError for an unknown name.
    """
    if name == "humaneval":
        from apr.eval.benchmarks.humaneval import HumanEval

        return HumanEval(data)
    raise UsageError(f"--benchmark {name} is unknown", f"one of {', '.join(NAMES)}")
