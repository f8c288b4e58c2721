"""Rows of training data: what a row of any format (`apr.common.rows`) says, in four shapes.

instruction        {instruction, response[, system, input]}; `output` is another name of response
messages           {messages: [{role, content}, ...]}
prompt-completion  {prompt, completion}, as texts, as lists of messages, or a list and a text
text               {text}; `content` is another name

Nothing here knows torch or tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apr.common.errors import UsageError
from apr.common.rows import read_fields

Shape = Literal["instruction", "messages", "prompt-completion", "text"]
Message = Mapping[str, Any]  # role, content (text) and whatever else the row says of a turn
SHAPES = "instruction + response, messages, prompt + completion, or text"


@dataclass(frozen=True)
class Example:
    """One row.

    where: file and line, for messages. prompt: what is given; "" for plain text. response: what is
    to be learned, of all assistant turns; may be empty. messages: the turns, for a chat template;
    () where the row is raw text (prompt-completion as texts, text). fields: the row as it is.
    """

    where: str
    shape: Shape
    prompt: str
    response: str
    messages: tuple[Message, ...]
    fields: Mapping[str, Any]

    @property
    def text(self) -> str:
        """All of its words."""
        return f"{self.prompt}\n{self.response}" if self.prompt else self.response


def read_examples(path: Path) -> Iterator[Example]:
    """The rows of a file (.jsonl, .jsonl.gz, .json, .json.gz, .parquet).

    Raises UsageError, naming file and line, for what is no row of a known shape.
    """
    for where, fields in read_fields(path):
        yield recognise(fields, where)


def recognise(fields: Mapping[str, Any], where: str) -> Example:
    """The example a row holds, by its keys. Raises UsageError."""
    if "messages" in fields:
        return _conversation(fields["messages"], "messages", "messages", fields, where)
    if "instruction" in fields and ("response" in fields or "output" in fields):
        return _instruction(fields, where)
    if "prompt" in fields and "completion" in fields:
        if isinstance(fields["prompt"], list):
            answer = fields["completion"]
            if isinstance(answer, str):
                answer = [{"role": "assistant", "content": answer}]
            turns = [*fields["prompt"], *answer] if isinstance(answer, list) else None
            return _conversation(turns, "prompt/completion", "prompt-completion", fields, where)
        prompt, completion = _text(fields, "prompt", where), _text(fields, "completion", where)
        return Example(where, "prompt-completion", prompt, completion, (), fields)
    for name in ("text", "content"):
        if name in fields:
            return Example(where, "text", "", _text(fields, name, where), (), fields)
    names = ", ".join(fields) or "none"
    raise UsageError(f"{where} has no known shape, its fields: {names}", f"known: {SHAPES}")


def _instruction(fields: Mapping[str, Any], where: str) -> Example:
    name = "response" if "response" in fields else "output"
    response = _text(fields, name, where)
    given = {key: _text(fields, key, where) for key in ("system", "input") if fields.get(key)}
    question = _text(fields, "instruction", where)
    if "input" in given:
        question = f"{question}\n\n{given['input']}"
    turns = [("system", given["system"])] if "system" in given else []
    turns += [("user", question), ("assistant", response)]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    prompt = "\n\n".join(content for _, content in turns[:-1])
    return Example(where, "instruction", prompt, response, messages, fields)


def _conversation(
    turns: object, name: str, shape: Shape, fields: Mapping[str, Any], where: str
) -> Example:
    if not (isinstance(turns, list) and turns):
        raise UsageError(f"{where}: field {name!r} is not a list of messages")
    for number, turn in enumerate(turns, 1):
        for key in ("role", "content"):
            if isinstance(turn, dict) and key == "content" and turn.get("tool_calls"):
                continue  # a turn may call tools and say nothing
            if not (isinstance(turn, dict) and isinstance(turn.get(key), str)):
                raise UsageError(f"{where}: message {number} of {name!r} has no text in {key!r}")
    given = [turn.get("content") or "" for turn in turns if turn["role"] != "assistant"]
    learned = [turn.get("content") or "" for turn in turns if turn["role"] == "assistant"]
    return Example(where, shape, "\n\n".join(given), "\n\n".join(learned), tuple(turns), fields)


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(fields[name], str):
        raise UsageError(f"{where}: field {name!r} is not text")
    return fields[name]
