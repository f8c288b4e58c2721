"""How fast programs run here just now, so that time limits mean the same everywhere.

Limits are in standard seconds: those of a processor that PROGRAM takes STANDARD seconds of, roughly
a desktop's of 2024 with CPython 3.11. A faster one has as many seconds of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from apr.sandbox.job import Job
from apr.sandbox.judging.calls import encode

STANDARD = 0.008  # seconds of a call
_CALLS = 7
# What programs do most: whole numbers, dicts, texts, sorting, nested lists, calls.
PROGRAM = """
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

def work():
    total = 0
    for i in range(60000):
        total = (total * 31 + i) % 1000003
    counts = {}
    for i in range(30000):
        key = i * 7919 % 4099
        counts[key] = counts.get(key, 0) + 1
    words = sorted(str(i * 7919 % 100003) for i in range(15000))
    table = [[i + j for j in range(60)] for i in range(60)]
    for i in range(1, 60):
        for j in range(1, 60):
            table[i][j] += max(table[i - 1][j], table[i][j - 1], table[i - 1][j - 1])
    return total, len(counts), len("".join(words)), table[-1][-1], fibonacci(19)
"""
JOB = Job(
    job_id="calibration",
    program=PROGRAM,
    entry_point="work",
    judge="calls",
    cases=lambda: [(encode(()), None, 60.0)] * _CALLS,
    time_limit=60.0,
)


def measured(answers: Sequence[tuple[float, Any]]) -> float:
    """Seconds of a standard second, by the answers to JOB; at least 1."""
    return max(1.0, median(seconds for seconds, _ in answers) / STANDARD)
