"""Chat answers of a samples file (`apr score --from chat`), as people and servers store them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apr.common.errors import UsageError
from apr.common.rows import is_unicode
from apr.eval.code.thoughts import with_reasoning

TEXTS = ("text", "response", "output", "raw", "output_list")
MESSAGES = ("messages", "conversations")
OFFICIAL = ("solution", "completion")
_NAMES = ("task_id", "question_id")


def chat_rows(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """A row for each answer in a row, with its `task_id` and in `text` all that the model wrote.

    Answers are a text, a list of texts (samples of the task), a list of content parts, or the last
    message of the assistant. Raises UsageError naming the place.
    """
    named = next((row[name] for name in _NAMES if name in row), None)
    ending = str(row.get("finish_reason") or "")
    texts = [with_reasoning(reasoning, text, ending) for text, reasoning in _answers(row, where)]
    if not all(map(is_unicode, texts)):
        raise UsageError(f"{where}: its answer is not text: a surrogate without its pair")
    others = {name: value for name, value in row.items() if name not in _NAMES}
    return [{**others, "task_id": named, "text": text} for text in texts]


def _answers(row: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
    """(Text, reasoning) of each answer."""
    for name in (*TEXTS, *MESSAGES, *OFFICIAL):
        if row.get(name) is None:
            continue
        value = row[name]
        if name in MESSAGES:
            message = _last_message(value, f"{where} field {name!r}")
            return [(_text(message, f"{where} field {name!r}"), _reasoning(message))]
        several = isinstance(value, list) and all(isinstance(one, str) for one in value)
        values = value if several and value else [value]
        return [(_plain(one, f"{where} field {name!r}"), _reasoning(row)) for one in values]
    raise UsageError(
        f"{where} holds no chat answer", f"in one of {', '.join((*TEXTS, *MESSAGES, *OFFICIAL))}"
    )


def _last_message(value: Any, where: str) -> Mapping[str, Any]:
    messages = value if isinstance(value, list) else [value]
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role", last.get("from")) not in ("assistant", "gpt"):
        raise UsageError(f"{where} does not end with a message of the assistant")
    return last


def _text(message: Mapping[str, Any], where: str) -> str:
    return _plain(message.get("content", message.get("value")), where)


def _plain(value: Any, where: str) -> str:
    """A text, or the texts of content parts; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _text(_last_message(value, where), where)
    parts: Sequence[Any] = value if isinstance(value, list) else [value]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{where} is neither a text nor a list of texts or of text parts")
    return "".join(map(str, texts))


def _reasoning(holder: Mapping[str, Any]) -> Any:
    return holder.get("reasoning_content") or holder.get("reasoning")
