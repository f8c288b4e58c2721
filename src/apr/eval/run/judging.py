"""Programs into verdicts, while other work goes on; reference solutions first.

What references show (which tests can pass here at all, how long right answers take) is kept, for
one state of data, interpreter, its packages and the level of isolation.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apr.common.errors import AprError
from apr.common.files import write_whole
from apr.common.progress import EvalProgress
from apr.eval.benchmarks.task import Benchmark, Task
from apr.eval.generators import Submission
from apr.eval.run.result import MISSING, natural
from apr.hub.cache import cache_root, unwritable
from apr.sandbox import Job, Outcome, Sandbox
from apr.sandbox.interpreter import Interpreter

BESIDE = "beside "  # before a task's name, in what is kept of references
# Reference solutions are timed with the limit a reference of this many seconds would give.
REFERENCE_SECONDS = 3.0
RULES = 2  # to be raised when judging changes, so that what was found before is forgotten
_SHOWN = 8
PATIENCE = 12.0  # a reference gets the time of programs whose reference took so many seconds


def judge_distinct(sandbox: Sandbox, jobs: Iterable[Job]) -> Iterator[Outcome]:
    """One outcome for each job, as they come; equal programs of a task run once.

    Job ids are TASK#SAMPLE. Samples of one task often are the same text, the more so the better
    the model: they get the outcome of the first, unless that is a failure of the sandbox.
    """
    running: dict[tuple[str, bytes], list[Job]] = {}  # the first of each is in the sandbox
    done: dict[tuple[str, bytes], Outcome] = {}
    keys: dict[str, tuple[str, bytes]] = {}
    copies: list[Outcome] = []
    again: list[Job] = []

    def distinct() -> Iterator[Job]:
        for job in jobs:
            program = job.program.encode("utf-8", "surrogatepass")
            key = job.job_id.rpartition("#")[0] or job.job_id, hashlib.sha256(program).digest()
            if key in done:
                copies.append(_copy(done[key], job))
            elif key in running:
                running[key].append(job)
            else:
                running[key] = [job]
                keys[job.job_id] = key
                yield job

    for outcome in sandbox.run_many(distinct()):
        key = keys.pop(outcome.job_id)
        equal = running.pop(key)[1:]
        if outcome.verdict == "sandbox-error":
            again += equal
        else:
            done[key] = outcome
            copies += (_copy(outcome, job) for job in equal)
        yield outcome
        yield from copies
        copies.clear()
    yield from copies
    if again:
        yield from sandbox.run_many(again)


def _copy(outcome: Outcome, job: Job) -> Outcome:
    """For a job that did not have to run."""
    return replace(outcome, job_id=job.job_id, spent_seconds=0.0)


class Judging:
    """A thread that feeds the sandbox; verdicts are fetched without waiting.

    with Judging(sandbox) as judging:
        judging.submit(job)
        for outcome in judging.ready(): ...
        for outcome in judging.rest(): ...     # no more jobs; waits for all verdicts

    Leaving the block early (an error, Ctrl-C) drops the jobs not begun and waits for those that
    run, so that nothing uses the sandbox afterwards.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        self._sandbox = sandbox
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="judging", daemon=True)

    def __enter__(self) -> Judging:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped = True
        self._jobs.put(None)
        self._thread.join()

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def ready(self) -> Iterator[Outcome]:
        """The verdicts that have come in since the last call. Raises what the sandbox raised."""
        while not self._outcomes.empty():
            item = self._outcomes.get()
            if item is not None:
                yield self._checked(item)

    def rest(self) -> Iterator[Outcome]:
        """All verdicts still to come, as they come. Raises what the sandbox raised."""
        self._jobs.put(None)
        while (item := self._outcomes.get()) is not None:
            yield self._checked(item)

    def _checked(self, item: Outcome | BaseException) -> Outcome:
        if isinstance(item, BaseException):
            raise item
        return item

    def _submitted(self) -> Iterator[Job]:
        while (job := self._jobs.get()) is not None and not self._stopped:
            yield job

    def _run(self) -> None:
        try:
            for outcome in judge_distinct(self._sandbox, self._submitted()):
                self._outcomes.put(outcome)
                if self._stopped:
                    break
        except BaseException as error:
            self._outcomes.put(error)
        finally:
            self._outcomes.put(None)


def judge(
    benchmark: Benchmark,
    sandbox: Sandbox,
    samples: Iterable[Submission],
    seconds: Mapping[str, float],
    keep: Callable[[Outcome], None],
) -> None:
    """Run samples, while further ones are being made; `keep` is told of each outcome.

    seconds: standard seconds of tasks' references, where they are known.
    """
    with Judging(sandbox) as judging:
        for sample in samples:
            judging.submit(sample.job(benchmark, seconds.get(sample.task_id, 0.0)))
            for outcome in judging.ready():
                keep(outcome)
        for outcome in judging.rest():
            keep(outcome)


