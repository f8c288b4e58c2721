"""Judging beside other work, and time limits that follow the machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from apr.common.errors import AprError
from apr.eval.benchmarks.humaneval import REFERENCE_FACTOR, TIME_LIMIT, HumanEval
from apr.eval.generators import Submission
from apr.eval.run.judging import Judging, judge_distinct, judged_by_reference
from apr.eval.run.scoring import score_samples
from apr.sandbox import Job, Outcome, Sandbox


@pytest.fixture(scope="module")
def humaneval() -> HumanEval:
    return HumanEval()


def jobs(humaneval: HumanEval, count: int) -> list[Job]:
    tasks = list(humaneval.tasks.values())[:count]
    return [humaneval.job(t, t.prompt + t.canonical_solution, t.task_id) for t in tasks]


def test_verdicts_come_before_the_last_job_is_known(humaneval: HumanEval) -> None:
    work = jobs(humaneval, 8)
    with Sandbox(workers=2) as sandbox, Judging(sandbox) as judging:
        for job in work[:6]:
            judging.submit(job)
        early: list[Outcome] = []
        deadline = time.monotonic() + 60
        while len(early) < 4 and time.monotonic() < deadline:
            early += judging.ready()
            time.sleep(0.01)
        assert len(early) >= 4
        for job in work[6:]:
            judging.submit(job)
        everything = [*early, *judging.rest()]
    assert sorted(o.job_id for o in everything) == sorted(job.job_id for job in work)
    assert all(outcome.passed for outcome in everything)


def test_leaving_early_leaves_the_sandbox_usable(humaneval: HumanEval) -> None:
    work = jobs(humaneval, 30)
    with Sandbox(workers=2) as sandbox:
        with pytest.raises(AprError, match="elsewhere"), Judging(sandbox) as judging:
            for job in work:
                judging.submit(job)
            raise AprError("a failure elsewhere")
        assert sandbox.run(work[0]).passed


def test_what_the_sandbox_raises_arrives() -> None:
    class Broken:
        def run_many(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
            raise AprError("no more workers")

    with pytest.raises(AprError, match="no more workers"), Judging(cast(Any, Broken())) as judging:
        list(judging.rest())


class Counting:
    """A sandbox that notes which jobs reach it, and ends the first of each pair last."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run_many(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        under_way: list[Job] = []
        for job in jobs:
            self.ran.append(job.job_id)
            under_way.append(job)
            if len(under_way) == 2:
                yield from map(self._outcome, reversed(under_way))
                under_way = []
        yield from map(self._outcome, under_way)

    def _outcome(self, job: Job) -> Outcome:
        return Outcome(job.job_id, "passed" if "1" in job.program else "failed", job.program)


def test_equal_programs_of_a_task_run_once() -> None:
    texts = {"a#0": "f = 1", "a#1": "f = 1", "b#0": "f = 1", "a#2": "f = 2", "a#3": "f = 1"}
    texts |= {"b#1": "f = 1", "c#0": "f = '\ud800'", "c#1": "f = '\ud800'", "b#2": "f = 1"}
    sandbox = Counting()
    work = [Job(name, text, "pass", "f") for name, text in texts.items()]
    outcomes = list(judge_distinct(cast(Any, sandbox), work))
    assert sandbox.ran == ["a#0", "b#0", "a#2", "c#0"]
    found = {o.job_id: (o.verdict, o.detail) for o in outcomes}
    assert len(outcomes) == len(found)
    assert found == {
        name: ("passed" if "1" in text else "failed", text) for name, text in texts.items()
    }


class Failing(Counting):
    """Counting, where the first run of a program of task a fails by itself."""

    def _outcome(self, job: Job) -> Outcome:
        if job.job_id == "a#0":
            return Outcome(job.job_id, "sandbox-error", "lost a worker")
        return super()._outcome(job)


