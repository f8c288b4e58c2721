"""Rows of training data in and out: JSON lines, JSON and Parquet, in the field's four shapes.

instruction        {instruction, response[, system, input]}; `output` is another name of response
messages           {messages: [{role, content}, ...]}
prompt-completion  {prompt, completion}, as texts, as lists of messages, or a list and a text
text               {text}; `content` is another name

Reading streams, except from .json, which is one array. Nothing here knows torch or tokens.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from apr.common.errors import AprError, UsageError
from apr.common.rows import read_rows

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


def read_fields(
    path: Path, on_bad: Callable[[UsageError], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of each row, whatever its shape. Raises UsageError.

    on_bad: told of a line that is no JSON object, instead of an error.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "name a .jsonl, .json or .parquet file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    unit = "row" if path.name.removesuffix(".gz").endswith(".json") else "line"
    for number, fields in read_rows(path, on_bad):
        yield f"{path} {unit} {number}", fields


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


@contextmanager
def row_writer(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes one row as a JSON line (.jsonl or .jsonl.gz).

    The file appears at the end, whole; after an error there is none, or the one from before.
    The same rows give the same bytes. Raises UsageError for another kind of file.
    """
    if path.name.removesuffix(".gz").rpartition(".")[2] != "jsonl":
        raise UsageError(f"-o {path}: rows are written as JSON lines", "end it .jsonl or .jsonl.gz")
    with atomic_file(path) as file:
        if path.suffix != ".gz":
            yield lambda row: _put(file, row)
            return
        with gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed:
            yield lambda row: _put(cast(IO[bytes], packed), row)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes its name when the block ends well. Raises AprError, UsageError."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "name a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise AprError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):  # there is nothing to remove
            temporary.unlink()


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


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise AprError(f"{path} is a parquet file", "pip install pyarrow reads it") from None
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", fields
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a parquet file that can be read: {error}") from None


def _put(file: IO[bytes], row: Mapping[str, Any]) -> None:
    """Escaped to ASCII: a row may hold half a surrogate pair, which UTF-8 cannot. Parquet's own
    types (dates, decimals) become text.
    """
    file.write(json.dumps(row, default=str).encode() + b"\n")
