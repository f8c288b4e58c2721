"""Many prompts from a JSON-lines file, answers into another, resumable row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apr.engine.session import Session, TextCompletion, TextRequest
from apr.errors import UsageError


@dataclass(frozen=True)
class BatchReport:
    """Rows of the input, those answered before, and those answered now."""

    rows: int
    already_there: int
    answered: int


def read_requests(path: Path, template: TextRequest) -> list[TextRequest]:
    """The file's rows as requests with the settings of `template`.

    Rows: `prompt` (text) or `messages` (chat), and `task_id` (default: the line's number). Raises
    UsageError naming file, line and field.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    requests: dict[str, TextRequest] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        row = _json_object(where, line)
        task_id = str(row.get("task_id", number))
        if task_id in requests:
            raise UsageError(f"{where}: task_id {task_id!r} occurs twice")
        requests[task_id] = _request(where, row, task_id, template)
    if not requests:
        raise UsageError(f"{path} has no rows")
    return list(requests.values())


def answer_file(
    load: Callable[[], Session], requests: list[TextRequest], out: Path
) -> Iterator[BatchReport]:
    """Answer what `out` does not hold yet, one line a sample as it finishes.

    Yields how far it is after each line; the first report comes before anything is loaded. A row
    counts as answered when all its samples are there.
    """
    have = _answered(out)
    missing = [r for r in requests if have.get(r.request_id, 0) < r.n]
    before = len(requests) - len(missing)
    yield BatchReport(len(requests), before, 0)
    if not missing:
        return
    session = load()
    out.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, int] = {}
    with out.open("a", encoding="utf-8") as file:
        for completion in session.generate(missing):
            file.write(json.dumps(row_of(completion), ensure_ascii=False) + "\n")
            file.flush()
            done[completion.request_id] = done.get(completion.request_id, 0) + 1
            finished = sum(count == requests[0].n for count in done.values())
            yield BatchReport(len(requests), before, finished)


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


def _answered(out: Path) -> dict[str, int]:
    """task_id -> samples in the output. A last line cut off by a kill is taken away."""
    if not out.exists():
        return {}
    text = out.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        out.write_text(whole, encoding="utf-8")
    counts: dict[str, int] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        task_id = str(_json_object(f"{out} line {number}", line).get("task_id"))
        counts[task_id] = counts.get(task_id, 0) + 1
    return counts


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where} is not a JSON object")
    return row


def _request(where: str, row: dict[str, Any], task_id: str, template: TextRequest) -> TextRequest:
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(messages, list) and prompt is None:
        return replace(template, request_id=task_id, prompt=None, messages=messages)
    if not isinstance(prompt, str):
        raise UsageError(f"{where} has no text in field 'prompt' and no list in 'messages'")
    if template.messages is None:
        return replace(template, request_id=task_id, prompt=prompt)
    turn = {"role": "user", "content": prompt}
    return replace(template, request_id=task_id, messages=[*template.messages, turn])