def test_a_failure_of_the_sandbox_is_not_shared() -> None:
    names = ["a#0", "a#1", "b#0", "a#2", "b#1", "a#3", "b#2"]
    sandbox = Failing()
    work = [Job(name, "f = 1", "pass", "f") for name in names]
    outcomes = list(judge_distinct(cast(Any, sandbox), work))
    found = {o.job_id: o.verdict for o in outcomes}
    assert len(outcomes) == len(found)
    assert found == dict.fromkeys(names, "passed") | {"a#0": "sandbox-error"}
    assert [name for name in sandbox.ran if name[0] == "b"] == ["b#0"]
    # a#1 waited for a#0 and runs by itself; those that come after run once between them.
    assert sandbox.ran[-1] == "a#1"


class SlowMachine:
    """A sandbox where reference solutions take `seconds`, noting the jobs it is given."""

    def __init__(self, seconds: float, verdict: str = "passed") -> None:
        self.seconds, self.verdict = seconds, verdict
        self.jobs: list[Job] = []

    def run_many(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        for job in jobs:
            self.jobs.append(job)
            yield Outcome(job.job_id, cast(Any, self.verdict), "", cpu_seconds=self.seconds)


def test_a_slow_reference_gives_its_programs_more_time(humaneval: HumanEval) -> None:
    names = ("HumanEval/0", "HumanEval/1")
    late = [
        Submission(names[0], 0, "program 0"),
        Submission(names[0], 1, "program 1"),
        Submission(names[1], 0, "program 2"),
    ]
    machine = SlowMachine(0.5)
    found = list(judged_by_reference(humaneval, cast(Any, machine), late))
    assert [outcome.job_id for outcome in found] == [
        "HumanEval/0#0",
        "HumanEval/0#1",
        "HumanEval/1#0",
    ]
    references, again = machine.jobs[:2], machine.jobs[2:]
    assert [job.program for job in references] == [
        humaneval.tasks[name].prompt + humaneval.tasks[name].canonical_solution for name in names
    ]
    assert [job.program for job in again] == ["program 0", "program 1", "program 2"]
    assert {job.time_limit for job in again} == {0.5 * REFERENCE_FACTOR}


@pytest.mark.parametrize(("seconds", "verdict"), [(0.01, "passed"), (9.0, "timeout")])
def test_a_fast_or_failing_reference_changes_nothing(
    humaneval: HumanEval, seconds: float, verdict: str
) -> None:
    machine = SlowMachine(seconds, verdict)
    late = [Submission("HumanEval/0", 0, "program")]
    assert list(judged_by_reference(humaneval, cast(Any, machine), late)) == []
    assert len(machine.jobs) == 1


def test_times_of_references_are_those_of_a_standard_processor(humaneval: HumanEval) -> None:
    class Slow(SlowMachine):
        def run_many(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
            yield from (replace(outcome, speed=2.0) for outcome in super().run_many(jobs))

    machine = Slow(1.0)
    late = [Submission("HumanEval/0", 0, "program")]
    assert list(judged_by_reference(humaneval, cast(Any, machine), late))
    assert machine.jobs[1].time_limit == 0.5 * REFERENCE_FACTOR


def test_the_usual_limit_is_the_official_one(humaneval: HumanEval) -> None:
    assert {job.time_limit for job in jobs(humaneval, 164)} == {TIME_LIMIT} == {3.0}


def test_a_slow_reference_gives_a_late_sample_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apr.eval.benchmarks.humaneval.TIME_LIMIT", 0.2)
    works = "    import time\n    while time.process_time() < {}: pass\n    return 1\n"
    task = {
        "task_id": "T/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "canonical_solution": works.format(0.15),
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task))
    row = {"task_id": "T/0", "completion": works.format(0.5)}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row))
    found = score_samples(tmp_path / "samples.jsonl", data=tmp_path / "tasks.jsonl", progress=False)
    (verdict,) = found.verdicts
    assert verdict.verdict == "passed" and not verdict.close
    assert verdict.cpu_seconds >= 0.5
    assert found.to_json()["program_cpu_seconds"] >= verdict.cpu_seconds + 0.2
