"""Samples in, verdicts and scores out, whoever made the samples. Needs no model, imports none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from apr.common.errors import UsageError
from apr.common.progress import EvalProgress
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.task import Benchmark, Dates
from apr.eval.generators import Source, Submission, Submissions
from apr.eval.generators.sample_files import SampleFile
from apr.eval.rerank.behaviour import Behaviour
from apr.eval.rerank.choose import Choice, check_methods, choose_by
from apr.eval.run.eval_settings import Form, JudgeSettings
from apr.eval.run.judging import References, check_references, judge, judged_by_reference
from apr.eval.run.recorded import compared, comparison_notes
from apr.eval.run.result import Record, Result, make_result, notes_on, time_facts
from apr.eval.run.set_up import EarlyWarning, set_up_notes
from apr.eval.run.store import Store, StoredVerdict
from apr.eval.run.suspect import repeated_references, suspects
from apr.sandbox import Level, Outcome, Sandbox
from apr.sandbox.interpreter import Interpreter, find_interpreter


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
    dates: Dates | None = None,
    python: str | None = None,
    exclude_broken: bool = False,
    rerank: Sequence[str] = (),
    form: Form = "samples",
) -> Result:
    """Judge samples made elsewhere: a file (.jsonl, or .json with one array; each also with .gz),
    EvalPlus' results, or a folder of programs as EvalPlus writes it. Needs no model.

    Rows: `task_id` and `completion` (appended to the task's prompt) or `solution` (a whole
    program), or what the benchmark's own tools write. Rows of the same task are its samples.
    form: "chat" for rows of raw chat answers, of which the code is taken as `apr eval` does.
    python: the interpreter that runs the programs. exclude_broken: leave tasks whose reference
    solution fails with it out of the score, where reference solutions are run.
    Raises UsageError naming file, line and field.
    """
    benchmark = load_benchmark(benchmark_name, data, dates)
    source = SampleFile(path, benchmark, allow_partial, form)
    check_methods(rerank, source.most)
    settings = JudgeSettings(
        workers=workers,
        level=level,
        allow_weak=allow_weak,
        python=python,
        exclude_broken=exclude_broken,
        ks=None if ks is None else tuple(ks),
        rerank=tuple(rerank),
        progress=progress,
    )
    with (
        open_sandbox(benchmark, settings) as (sandbox, interpreter),
        closing(Store(None)) as store,
    ):
        return judge_and_score(benchmark, source, settings, sandbox, interpreter, store)


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
    if not benchmark.references:
        raise UsageError(
            f"--check-gt: {benchmark.name} has no reference solutions that are run first",
            "for bigcodebench, and files of tasks with canonical_solution",
        )
    settings = JudgeSettings(workers=workers, level=level, allow_weak=allow_weak, python=python)
    with open_sandbox(benchmark, settings) as (sandbox, interpreter):
        tasks = benchmark.tasks.values()
        return check_references(
            benchmark, sandbox, interpreter, tasks, fresh=True, progress=progress
        )


@contextmanager
def open_sandbox(
    benchmark: Benchmark, settings: JudgeSettings
) -> Iterator[tuple[Sandbox, Interpreter]]:
    """Where the programs run, and what runs them."""
    modules = None if settings.python else benchmark.libraries
    interpreter = find_interpreter(settings.python, modules)
    with Sandbox(
        workers=settings.workers,
        level=settings.level,
        allow_weak=settings.allow_weak,
        python=interpreter.path,
        preload=benchmark.preload,
        libraries=interpreter.libraries,
    ) as sandbox:
        yield sandbox, interpreter


def judge_and_score(
    benchmark: Benchmark,
    source: Source,
    settings: JudgeSettings,
    sandbox: Sandbox,
    interpreter: Interpreter,
    store: Store,
) -> Result:
    """The way of every sample to its verdict, and of the verdicts to the scores.

    A sample is judged while others are made; one that has a verdict in `store` that stands is not
    judged again, and every new verdict is stored at once. What ran out of time gets a second run
    where that is fair.
    """
    benchmark.prepare(sandbox, interpreter, source.tasks, settings.progress)
    references = check_references(
        benchmark,
        sandbox,
        interpreter,
        source.tasks,
        settings.exclude_broken,
        progress=settings.progress,
    )
    have = store.judged(sandbox.level)
    shown = EvalProgress(
        source.total, source.ready, settings.progress, "samples", min(len(have), source.total)
    )
    samples: dict[tuple[str, int], Submission] = {}
    early = EarlyWarning(benchmark, source.chat_hint, shown.say if settings.progress else _silent)

    def to_judge() -> Submissions:
        with closing(source.samples(shown.sample)) as made:
            for sample in made:
                early.sample(sample)
                if references.counts(sample.task_id):
                    samples[sample.place] = sample
                    if sample.place not in have:
                        yield sample

    def keep(outcome: Outcome) -> None:
        store.add_verdict(StoredVerdict.of(outcome))
        shown.verdict(outcome.passed)

    try:
        with closing(to_judge()) as wanted:
            judge(benchmark, sandbox, wanted, references.seconds, keep)
        late = {v.place: v for v in store.verdicts() if v.verdict == "timeout"}
        again = [sample for place, sample in samples.items() if place in late]
        for outcome in judged_by_reference(benchmark, sandbox, again):
            verdict = StoredVerdict.of(outcome)
            spent = outcome.spent_seconds + (late[verdict.place].spent_seconds or 0.0)
            store.add_verdict(replace(verdict, spent_seconds=spent))
    finally:
        shown.close()
    counted = list(samples.values())
    chosen = _rerank(benchmark, counted, settings, sandbox, store)
    order = {task.task_id: number for number, task in enumerate(source.tasks)}
    verdicts = sorted(
        (v for v in store.verdicts() if v.place in samples),
        key=lambda v: (order[v.task_id], v.sample),
    )
    time = time_facts(sandbox.speeds, store.facts().get("time", {}))
    store.set_fact("time", time)
    recorded = compared(source.recorded(), verdicts, benchmark.parts)
    record = Record(
        benchmark=benchmark.name,
        subject=source.name,
        verdicts=verdicts,
        settings=source.identity,
        generation=source.generation(counted),
        model=source.description(),
        isolation_note=sandbox.level_reason,
        notes=(
            *benchmark.notes,
            *references.notes(),
            *source.notes(),
            *set_up_notes(benchmark, counted, source.chat_hint),
            *comparison_notes(recorded),
            *notes_on(verdicts),
        ),
        references=references.to_json(),
        suspects=suspects(benchmark, verdicts, samples),
        repeated=repeated_references(benchmark, samples),
        time=time,
        recorded=recorded,
        imports=interpreter.to_json(),
    )
    return make_result(record, benchmark, settings.ks, chosen)


def _silent(message: str) -> None:
    """Shows nothing."""


def _rerank(
    benchmark: Benchmark,
    samples: Sequence[Submission],
    settings: JudgeSettings,
    sandbox: Sandbox,
    store: Store,
) -> dict[str, dict[str, Choice]]:
    """Way of reranking -> task -> the sample taken. What it is taken by is stored."""
    known = {
        place: (calls, Behaviour(answers, shown))
        for place, calls, answers, shown in store.behaviours()
    }
    found = choose_by(
        settings.rerank,
        benchmark.tasks,
        samples,
        sandbox,
        settings.seed,
        known,
        lambda place, calls, did: store.add_behaviour(place, calls, did.answers, did.shown),
        settings.progress,
    )
    for method, taken in found.items():
        store.set_fact(f"chosen by {method}", {t: choice.sample for t, choice in taken.items()})
    return found
