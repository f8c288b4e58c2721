"""Rows of training data: what a row of any format (`apr.common.rows`) says, by its columns.

messages           {messages} or {conversations}: turns of role and content, or of from and value,
                   beside them perhaps {tools, system}
instruction        a question and its answer: the first of `QUESTIONS` and of `ANSWERS` that a row
                   has, perhaps {input} or {context}, {system}, {history}
prompt-completion  {prompt, completion}, as texts, as lists of messages, or a list and a text
text               {text}; `content` is another name

What a row says under other names ({human}, {function_call}, arguments as JSON text, content as a
list of parts) is put in the words of chat templates. Nothing here knows torch or tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apr.common.errors import UsageError
from apr.common.rows import read_fields

Shape = Literal["instruction", "messages", "prompt-completion", "text"]
Message = Mapping[str, Any]  # role, content (text) and whatever else the row says of a turn

QUESTIONS = ("instruction", "question", "query", "problem", "prompt", "input")
ANSWERS = ("response", "output", "solution", "answer", "completion")
PASSAGES = ("input", "context")  # stand below the question
SYSTEM = ("system", "system_prompt")
CONVERSATIONS = ("messages", "conversations", "conversation")
TEXTS = ("text", "content")
TOOLS = ("tools", "functions")
# Columns that say whether the answer is a good one.
LABELS = ("label", "kto_tag")
# What `columns` may name.
NAMES = (*dict.fromkeys(QUESTIONS + ANSWERS + PASSAGES + SYSTEM), *CONVERSATIONS, *TEXTS, *TOOLS)
KNOWN = "messages, a question and its answer, prompt + completion, or text"

ROLES = {
    **dict.fromkeys(("human", "User", "Human"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "Assistant"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response", "function"), "tool"),
}
CALL_ROLES = ("function_call", "tool_call")
# Keys of a turn that say whether it is learned: OpenAI's and Mistral's, Axolotl's, Swift's.
MARKS = ("weight", "train", "training", "loss")
TEXT_PARTS = ("text", "input_text", "output_text", "thinking")
REASONING = ("reasoning_content", "thinking", "reasoning")


class BadRow(Exception):
    """Why a row cannot be learned from; the reader knows file and line."""


@dataclass(frozen=True)
class Example:
    """One row.

    where: file and line, for messages. prompt: what is given; "" for plain text. response: what is
    to be learned, of all assistant turns; may be empty. messages: the turns, for a chat template;
    () where the row is raw text (prompt-completion as texts, text). learned: which of them the
    model is to learn to write. tools: JSON schemas. rejected: the row calls its answer a bad one.
    fields: the row as it is; unused: its columns that say something and are not used.
    """

    where: str
    shape: Shape
    prompt: str
    response: str
    messages: tuple[Message, ...]
    fields: Mapping[str, Any]
    learned: tuple[int, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    rejected: bool = False
    unused: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All of its words, but those of tools' schemas."""
        return f"{self.prompt}\n{self.response}" if self.prompt else self.response


