"""Programs into verdicts, while other work goes on."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from apr.eval.benchmarks.task import Benchmark, Task
from apr.eval.generators import Submission
from apr.sandbox import Job, Outcome, Sandbox

# Reference solutions are timed with the limit a reference of this many seconds would give.
REFERENCE_SECONDS = 3.0


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
                copies.append(replace(done[key], job_id=job.job_id))
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
            copies += (replace(outcome, job_id=job.job_id) for job in equal)
        yield outcome
        yield from copies
        copies.clear()
    yield from copies
    if again:
        yield from sandbox.run_many(again)


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

    seconds: processor time of tasks' references, where it is known.
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
        outcome.job_id.rpartition("#")[0]: outcome.cpu_seconds
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
