"""Rows of training data: shapes, file formats, errors by file and line, atomic writing."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import AprError, UsageError
from apr.common.rows import read_fields, row_writer
from apr.data.training_rows import BadRow, Example, column_names, read_examples, recognise

ROWS: list[dict[str, Any]] = [
    {"instruction": "Add.", "response": "a + b", "system": "Be brief.", "input": "a, b"},
    {"instruction": "Add.", "input": "", "output": "a + b", "id": 3},
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye ✓"},
            {"role": "assistant", "content": "See you"},
        ]
    },
    {"prompt": "def f(", "completion": "x):"},
    {
        "prompt": [{"role": "user", "content": "Q"}],
        "completion": [{"role": "assistant", "content": "A"}],
    },
    {"text": "x = 1\n"},
    {"content": "y", "path": "a.py"},
]


def seen(example: Example) -> tuple[str, str, str, int]:
    return example.shape, example.prompt, example.response, len(example.messages)


SEEN = [
    ("instruction", "Be brief.\n\nAdd.\n\na, b", "a + b", 3),
    ("instruction", "Add.", "a + b", 2),
    ("messages", "Hi\n\nBye ✓", "Hello\n\nSee you", 4),
    ("prompt-completion", "def f(", "x):", 0),
    ("prompt-completion", "Q", "A", 2),
    ("text", "", "x = 1\n", 0),
    ("text", "", "y", 0),
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz"])
def test_formats_hold_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = "\n\n".join(map(json.dumps, ROWS))
    data = (json.dumps(ROWS) if ".json." in f"{name}." else lines).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    examples = list(read_examples(path))
    assert [seen(one) for one in examples] == SEEN
    assert [one.fields for one in examples] == ROWS
    unit = "row 3" if ".json." in f"{name}." else "line 5"
    assert examples[2].where == f"{path} {unit}"


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [one.fields for one in read_examples(path)] == rows
    assert [one.where for one in read_examples(path)][2999] == f"{path} row 3000"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match=r"rows\.parquet is not a parquet file"):
        list(read_examples(path))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(AprError, match="pip install pyarrow"):
        list(read_examples(tmp_path / "rows.parquet"))


QA = ("Q", "A")


@pytest.mark.parametrize(
    ("row", "prompt", "unused"),
    [
        (
            {"instruction": "Q", "context": "P", "response": "A", "category": "x"},
            "Q\n\nP",
            "category",
        ),
        ({"instruction": "Q", "input": "P", "output": "A", "text": "Q P A"}, "Q\n\nP", "text"),
        ({"question": "Q", "answer": "A", "id": 0}, "Q", "id"),
        ({"question": "Q", "context": "P", "answer": "A"}, "Q\n\nP", ""),
        ({"query": "Q", "answer": "A"}, "Q", ""),
        ({"query": "Q", "response": "A", "original_question": "O"}, "Q", "original_question"),
        ({"problem": "Q", "solution": "A", "answer": "42"}, "Q", "answer"),
        ({"prompt": "Q", "response": "A"}, "Q", ""),
        ({"input": "Q", "output": "A"}, "Q", ""),
        ({"system_prompt": "S", "question": "Q", "response": "A"}, "S\n\nQ", ""),
        ({"instruction": "Q", "response": None, "output": "A"}, "Q", ""),
        ({"instruction": "Q", "output": "A", "history": [["q", "a"]]}, "q\n\na\n\nQ", ""),
        ({"instruction": "Q", "output": "A", "history": []}, "Q", ""),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_questions_and_answers(row: dict[str, Any], prompt: str, unused: str) -> None:
    found = recognise(row, "here")
    assert (found.shape, found.prompt, found.response) == ("instruction", prompt, "A")
    assert ",".join(found.unused) == unused


def test_columns() -> None:
    """Names that say nothing by themselves; then no other column is read."""
    row = {"q": "Q", "a": "A", "instruction": "I", "response": "R"}
    found = recognise(row, "here", column_names(["prompt=q", "response=a"]))
    assert (found.prompt, found.response, found.unused) == (*QA, ("instruction", "response"))
    text = recognise(row, "here", column_names(["text=q"]))
    assert (text.shape, text.response) == ("text", "Q")
    raw = recognise(row, "here", column_names(["prompt=q", "completion=a"]))
    assert (raw.shape, raw.prompt, raw.response) == ("prompt-completion", *QA)
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    found = recognise({"chosen": turns, "rejected": []}, "", column_names(["messages=chosen"]))
    assert (found.prompt, found.response) == QA
    with pytest.raises(BadRow, match="there is no column 'b', its columns: q, a"):
        recognise(row, "here", {"prompt": "b"})
    for entry in ("q", "=q", "prompt=", "chosen=q"):
        with pytest.raises(UsageError, match=f"`columns` {entry} is not NAME=COLUMN"):
            column_names([entry])


@pytest.mark.parametrize(
    ("label", "rejected"),
    [(False, True), ("False", True), (True, False), (None, False), (0, False)],
)
def test_labels(label: object, rejected: bool) -> None:
    row = {"prompt": "Q", "completion": "A", "label": label}
    assert recognise(row, "here").rejected is rejected
    assert not recognise({"text": "x", "label": label}, "here").rejected


@pytest.mark.parametrize("mark", ",;\t")
def test_csv(tmp_path: Path, mark: str) -> None:
    rows = [{"question": f'a{mark} b\n"c" é', "answer": "1"}, {"question": "x", "answer": ""}]
    for name, pack in (("rows.csv", bytes), ("rows.csv.gz", gzip.compress)):
        text = io.StringIO()
        writer = csv.DictWriter(text, ["question", "answer"], delimiter=mark)
        writer.writeheader()
        writer.writerows(rows)
        (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbf" + text.getvalue().encode()))
        found = list(read_examples(tmp_path / name))
        assert [one.fields for one in found] == rows and found[1].where.endswith("row 2")


def test_broken_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for text, reason in (
        ("a,b\n1,2\n1\n", "row 2 has 1 values, the first line 2 names"),
        ('a,b\n"1,2\n', "row 1 is not CSV"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=reason):
            list(read_fields(path))
    path.write_bytes(b"a,b\n\xff,1\n")
    with pytest.raises(UsageError, match="is not UTF-8"):
        list(read_fields(path))


def test_parquet_fills_objects_with_nulls(tmp_path: Path) -> None:
    """What only other rows say is not there: tools with parameters of their own, quiet turns."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def row(argument: str) -> dict[str, Any]:
        call = {"function": {"name": "f", "arguments": {argument: "x"}}}
        turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "tool_calls": [call]}]
        return {"tools": [{"name": "f", "properties": {argument: {"type": "string"}}}],
                "messages": turns}  # fmt: skip

    rows = [row("a"), row("b")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    wanted = [recognise(one, "") for one in rows]
    found = list(read_examples(tmp_path / "rows.parquet"))
    assert [one.messages for one in found] == [one.messages for one in wanted]
    assert [one.tools for one in found] == [one.tools for one in wanted]


def test_messages_are_the_turns_of_an_instruction() -> None:
    turns = recognise(ROWS[0], "here").messages
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant"]
    assert turns[1]["content"] == "Add.\n\na, b"


def test_what_training_reads_is_read() -> None:
    """A turn that calls tools without words, and a conversation whose answer is a text."""
    ask = {"role": "user", "content": "Run it."}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "run"}}]}
    done = {"role": "assistant", "content": "Done."}
    found = recognise({"messages": [ask, call, done]}, "here")
    assert (found.prompt, found.response) == ("Run it.", "run\n\nDone.")
    found = recognise({"prompt": [ask], "completion": "Done."}, "here")
    assert (found.prompt, found.response, found.messages) == ("Run it.", "Done.", (ask, done))
    for completion in (3, None):
        with pytest.raises(BadRow, match="prompt and completion is not a list of messages"):
            recognise({"prompt": [ask], "completion": completion}, "here")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "x"', r"line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"a": "x", "b": "y"}', r"line 2: it has no known shape, its columns: a, b"),
        ('{"prompt": "x", "chosen": "y", "rejected": "z"}', "line 2: it is a pair of .* apr align"),
        ("{}", "line 2: it has no known shape, its columns: none"),
        ('{"instruction": "x", "response": null}', "line 2: response is not text"),
        ('{"prompt": "x", "completion": ["y"]}', "line 2: completion is not text"),
        ('{"messages": []}', "line 2: messages is not a list of messages"),
        ('{"messages": ["x"]}', "line 2: message 1 of messages is no message with a role"),
        ('{"messages": "x"}', "line 2: messages is not JSON"),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant"}]}',
            "line 2: message 2 of messages has no text in 'content'",
        ),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UsageError, match=complaint) as raised:
        list(read_examples(path))
    assert str(path) in str(raised.value)


def test_a_folder_or_nothing_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        list(read_examples(tmp_path))
    with pytest.raises(UsageError, match="no such file"):
        list(read_examples(tmp_path / "absent.jsonl"))


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_written_rows_come_back(tmp_path: Path, name: str) -> None:
    path, rows = tmp_path / "new" / name, [*ROWS, {"text": "half a pair: \ud83d"}]
    written = []
    for _ in range(2):
        with row_writer(path) as write:
            for row in rows:
                write(row)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert [one.fields for one in read_examples(path)] == rows


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(UsageError, match="stop"), row_writer(path) as write:
        write({"text": "x"})
        raise UsageError("stop")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]
    with pytest.raises(UsageError, match=r"end it \.jsonl"), row_writer(tmp_path / "out.csv"):
        pass
    with pytest.raises(AprError, match="cannot write"), row_writer(path / "below.jsonl"):
        pass