def read_examples(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[Example]:
    """The rows of a file (.jsonl, .json, .csv, each also .gz; .parquet). columns: see `recognise`.

    Raises UsageError, naming file and line, for what is no row of a known shape.
    """
    for where, fields in read_fields(path):
        try:
            yield recognise(fields, where, columns)
        except BadRow as error:
            raise UsageError(f"{where}: {error}") from None


def column_names(entries: Sequence[str]) -> dict[str, str]:
    """What `columns` says, as "prompt=question": our name -> the data's. Raises UsageError."""
    found = {}
    for entry in entries:
        name, equals, column = entry.partition("=")
        if not (equals and column) or name not in NAMES:
            raise UsageError(
                f"`columns` {entry} is not NAME=COLUMN", f"a NAME is one of {', '.join(NAMES)}"
            )
        found[name] = column
    return found


def recognise(
    fields: Mapping[str, Any], where: str, columns: Mapping[str, str] | None = None
) -> Example:
    """The example a row holds. columns: our name -> the row's, where names say nothing by
    themselves; other columns then count as absent. Raises BadRow.
    """
    row = _Row(fields, columns or {})
    found = _recognised(row, where)
    label = row.value_of(LABELS) if found.shape != "text" else None
    rejected = label is False or (isinstance(label, str) and label.lower() == "false")
    unused = tuple(
        name for name in fields if name not in row.used and not _says_nothing(fields[name])
    )
    return Example(**{**vars(found), "rejected": rejected, "unused": unused})


class _Row:
    """A row under our names, and which of its own columns were looked at. Raises BadRow."""

    def __init__(self, fields: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        missing = [column for column in columns.values() if column not in fields]
        if missing:
            names = ", ".join(map(str, fields)) or "none"
            raise BadRow(f"there is no column {missing[0]!r}, its columns: {names}")
        self.fields, self.used = fields, set[str]()
        self._columns = columns or {name: name for name in fields}

    def name(self, names: Sequence[str]) -> str | None:
        """The first of the names that says something, or else the first that is there."""
        there = [name for name in names if name in self._columns]
        saying = [name for name in there if not _says_nothing(self._value(name))]
        return next(iter(saying + there), None)

    def has(self, *names: str) -> bool:
        return all(name in self._columns for name in names)

    def get(self, name: str) -> Any:
        self.used.add(self._columns[name])
        return self._value(name)

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise BadRow(f"{self._columns[name]} is not text")
        return value

    def value_of(self, names: Sequence[str]) -> Any:
        """The value of a column that may be missing, None where it is or says nothing."""
        name = self.name(names)
        return None if name is None or _says_nothing(self._value(name)) else self.get(name)

    def _value(self, name: str) -> Any:
        return self.fields[self._columns[name]]


def _says_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _recognised(row: _Row, where: str) -> Example:
    conversation = row.name(CONVERSATIONS)
    if conversation is not None:
        turns = _json(row.get(conversation), conversation)
        return _conversation(row, turns, conversation, "messages", where)
    if row.has("prompt", "completion") and not row.has("instruction"):
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(prompt, list):
            if isinstance(completion, str):
                completion = [{"role": "assistant", "content": completion}]
            turns = [*prompt, *completion] if isinstance(completion, list) else None
            name = "prompt and completion"
            return _conversation(row, turns, name, "prompt-completion", where, len(prompt))
        texts = row.text("prompt"), row.text("completion")
        return Example(where, "prompt-completion", *texts, (), row.fields)
    question = row.name(QUESTIONS)
    answer = row.name(ANSWERS)
    if question is not None and answer is not None:
        return _instruction(row, question, answer, where)
    text = row.name(TEXTS)
    if text is not None:
        return Example(where, "text", "", row.text(text), (), row.fields)
    if row.has("chosen", "rejected"):
        raise BadRow(
            "it is a pair of a better and a worse answer: apr align learns from those"
            " (`columns` prompt=prompt,response=chosen: from the better one)"
        )
    names = ", ".join(map(str, row.fields)) or "none"
    raise BadRow(
        f"it has no known shape, its columns: {names} (known: {KNOWN};"
        " `columns` prompt=COLUMN,response=COLUMN names others)"
    )


def _instruction(row: _Row, question: str, answer: str, where: str) -> Example:
    asked, response = row.text(question), row.text(answer)
    passage = row.name([name for name in PASSAGES if name != question])
    if passage is not None and not _says_nothing(row.value_of([passage])):
        asked = f"{asked}\n\n{row.text(passage)}"
    turns = [*_system(row), *_history(row)]
    turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": response}]
    given = [turn["content"] for turn in turns[:-1]]
    learned = tuple(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
    return Example(
        where, "instruction", "\n\n".join(given), response, tuple(turns), row.fields, learned
    )


def _system(row: _Row) -> list[dict[str, Any]]:
    name = row.name(SYSTEM)
    if name is None or _says_nothing(row.value_of([name])):
        return []
    return [{"role": "system", "content": row.text(name)}]


def _history(row: _Row) -> list[dict[str, Any]]:
    """Earlier questions and answers, as Alpaca's format has them."""
    rounds = _json(row.value_of(["history"]), "history") or []
    turns = []
    for one in rounds if isinstance(rounds, list) else [rounds]:
        if not (isinstance(one, list) and len(one) == 2 and all(isinstance(t, str) for t in one)):
            raise BadRow("history is not a list of questions and answers")
        turns += [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant"), one, strict=True)
        ]
    return turns


def _conversation(
    row: _Row, turns: object, name: str, shape: Shape, where: str, first: int = 0
) -> Example:
    """first: turns before this one are context only."""
    if not (isinstance(turns, list) and turns):
        raise BadRow(f"{name} is not a list of messages")
    messages, learned = [], []
    for number, raw in enumerate(turns):
        message, marked = _message(raw, f"message {number + 1} of {name}")
        messages.append(message)
        if marked and number >= first:
            learned.append(number)
    if messages[0]["role"] != "system":
        added = _system(row)
        messages, learned = added + messages, [number + len(added) for number in learned]
    tools = _tools(_json(row.value_of(TOOLS), "tools"))
    parts = [words_of(message) for message in messages]
    given = [part for number, part in enumerate(parts) if number not in learned]
    given += tool_names(tools)
    written = [part for number, part in enumerate(parts) if number in learned]
    return Example(
        where, shape, "\n\n".join(given), "\n\n".join(written), tuple(messages), row.fields,
        tuple(learned), tools,
    )  # fmt: skip


def _message(raw: object, where: str) -> tuple[dict[str, Any], bool]:
    """A turn in the words of chat templates, and whether it is learned."""
    if not isinstance(raw, Mapping):
        raise BadRow(f"{where} is no message with a role")
    turn = {key: value for key, value in raw.items() if value is not None}
    role = turn.pop("role", turn.pop("from", None))
    if not isinstance(role, str):
        raise BadRow(f"{where} has no text in 'role'")
    marked = _mark(turn, where)
    content, thought = _content(turn.pop("content", turn.pop("value", None)), where)
    calls = turn.pop("tool_calls", None) or []
    if role in CALL_ROLES:
        role, calls, content = "assistant", content, None
    if "function_call" in turn:
        calls = turn.pop("function_call")
    role = ROLES.get(role, role)
    thoughts = [turn.pop(key) for key in REASONING if key in turn] + [thought]
    if not all(isinstance(one, str) for one in thoughts):
        raise BadRow(f"{where}: its reasoning is not text")
    message: dict[str, Any] = {"role": role, **turn}
    if any(thoughts):
        message["reasoning_content"] = next(filter(None, thoughts))
    if calls:
        message["tool_calls"] = _calls(calls, where)
    if content is not None:
        message["content"] = content
    elif not calls:
        raise BadRow(f"{where} has no text in 'content'")
    if role != "assistant" and marked:
        raise BadRow(f"{where} is marked to be learned, and it is not the assistant's")
    return message, role == "assistant" and marked is not False


def _mark(turn: dict[str, Any], where: str) -> bool | None:
    """What a turn says of whether it is learned, None where it says nothing."""
    if "train_detail" in turn:
        raise BadRow(f"{where}: train_detail marks parts of a turn; only whole turns are marked")
    found = None
    for key in MARKS:
        value = turn.pop(key, None)
        if value is not None:
            if value not in (0, 1):
                raise BadRow(f"{where}: {key} is {value!r}, neither 0 nor 1")
            found = bool(value)
    return found


def _content(content: object, where: str) -> tuple[str | None, str]:
    """(the text of a turn, its thoughts); parts are joined."""
    if content is None or isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise BadRow(f"{where}: its content is {_kind(content)}, not text")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        kind, text = "text", part
        if isinstance(part, Mapping):
            kind = str(part.get("type", "text"))
            text = part.get("thinking" if kind == "thinking" else "text")
        if not isinstance(text, str) or kind not in TEXT_PARTS:
            raise BadRow(f"{where}: its content has a part of type {kind}; only text is learned")
        (thoughts if kind == "thinking" else texts).append(text)
    return "".join(texts), "".join(thoughts)


def _calls(calls: object, where: str) -> list[dict[str, Any]]:
    """Calls of tools, their arguments as objects."""
    calls = _json(calls, f"{where}: its tool call")
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
            raise BadRow(f"{where}: a tool call has no name")
        arguments = function.get("arguments", {})
        arguments = _json(arguments or {}, f"{where}: the arguments of {function['name']}")
        outer = call if isinstance(call, Mapping) and call is not function else {}
        inner = {**function, "arguments": arguments}
        found.append({"type": "function", **outer, "function": inner})
    return found


def _tools(tools: object) -> tuple[dict[str, Any], ...]:
    if tools is None:
        return ()
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRow("tools is not a list of JSON schemas")
    # Functions by themselves, as OpenAI's older format has them: models see them as tools.
    bare = [tool for tool in tools if "name" in tool and "function" not in tool]
    return tuple({"type": "function", "function": t} if t in bare else t for t in tools)


def tool_names(things: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names in tools' schemas, or in calls; those without one are left out."""
    inner = [thing.get("function", thing) for thing in things]
    return [one["name"] for one in inner if isinstance(one, Mapping) and "name" in one]


def words_of(value: object) -> str:
    """All that stands in a turn, a call or a schema, without JSON around it."""
    return "\n".join(_leaves(value))


def _leaves(value: object, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in ("role", "type", "id", "tool_call_id"):
                yield from _leaves(inner, name)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, key)
    elif value is not None:
        yield str(value)


def _json(value: object, name: str) -> object:
    """A value that may be given as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(f"{name} is not JSON") from None


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", bool: "true or false", str: "text"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "null")
