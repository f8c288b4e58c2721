"""The process that decides: it runs the trusted test and never the candidate's code."""

from __future__ import annotations

import ast
import functools
import os
import socket
import traceback
from collections.abc import Callable
from types import CodeType
from typing import Any

from .. import channel, codec
from ..stdio import Full, silence
from . import calls, cases, unittest_judge
from .remote import (
    MAX_MESSAGE,
    Candidate,
    CandidateGone,
    SetupFailed,
    TestNeedsInside,
    TooMuchOutput,
    start,
)

MAX_JOB = 512 << 20
SOURCE = "<string>"  # what tracebacks call trusted text
ASSERTION_SHOWN = 200


@functools.lru_cache(maxsize=512)
def compiled(source: str) -> CodeType:
    """The code of trusted text (many samples share one)."""
    return compile(source, SOURCE, "exec", dont_inherit=True)


@functools.lru_cache(maxsize=512)
def compiled_prefix(source: str) -> CodeType:
    """The code of a prompt: as it is if it ends in a docstring, else with a last body added."""
    try:
        return compiled(source)
    except SyntaxError:
        return compiled(source + "\n    pass\n")


class _FailedInside(Exception):
    """What the test beside the candidate raised."""


def serve(control: socket.socket) -> None:
    """Decide job after job until the worker closes `control`.

    Messages: in a byte that carries the candidate's socket, then the job; out {"lap": limit} when
    the time of another test begins (None: its limit is the job's), and last the decision.
    """
    import random  # not before the fork: the zygote and its children would carry it

    silence()

    def lap(limit: float | None = None) -> None:
        channel.send_trusted(control.fileno(), {"lap": limit})

    while True:
        random.seed(0)  # tests that draw their cases draw the same ones every time
        _, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not fds:
            return
        job = channel.receive_trusted(control.fileno(), MAX_JOB)
        decision = decide(fds[0], job, lap)
        os.close(fds[0])
        channel.send_trusted(control.fileno(), decision)


def decide(fd: int, job: dict[str, Any], lap: Callable[..., None]) -> dict[str, Any]:
    """The verdict on the program of `job`, whose process is at the other end of socket `fd`.

    Returns {"verdict", "detail"}; "gone" in place of a verdict when that process ended (its
    wait status tells more). lap: called when the time of another test begins.
    """
    candidate = Candidate(fd, job["output"])
    error: BaseException | None = None
    answers: list[tuple[float, bytes]] = []
    try:
        if job["judge"] == "proxy":
            error = _by_proxy(fd, candidate, job)
        elif job["judge"] == "in-process":
            error = _inside(fd, job)
        elif job["judge"] == "unittest":
            error = unittest_judge.judge(fd, candidate, job)
        elif job["judge"] == "stdin":
            cases.judge_script(fd, job)
        elif job["judge"] == "calls":
            answers = calls.judge(fd, candidate, job, lap)
        else:
            cases.judge_calls(fd, candidate, job, lap)
    except BaseException as raised:
        error = raised
    # The test may have swallowed the connection's failure.
    if candidate.broken is not None:
        error = candidate.broken
    if error is None:
        return {"verdict": "passed", "detail": "passed", "answers": answers}
    return _explain(error, job["test"])


def _explain(error: BaseException, test: str) -> dict[str, Any]:
    verdict, prefix = {
        CandidateGone: ("gone", ""),
        TestNeedsInside: ("sandbox-error", ""),
        SetupFailed: ("sandbox-error", ""),
        TooMuchOutput: ("output-limit", "failed: "),
        MemoryError: ("memory", "failed: "),
        cases.WrongAnswer: ("failed", "failed: wrong answer: "),
        cases.ProgramRaised: ("failed", "failed: runtime error: "),
        cases.ProgramDied: ("error", "failed: runtime error: "),
        calls.NeedsWhole: ("needs-whole", ""),
        cases.OutOfTime: ("timeout", "timed out"),
    }.get(type(error), ("failed", "failed: "))
    return {"verdict": verdict, "detail": f"{prefix}{str(error) or _unsaid(error, test)}"}


def _unsaid(error: BaseException, test: str) -> str:
    """In place of an empty message: the assertion of the test that failed, else what was raised."""
    if isinstance(error, AssertionError):
        lines = [
            line
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename == SOURCE
        ]
        found = _assertions(test)
        for line in reversed(lines):
            if line in found:
                return found[line]
    return type(error).__name__


@functools.lru_cache(maxsize=8)
def _assertions(test: str) -> dict[int, str]:
    """Line -> the assertion that it belongs to, in one line."""
    return {
        line: " ".join(ast.unparse(node).split())[:ASSERTION_SHOWN]
        for node in ast.walk(ast.parse(test))
        if isinstance(node, ast.Assert)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def _by_proxy(fd: int, candidate: Candidate, job: dict[str, Any]) -> BaseException | None:
    namespace: dict[str, Any] = {}
    entry_point = job["entry_point"]
    try:
        test = compiled(job["test"])
        exec(compiled_prefix(job["trusted"]), namespace)
    except Exception as error:
        return SetupFailed(f"the trusted code does not run: {type(error).__name__}: {error}")
    names = [name for name in namespace if name != "__builtins__"]
    defined = start(fd, candidate, job, [*names, entry_point])
    for name in names:
        if name not in defined:
            del namespace[name]
    if entry_point in defined:
        namespace[entry_point] = candidate.function(entry_point)
    before = namespace.get("check")
    exec(test, namespace)
    check = namespace.get("check")
    if check is not None and check is not before:
        if entry_point not in defined:
            raise NameError(f"name {entry_point!r} is not defined")
        check(namespace[entry_point])
    if candidate.request("bool", True) is not True:
        return CandidateGone("it answers nonsense")
    return None


def _inside(fd: int, job: dict[str, Any]) -> BaseException | None:
    """Hand over test and token; None if the token comes back (inside.run_check)."""
    candidate = Candidate(fd, job["output"])
    start(fd, candidate, job, [])
    token = os.urandom(16)
    try:
        channel.send(fd, job["test"])
        channel.send(fd, token)
        answer = channel.receive(fd, MAX_MESSAGE)
    except (channel.Closed, channel.TooLarge, codec.BadData) as error:
        return CandidateGone(str(error))
    if type(answer) is not dict:
        return CandidateGone("it answers nonsense")
    returned = answer.get("token")
    if type(returned) is bytes and returned == token:
        return None
    text = str(answer.get("failed", "") or answer.get("kind", ""))
    if answer.get("kind") == Full.__name__:
        return TooMuchOutput(text)
    return MemoryError(text) if answer.get("kind") == "MemoryError" else _FailedInside(text)