def judged_by_reference(
    benchmark: Benchmark, sandbox: Sandbox, late: Iterable[Submission]
) -> Iterator[Outcome]:
    """Second verdicts on samples that ran out of time, where that is not fair.

    None for a benchmark whose references were run first: its limits are right from the start.

    The reference solutions of these tasks are timed here, on this machine; a program gets another
    run if its benchmark then allows it more time. So a slow machine does not change a score.
    """
    found = [] if benchmark.references else [s for s in late if _may_gain(benchmark, s)]
    tasks = [benchmark.tasks[name] for name in dict.fromkeys(s.task_id for s in found)]
    references = [reference_of(benchmark, task) for task in tasks if task.canonical_solution]
    timed = {
        outcome.job_id.rpartition("#")[0]: outcome.standard_seconds
        for outcome in sandbox.run_many(r.job(benchmark, REFERENCE_SECONDS) for r in references)
        if outcome.passed
    }
    scaled = [(s, s.job(benchmark, timed.get(s.task_id, 0.0))) for s in found]
    longer = (job for s, job in scaled if job.time_limit > s.job(benchmark).time_limit)
    yield from judge_distinct(sandbox, longer)


def _may_gain(benchmark: Benchmark, sample: Submission) -> bool:
    """Whether a slow reference would give the program more time."""
    slow = sample.job(benchmark, REFERENCE_SECONDS)
    return slow.time_limit > sample.job(benchmark).time_limit


def reference_of(benchmark: Benchmark, task: Task) -> Submission:
    """A task's own solution, as a sample of it."""
    solution = task.canonical_solution
    program = benchmark.program(task, {"completion": solution})
    return Submission(task.task_id, 0, program, solution)


@dataclass(frozen=True)
class References:
    """seconds: standard seconds of reference solutions that pass. broken: task -> why others do
    not. excluded: whether broken tasks are left out of the score. beside: tasks whose reference
    passes beside its test only, where programs for it are judged, too.
    """

    interpreter: Interpreter
    seconds: Mapping[str, float]
    broken: Mapping[str, str]
    excluded: bool = False
    beside: tuple[str, ...] = ()

    def counts(self, task_id: str) -> bool:
        """Whether a task is part of the score."""
        return not (self.excluded and task_id in self.broken)

    @property
    def missing(self) -> dict[str, list[str]]:
        """Library that is not installed -> tasks that need it."""
        found: dict[str, list[str]] = {}
        for task, reason in self.broken.items():
            if match := MISSING.search(reason):
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
        aside: tuple[str, ...] = ()
        if self.beside:
            named = _named([*self.beside])
            aside = (f"judged beside the program, where alone the reference passes: {named}",)
        if not self.broken:
            return aside
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
        return (*aside, *lines, *others[:_SHOWN], *_and_more(len(others) - _SHOWN))


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
        shown = EvalProgress(len(todo), enabled=progress, what="reference solutions")

        def keep(outcome: Outcome) -> None:
            name = outcome.job_id.rpartition("#")[0]
            if outcome.verdict == "sandbox-error":
                raise AprError(f"the sandbox failed on the reference of {name}: {outcome.detail}")
            shown.verdict(outcome.passed)
            known[name] = outcome.standard_seconds if outcome.passed else outcome.detail

        samples = [reference_of(benchmark, task) for task in todo]
        try:
            judge(benchmark, sandbox, samples, {task.task_id: PATIENCE for task in todo}, keep)
            failed = [t for t in todo if isinstance(known[t.task_id], str)]
            reasons = {t.task_id: known[t.task_id] for t in failed}
            again = [t for t in failed if benchmark.judge_beside(t.task_id)]
            if again:
                samples = [reference_of(benchmark, task) for task in again]
                judge(benchmark, sandbox, samples, {t.task_id: PATIENCE for t in again}, keep)
            for name in (task.task_id for task in again):
                if isinstance(known[name], str):  # nothing is gained by it
                    known[name] = reasons[name]
                    benchmark.judge_beside(name, False)
                else:
                    known[BESIDE + name] = 1.0
        finally:
            shown.close()
        _write(path, known)
    beside = tuple(task.task_id for task in wanted if BESIDE + task.task_id in known)
    for name in beside:
        benchmark.judge_beside(name)
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
    return References(interpreter, seconds, broken, excluded, beside)


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
