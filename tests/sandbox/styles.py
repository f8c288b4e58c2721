"""A program that defines `add(a, b)`, judged in each style: by the same two calls."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr.sandbox import Job
from apr.sandbox.judging.calls import encode

from . import hostile, hostile_unittest

MIB = 1 << 20
PAIRS = (((1, 2), 3), ((40, 2), 42))
PRELOAD = ("hashlib", "unittest", "unittest.mock")
_TAIL = "\na, b = map(int, input().split())\nprint(add(a, b))\n"
# No attack where one call is all that is asked of a process: its daemon answers as it would.
ANSWERS = "daemonising and answering from the daemon"
# Where that program does not pass either.
STRICT = ("proxy", "in-process", "unittest")


def _by_test(judge: Any) -> Callable[[str, str, float], Job]:
    test = hostile_unittest.TEST if judge == "unittest" else hostile.TEST

    def job(name: str, program: str, limit: float) -> Job:
        return Job(name, program, test, "add", judge=judge, time_limit=limit)

    return job


def _stdin(name: str, program: str, limit: float) -> Job:
    cases = [(f"{a} {b}\n", str(answer)) for (a, b), answer in PAIRS]
    return Job(name, program + _TAIL, judge="stdin", cases=lambda: cases, time_limit=limit)


def _functional(name: str, program: str, limit: float) -> Job:
    cases = [(f"{a}\n{b}", str(answer)) for (a, b), answer in PAIRS]
    job = Job(name, program, "", "add", judge="functional", cases=lambda: cases)
    return replace(job, time_limit=limit)


def _calls(name: str, program: str, limit: float) -> Job:
    cases = [(encode(given), encode(answer), limit) for given, answer in PAIRS]
    return Job(name, program, "", "add", judge="calls", cases=lambda: cases, time_limit=limit)


# assert statements far away and beside the program, unittest, standard input, JSON, EvalPlus' calls
STYLES: dict[str, Callable[[str, str, float], Job]] = {
    **{judge: _by_test(judge) for judge in ("proxy", "in-process", "unittest")},
    "stdin": _stdin,
    "functional": _functional,
    "calls": _calls,
}


def small(job: Job) -> Job:
    """With less memory and output to use up."""
    return replace(job, memory_bytes=512 * MIB, output_bytes=16 * MIB)


@contextmanager
def surroundings(folder: Path) -> Iterator[str]:
    """What hostile programs are told of: statements that define OUTSIDE, SECRET_FILE and PORT."""
    outside = folder / "outside"
    outside.mkdir(mode=0o700)
    (outside / "secret").write_text("a secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        secret = str(outside / "secret")
        yield f"OUTSIDE = {str(outside)!r}\nSECRET_FILE = {secret!r}\nPORT = {port}\n"
