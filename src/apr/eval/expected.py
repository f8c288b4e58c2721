"""What reference solutions answer, found once in the sandbox and remembered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from apr.errors import AprError
from apr.eval.interpreter import Interpreter
from apr.eval.progress import EvalProgress
from apr.eval.sandbox import Job, Sandbox
from apr.eval.sandbox.calls import decode, encode, read_answer
from apr.eval.sandbox.codec import BadData
from apr.hub.cache import cache_root, unwritable

RULES = 2  # to be raised when what is remembered changes its form or meaning


class Expected(NamedTuple):
    """Of one task. values: calls.encode of each answer. seconds: processor time it took."""

    values: tuple[bytes, ...]
    seconds: tuple[float, ...]


def expected_answers(
    source: str, sandbox: Sandbox, interpreter: Interpreter, jobs: Sequence[Job], progress: bool
) -> dict[str, Expected]:
    """The answers of reference solutions, by job id.

    jobs: of the judge "calls", asking for answers. source: names the data they come from. Raises
    AprError if one fails: then nothing could be judged by it.
    """
    state = json.dumps([RULES, source, interpreter.fingerprint])
    path = cache_root() / "expected" / f"{hashlib.sha256(state.encode()).hexdigest()[:24]}.bin"
    known = _read(path)
    todo = [job for job in jobs if job.job_id not in known]
    if todo:
        shown = EvalProgress(len(todo), enabled=progress)
        try:
            for outcome in sandbox.run_many(todo):
                if not outcome.passed:
                    raise AprError(f"the reference of {outcome.job_id}: {outcome.detail}")
                answers = [read_answer(*answer) for answer in outcome.answers]
                raised = next((answer.error for answer in answers if answer.error), None)
                if raised is not None:
                    raise AprError(f"the reference of {outcome.job_id} raises {raised}")
                known[outcome.job_id] = Expected(
                    tuple(encode(answer.value) for answer in answers),
                    tuple(answer.seconds for answer in answers),
                )
                shown.verdict(True)
        finally:
            shown.close()
        _write(path, known)
    return {job.job_id: known[job.job_id] for job in jobs}


def _read(path: Path) -> dict[str, Expected]:
    """What was found before; nothing if the file is damaged."""
    try:
        return {name: Expected(*value) for name, value in decode(path.read_bytes()).items()}
    except (OSError, BadData, AttributeError, TypeError):
        return {}


def _write(path: Path, known: dict[str, Expected]) -> None:
    plain = {name: (value.values, value.seconds) for name, value in known.items()}
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(encode(plain))
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None
