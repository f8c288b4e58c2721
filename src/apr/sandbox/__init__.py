"""Runs untrusted programs and decides about them where they cannot reach.

    with Sandbox() as sandbox:
        for outcome in sandbox.run_many(jobs):
            print(outcome.job_id, outcome.verdict, outcome.level)

Isolation is by kernel mechanisms (levels.py); same kernel, so for code that may carry a kernel
exploit use a virtual machine. Nothing here imports torch, or anything of apr but its errors.
"""

from apr.sandbox.job import LEVELS, VERDICTS, Job, Judge, Level, Outcome, Verdict
from apr.sandbox.pool import DEFAULT_PRELOAD, LevelReport, Sandbox, available_levels

__all__ = [
    "DEFAULT_PRELOAD",
    "LEVELS",
    "VERDICTS",
    "Job",
    "Judge",
    "Level",
    "LevelReport",
    "Outcome",
    "Sandbox",
    "Verdict",
    "available_levels",
]
