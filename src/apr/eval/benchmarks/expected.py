"""What reference solutions answer, found once in the sandbox and remembered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apr.common.errors import AprError
from apr.common.files import write_whole
from apr.common.progress import EvalProgress
from apr.hub.cache import cache_root, unwritable
from apr.sandbox import Job, Outcome, Sandbox
from apr.sandbox.codec import BadData
from apr.sandbox.interpreter import Interpreter
from apr.sandbox.judging.calls import Large, decode, encode, read_answer, reply_digest

RULES = 4  # to be raised when what is remembered changes its form or meaning


class Expected(NamedTuple):
    """Of one task. calls: calls.encode of each call's arguments. values: of each answer. seconds:
    standard seconds that it took.
    """

    calls: Sequence[bytes]
    values: Sequence[bytes | Large]
    seconds: Sequence[float]


def expected_answers(
    source: str, sandbox: Sandbox, interpreter: Interpreter, jobs: Sequence[Job], progress: bool
) -> dict[str, Expected]:
    """The answers of reference solutions, by job id.

    jobs: of the judge "calls", asking for answers. source: names the data they come from. Raises
    AprError if one fails: then nothing could be judged by it.
    """
    state = json.dumps([RULES, source, interpreter.fingerprint])
    folder = cache_root() / "expected" / hashlib.sha256(state.encode()).hexdigest()[:24]
    known = _read(folder)
    todo = [job for job in jobs if job.job_id not in known]
    if todo:
        by_id = {job.job_id: job for job in todo}
        shown = EvalProgress(len(todo), enabled=progress, what="reference solutions")
        try:
            for outcome in sandbox.run_many(todo):
                known[outcome.job_id] = _expected(by_id[outcome.job_id], outcome, folder)
                shown.verdict(True)
        finally:
            shown.close()
        _write(folder, known)
    return {job.job_id: known[job.job_id] for job in jobs}


def _expected(job: Job, outcome: Outcome, folder: Path) -> Expected:
    if not outcome.passed:
        raise AprError(f"the reference of {job.job_id}: {outcome.detail}")
    answers = [read_answer(*answer) for answer in outcome.answers]
    raised = next((answer.error for answer in answers if answer.error), None)
    if raised is not None:
        raise AprError(f"the reference of {job.job_id} raises {raised}")
    assert job.cases is not None
    return Expected(
        calls=[case[0] for case in job.cases()],
        values=[_kept(encode(answer.value), folder) for answer in answers],
        seconds=[answer.seconds / outcome.speed for answer in answers],
    )


def _kept(value: bytes, folder: Path) -> bytes | Large:
    """The value, or what stands for it if it went into a file of its own: those are seldom read."""
    digest = reply_digest(value)
    if digest is None:
        return value
    path = folder / digest.hex()
    _replace(path, value)
    return Large(digest, path.read_bytes)


def _read(folder: Path) -> dict[str, Expected]:
    """What was found before; nothing if the files are damaged."""
    try:
        stored = decode((folder / "answers").read_bytes()).items()
        return {name: _restored(folder, *parts) for name, parts in stored}
    except (OSError, BadData, AttributeError, TypeError, IndexError):
        return {}


def _restored(
    folder: Path,
    calls: list[bytes],
    values: list[Any],
    seconds: list[float],
    large: dict[int, tuple[bytes, int]],
) -> Expected:
    for number, (digest, size) in large.items():
        path = folder / digest.hex()
        if path.stat().st_size != size:
            raise BadData(f"{path} is damaged")
        values[number] = Large(digest, path.read_bytes)
    return Expected(calls, values, seconds)


def _write(folder: Path, known: dict[str, Expected]) -> None:
    plain = {}
    for name, (calls, values, seconds) in known.items():
        small = [b"" if isinstance(value, Large) else value for value in values]
        large = {
            number: (value.digest, (folder / value.digest.hex()).stat().st_size)
            for number, value in enumerate(values)
            if isinstance(value, Large)
        }
        plain[name] = (list(calls), small, list(seconds), large)
    _replace(folder / "answers", encode(plain))


def _replace(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise unwritable(path, error) from None
