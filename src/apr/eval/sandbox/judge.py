"""The process that decides: it runs the trusted test and never the candidate's code."""

from __future__ import annotations

import contextlib
import functools
import hmac
import os
from types import CodeType
from typing import Any

from . import channel, codec
from .remote import Candidate, CandidateGone, TestNeedsInside, TooMuchOutput
from .stdio import silence

MAX_MESSAGE = 64 << 20


@functools.lru_cache(maxsize=512)
def compiled(source: str) -> CodeType | SyntaxError:
    """The code of a test or of trusted definitions (many samples share one)."""
    try:
        return compile(source, "<string>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return error


def decide(fd: int, job: dict[str, Any], inside: bool) -> dict[str, Any]:
    """The verdict on the program of `job`, whose process is at the other end of socket `fd`.

    Returns {"verdict", "detail"}; "gone" in place of a verdict when that process ended (its
    wait status tells more), "inside" when the test must run beside the program.
    """
    silence()
    candidate = Candidate(fd, job["output"])
    try:
        error = _attempt(fd, candidate, job, inside)
    except BaseException as raised:
        error = raised
    # The test may have swallowed the connection's failure.
    if candidate.broken is not None:
        error = candidate.broken
    if error is None:
        return {"verdict": "passed", "detail": "passed"}
    return _explain(error)


class SetupFailed(Exception):
    """The candidate's process could not be confined, so nothing ran in it."""


class _FailedInside(Exception):
    pass


def _explain(error: BaseException) -> dict[str, Any]:
    verdict = {
        CandidateGone: "gone",
        TestNeedsInside: "inside",
        TooMuchOutput: "output",
        MemoryError: "memory",
        SetupFailed: "sandbox-error",
    }.get(type(error), "failed")
    prefix = "" if verdict in ("gone", "inside", "sandbox-error") else "failed: "
    return {"verdict": verdict, "detail": f"{prefix}{error}"}


def _attempt(
    fd: int, candidate: Candidate, job: dict[str, Any], inside: bool
) -> BaseException | None:
    namespace: dict[str, Any] = {}
    if not inside:
        _execute(job["trusted"], namespace)
    names = [name for name in namespace if name != "__builtins__"]
    order = {
        "program": job["program"],
        "entry_point": job["entry_point"],
        "names": [*names, job["entry_point"]],
        "inside": inside,
    }
    with contextlib.suppress(channel.Closed):  # it says why in its hello, or is gone
        channel.send(fd, order)
    try:
        hello = channel.receive(fd, MAX_MESSAGE)
    except (channel.Closed, codec.BadData) as error:
        raise CandidateGone(str(error)) from None
    if "setup" in hello:
        return SetupFailed(f"the candidate could not be confined: {hello['setup']}")
    _, defined = candidate.first_reply()
    if inside:
        return _judge_inside(fd, job["check"])
    for name in names:
        if name not in defined:
            del namespace[name]
    if job["entry_point"] in defined:
        namespace[job["entry_point"]] = candidate.function(job["entry_point"])
    _execute(job["check"], namespace)
    if candidate.request("bool", True) is not True:
        return CandidateGone("it answers nonsense")
    return None


def _execute(source: str, namespace: dict[str, Any]) -> None:
    code = compiled(source)
    if isinstance(code, SyntaxError):
        raise code
    exec(code, namespace)


def _judge_inside(fd: int, check: str) -> BaseException | None:
    """Hand over test and token; None if the token comes back (inside.run_check)."""
    token = os.urandom(16)
    try:
        channel.send(fd, check)
        channel.send(fd, token)
        answer = channel.receive(fd, MAX_MESSAGE)
    except (channel.Closed, channel.TooLarge, codec.BadData) as error:
        return CandidateGone(str(error))
    if type(answer) is not dict:
        return CandidateGone("it answers nonsense")
    returned = answer.get("token")
    if type(returned) is bytes and hmac.compare_digest(returned, token):
        return None
    text = str(answer.get("failed", ""))
    return MemoryError(text) if answer.get("kind") == "MemoryError" else _FailedInside(text)
