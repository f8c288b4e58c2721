"""Scores of completions made elsewhere. Needs no model, and imports none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from apr.errors import UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.progress import EvalProgress
from apr.eval.result import Result, make_result
from apr.eval.rows import read_rows
from apr.eval.sandbox import Job, Level, Sandbox
from apr.eval.store import StoredVerdict
from apr.eval.task import Benchmark


def score_samples(
    path: Path,
    benchmark_name: str = "humaneval",
    data: Path | None = None,
    ks: Sequence[int] | None = None,
    allow_partial: bool = False,
    workers: int | None = None,
    level: Literal["auto"] | Level = "auto",
    allow_weak: bool = False,
    progress: bool = True,
) -> Result:
    """Judge a samples file (.jsonl or .jsonl.gz).

    Rows: `task_id` and `completion` (appended to the task's prompt) or `solution` (a whole
    program). Rows of the same task are its samples. Raises UsageError naming file, line and field.
    """
    benchmark = load_benchmark(benchmark_name, data)
    rows = _read(path, benchmark)
    attempted = {row["task_id"] for row in rows}
    missing = [task for task in benchmark.tasks if task not in attempted]
    if missing and not allow_partial:
        raise UsageError(
            f"{path} has no sample of {len(missing)} of {len(benchmark.tasks)} tasks,"
            f" first {missing[0]}",
            "--allow-partial scores the others alone",
        )
    keys: dict[str, tuple[str, int]] = {}

    def jobs() -> Iterator[Job]:
        counts: dict[str, int] = {}
        for row in rows:
            task = benchmark.tasks[row["task_id"]]
            sample = counts[task.task_id] = counts.get(task.task_id, -1) + 1
            job_id = f"{task.task_id}#{sample}"
            keys[job_id] = (task.task_id, sample)
            yield benchmark.job(task, benchmark.program(task, row), job_id)

    shown = EvalProgress(len(rows), len(rows), progress)
    verdicts = []
    try:
        with Sandbox(workers=workers, level=level, allow_weak=allow_weak) as sandbox:
            for outcome in sandbox.run_many(jobs()):
                verdicts.append(StoredVerdict.of(*keys[outcome.job_id], outcome))
                shown.verdict(outcome.passed)
    finally:
        shown.close()
    settings = {"benchmark": benchmark.version, "data": benchmark.data_sha256[:16]}
    return make_result(benchmark.name, path.name, verdicts, ks, settings)


def _read(path: Path, benchmark: Benchmark) -> list[dict[str, Any]]:
    rows = []
    for number, row in read_rows(path):
        where = f"{path} line {number}"
        task_id = row.get("task_id")
        if not isinstance(task_id, str):
            raise UsageError(f"{where} has no text in field 'task_id'")
        if task_id not in benchmark.tasks:
            raise UsageError(f"{where}: task_id {task_id!r} is not in {benchmark.name}")
        present = [f for f in ("completion", "solution") if isinstance(row.get(f), str)]
        if not present:
            raise UsageError(f"{where} has neither a 'completion' nor a 'solution' text")
        rows.append(row)
    if not rows:
        raise UsageError(f"{path} has no samples")
    return rows
