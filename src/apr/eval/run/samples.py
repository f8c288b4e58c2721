"""Scores of completions made elsewhere. Needs no model, and imports none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from apr.common.errors import UsageError
from apr.common.progress import EvalProgress
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.task import Benchmark, Task, Window, measured, prepare, traits_of
from apr.eval.generators.sample_files import read_samples, samples_sha256
from apr.eval.rerank.behaviour import Candidate
from apr.eval.rerank.choose import check_methods, choose_by
from apr.eval.run.contamination import repeated_references
from apr.eval.run.judging import judge_distinct, judged_by_reference
from apr.eval.run.references import References, check_references
from apr.eval.run.result import Result, make_result
from apr.eval.run.store import StoredVerdict
from apr.eval.run.suspect import suspects
from apr.sandbox import Level, Outcome, Sandbox
from apr.sandbox.interpreter import find_interpreter


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
    window: Window | None = None,
    python: str | None = None,
    exclude_broken: bool = False,
    rerank: Sequence[str] = (),
) -> Result:
    """Judge samples: a file (.jsonl, or .json with one array; each also with .gz), EvalPlus'
    results, or a folder of programs as EvalPlus writes it.

    Rows: `task_id` and `completion` (appended to the task's prompt) or `solution` (a whole
    program), or what the benchmark's own tools write. Rows of the same task are its samples.
    python: the interpreter that runs the programs. exclude_broken: leave tasks whose reference
    solution fails with it out of the score, where reference solutions are run (Traits).
    Raises UsageError naming file, line and field.
    """
    benchmark = load_benchmark(benchmark_name, data, window)
    interpreter = find_interpreter(python)
    rows = read_samples(path, benchmark)
    check_methods(rerank, max(Counter(row["task_id"] for row in rows).values(), default=0))
    _check_complete(path, rows, benchmark, allow_partial)
    numbered = _numbered(rows, benchmark)
    shown = EvalProgress(len(rows), enabled=progress)
    verdicts: dict[str, StoredVerdict] = {}

    def keep(outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            task_id, _, sample = outcome.job_id.rpartition("#")
            verdicts[outcome.job_id] = StoredVerdict.of(task_id, int(sample), outcome)
            shown.verdict(outcome.passed)

    try:
        with Sandbox(
            workers=workers,
            level=level,
            allow_weak=allow_weak,
            python=interpreter.path,
            preload=traits_of(benchmark).preload,
        ) as sandbox:
            tasks = [benchmark.tasks[name] for name in sorted({r["task_id"] for r in rows})]
            prepare(benchmark, sandbox, interpreter, tasks, progress)
            references = check_references(
                benchmark, sandbox, interpreter, tasks, exclude_broken, progress=progress
            )
            numbered = {
                job_id: sample
                for job_id, sample in numbered.items()
                if references.counts(sample[0].task_id)
            }
            keep(
                judge_distinct(
                    sandbox,
                    (
                        benchmark.job(*sample, references.seconds.get(sample[0].task_id, 0.0))
                        for sample in numbered.values()
                    ),
                )
            )
            late = [numbered[name] for name, v in verdicts.items() if v.verdict == "timeout"]
            keep(judged_by_reference(benchmark, sandbox, late))
            candidates = [
                Candidate(task.task_id, int(name.rpartition("#")[2]), program)
                for name, (task, program, _) in numbered.items()
            ]
            chosen = choose_by(rerank, benchmark.tasks, candidates, sandbox, progress=progress)
            note = sandbox.level_reason
    finally:
        shown.close()
    programs = {
        (task.task_id, int(name.rpartition("#")[2])): (whole.removeprefix(task.prompt), whole)
        for name, (task, whole, _) in numbered.items()
    }
    return make_result(
        benchmark.name,
        path.name,
        [verdicts[name] for name in numbered],
        ks,
        settings={
            "benchmark": benchmark.version,
            "data": benchmark.data_sha256[:16],
            "samples": samples_sha256(path)[:16],
        },
        generation=measured(
            benchmark, [(r["task_id"], r["completion"]) for r in rows if "completion" in r]
        ),
        isolation_note=note,
        groups=traits_of(benchmark).groups,
        notes=(*traits_of(benchmark).notes, *references.notes()),
        references=references.to_json(),
        parts=traits_of(benchmark).parts,
        chosen=chosen,
        suspects=suspects(benchmark, verdicts.values(), programs),
        repeated=repeated_references(benchmark, {k: whole for k, (_, whole) in programs.items()}),
    )


def run_references(
    benchmark_name: str,
    data: Path | None = None,
    python: str | None = None,
    workers: int | None = None,
    level: Literal["auto"] | Level = "auto",
    allow_weak: bool = False,
    progress: bool = True,
) -> References:
    """Run all reference solutions of a benchmark, whatever is known of them already.

    Raises UsageError for a benchmark that has none or does not need it.
    """
    benchmark = load_benchmark(benchmark_name, data)
    if not traits_of(benchmark).references:
        raise UsageError(
            f"--check-gt: {benchmark.name} has no reference solutions that are run first",
            "for bigcodebench, and files of tasks with canonical_solution",
        )
    interpreter = find_interpreter(python)
    with Sandbox(
        workers=workers,
        level=level,
        allow_weak=allow_weak,
        python=interpreter.path,
        preload=traits_of(benchmark).preload,
    ) as sandbox:
        tasks = benchmark.tasks.values()
        return check_references(
            benchmark, sandbox, interpreter, tasks, fresh=True, progress=progress
        )


def _numbered(
    rows: Iterable[Mapping[str, Any]], benchmark: Benchmark
) -> dict[str, tuple[Task, str, str]]:
    """Job id -> (task, program, job id); the rows of a task are numbered from 0."""
    counts: Counter[str] = Counter()
    numbered = {}
    for row in rows:
        task = benchmark.tasks[row["task_id"]]
        job_id = f"{task.task_id}#{counts[task.task_id]}"
        counts[task.task_id] += 1
        numbered[job_id] = (task, benchmark.program(task, row), job_id)
    return numbered


def _check_complete(
    path: Path, rows: Iterable[Mapping[str, Any]], benchmark: Benchmark, allow_partial: bool
) -> None:
    attempted = {row["task_id"] for row in rows}
    missing = [task for task in benchmark.tasks if task not in attempted]
    if missing and not allow_partial:
        raise UsageError(
            f"{path} has no sample of {len(missing)} of {len(benchmark.tasks)} tasks,"
            f" first {missing[0]}",
            "--allow-partial scores the others alone",
        )
