"""Many prompts from a JSON-lines file, answers into another, resumable row by row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from apr.common.errors import AprError, UsageError
from apr.common.rows import json_object
from apr.engine.session import Session, TextCompletion, TextRequest
from apr.text.chat import check_message

KNOWN = ("task_id", "prompt", "messages")  # fields of a row


@dataclass(frozen=True)
class BatchReport:
    """Rows of the input, those answered before, and those answered now."""

    rows: int
    already_there: int
    answered: int


def read_requests(path: Path, template: TextRequest) -> list[TextRequest]:
    """The file's rows as requests with the settings of `template`.

    Rows: `prompt` (text) or `messages` (chat), and `task_id` (default: the line's number); what
    else a row asks for would not be done, and is refused. Raises UsageError naming file, line and
    field.
    """
    requests: dict[str, TextRequest] = {}
    for number, line in enumerate(_lines(path, _content(path)), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        row = json_object(where, line)
        if unknown := [name for name in row if name not in KNOWN]:
            raise UsageError(
                f"{where}: field {unknown[0]!r} is unknown",
                f"known: {', '.join(KNOWN)}; settings are options, the same for all rows",
            )
        task_id = str(number if row.get("task_id") is None else row["task_id"])
        if task_id in requests:
            raise UsageError(f"{where}: task_id {task_id!r} occurs twice")
        settings = replace(template, request_id=task_id, seed=row_seed(template.seed, task_id))
        requests[task_id] = _request(where, row, settings)
    if not requests:
        raise UsageError(f"{path} has no rows")
    return list(requests.values())


def row_seed(seed: int, task_id: str) -> int:
    """64 bits that differ between rows, so that equal prompts do not get equal random numbers."""
    digest = hashlib.blake2b(f"{seed} {task_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def answer_file(
    load: Callable[[], Session], requests: list[TextRequest], out: Path
) -> Iterator[BatchReport]:
    """Answer what `out` does not hold yet, one line a sample as it finishes.

    Yields how far it is after each line; the first report comes before anything is loaded. A row
    counts as answered when all its samples are there. Raises UsageError, before the first answer,
    for a prompt longer than the model's context.
    """
    have = _answered(out)
    left = {r.request_id: _missing_samples(r, have.get(r.request_id, set())) for r in requests}
    before = sum(not missing for missing in left.values())
    yield BatchReport(len(requests), before, 0)
    if before == len(requests):
        return
    session = load()
    wanted = [sample for missing in left.values() for sample in missing]
    _check(session, wanted)
    awaited = {task_id: sum(r.n for r in missing) for task_id, missing in left.items()}
    answered = 0
    with _append_to(out) as file:
        for completion in session.generate(wanted):
            file.write(json.dumps(row_of(completion), ensure_ascii=False) + "\n")
            file.flush()
            awaited[completion.request_id] -= 1
            answered += awaited[completion.request_id] == 0
            yield BatchReport(len(requests), before, answered)


def row_of(completion: TextCompletion) -> dict[str, Any]:
    """One output line."""
    row: dict[str, Any] = {
        "task_id": completion.request_id,
        "text": completion.text,
        "tokens_generated": completion.tokens_generated,
        "tok_per_sec": round(completion.tok_per_sec, 2),
        "finish_reason": completion.finish_reason,
        "sample": completion.sample_index,
        "prompt_tokens": completion.prompt_tokens,
    }
    if completion.logprobs is not None:
        row["logprobs"] = list(completion.logprobs)
    return row


def _missing_samples(request: TextRequest, have: set[int]) -> list[TextRequest]:
    """What is left of a row: all of it, or its missing samples one by one, or nothing."""
    first = request.sample_offset
    missing = [i for i in range(first, first + request.n) if i not in have]
    if len(missing) == request.n:
        return [request]
    return [replace(request, n=1, sample_offset=i) for i in missing]


def _check(session: Session, requests: list[TextRequest]) -> None:
    for request in requests:
        try:
            session.check(request)
        except AprError as error:
            error.message = f"task_id {request.request_id!r}: {error.message}"
            raise


def _append_to(out: Path) -> TextIO:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return out.open("a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out}: {(error.strerror or str(error)).lower()}") from None


def _answered(out: Path) -> dict[str, set[int]]:
    """task_id -> samples in the output. A last line cut off by a kill is taken away."""
    if not out.exists():
        return {}
    content = _content(out)
    whole = content[: content.rfind(b"\n") + 1]  # bytes: the cut may be inside a character
    samples: dict[str, set[int]] = {}
    for number, line in enumerate(_lines(out, whole), 1):
        if not line.strip():
            continue
        row = json_object(f"{out} line {number}", line)
        sample = row.get("sample", 0)
        if not isinstance(sample, int):
            raise UsageError(f"{out} line {number}: field 'sample' is not a number")
        samples.setdefault(str(row.get("task_id")), set()).add(sample)
    if len(whole) < len(content):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return samples


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _lines(path: Path, content: bytes) -> list[str]:
    """Lines by line feed alone: U+2028 and its like may stand inside a JSON string."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path} line {number} is not UTF-8 text") from None


def _request(where: str, row: dict[str, Any], settings: TextRequest) -> TextRequest:
    """settings.messages: what a chat prompt comes after (a system message or nothing)."""
    prompt, messages = row.get("prompt"), row.get("messages")
    if prompt is not None and messages is not None:
        raise UsageError(f"{where} has both 'prompt' and 'messages'", "keep one of them")
    before = settings.messages or []
    if messages is not None:
        _check_messages(where, messages)
        if messages[0]["role"] != "system":
            messages = [*before, *messages]
        return replace(settings, prompt=None, messages=messages)
    if not isinstance(prompt, str):
        raise UsageError(f"{where} has no text in field 'prompt' and no list in 'messages'")
    if settings.messages is None:
        return replace(settings, prompt=prompt)
    return replace(settings, messages=[*before, {"role": "user", "content": prompt}])


def _check_messages(where: str, messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{where}: field 'messages' is not a list of messages")
    for i, message in enumerate(messages):
        check_message(message, f"{where}: messages[{i}]")
