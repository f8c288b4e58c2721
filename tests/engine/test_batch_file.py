"""Files of prompts: what is refused before a model is loaded, and how a run is continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from apr.common.errors import UsageError
from apr.engine.batch_file import BatchReport, answer_file, read_requests, row_seed
from apr.engine.session import Sampling, Session, TextRequest

TEMPLATE = TextRequest(prompt="", max_tokens=6, n=3, sampling=Sampling(temperature=1.0), seed=4)
LINE_SEPARATORS = "a\u2028b\u2029c\u0085d\u001ce"


def never() -> NoReturn:
    raise AssertionError("the model was loaded")


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def answers(path: Path) -> dict[tuple[str, int], str]:
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    found = {(row["task_id"], row["sample"]): row["text"] for row in rows}
    assert len(found) == len(rows), "a sample was answered twice"
    return found


def test_rows_become_requests(tmp_path: Path) -> None:
    user = {"role": "user", "content": "hi"}
    source = write(
        tmp_path / "in.jsonl",
        {"prompt": LINE_SEPARATORS},
        {"task_id": None, "messages": [user]},
        {"task_id": 7, "prompt": ""},
    )
    plain = read_requests(source, TEMPLATE)
    assert [r.request_id for r in plain] == ["1", "2", "7"]
    assert [r.prompt for r in plain] == [LINE_SEPARATORS, None, ""]
    system = {"role": "system", "content": "Be brief."}
    chat = read_requests(source, TextRequest(messages=[system]))
    assert chat[0].messages == [system, {"role": "user", "content": LINE_SEPARATORS}]
    assert chat[1].messages == [system, user]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"prompt": "abc"}\r\n{"prompt": "d"}\r\n')
    assert [r.prompt for r in read_requests(source, TEMPLATE)] == ["abc", "d"]


def test_equal_prompts_get_different_random_numbers(tmp_path: Path, session: Session) -> None:
    source = write(tmp_path / "in.jsonl", *[{"prompt": "def f("}] * 4)
    requests = read_requests(source, TEMPLATE)
    assert len({r.seed for r in requests}) == 4
    assert requests[0].seed == row_seed(4, "1") != row_seed(5, "1")
    out = tmp_path / "out.jsonl"
    list(answer_file(lambda: session, requests, out))
    assert len(set(answers(out).values())) > 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "line 2 is not UTF-8"),
        (b'{"prompt": "a", "messages": []}\n', "line 1 has both 'prompt' and 'messages'"),
        (b'{"messages": []}\n', "line 1: field 'messages' is not a list of messages"),
        (b'{"messages": ["hi"]}\n', r"line 1: messages\[0\] is str, not an object"),
        (b'{"prompt": 3}\n', "line 1 has no text in field 'prompt'"),
        (b'{"prompt": "a", "max_tokens": 3}\n', "line 1: field 'max_tokens' is unknown"),
        (b'{"messages": [{"role": "user"}]}\n', r"line 1: messages\[0\] has no text in 'content'"),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}\n',
            r"line 1: messages\[0\] has a part of type image_url",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    with pytest.raises(UsageError, match=f"in.jsonl {message}"):
        read_requests(source, TEMPLATE)


def test_output_that_cannot_be_read_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    requests = read_requests(write(tmp_path / "in.jsonl", {"prompt": "a"}), TEMPLATE)
    with pytest.raises(UsageError, match="is a directory"):
        list(answer_file(never, requests, tmp_path))
    out = tmp_path / "out.jsonl"
    out.write_text('{"task_id": "1"}\nnot an answer\n')
    with pytest.raises(UsageError, match=r"out.jsonl line 2 is not JSON"):
        list(answer_file(never, requests, out))
    assert out.read_text() == '{"task_id": "1"}\nnot an answer\n'


def test_a_prompt_too_long_is_named_before_the_first_answer(
    tmp_path: Path, session: Session
) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "a"}, {"task_id": "long", "prompt": "x" * 300})
    out = tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match=r"task_id 'long': the prompt has \d+ tokens and .* 256"):
        list(answer_file(lambda: session, read_requests(source, TEMPLATE), out))
    assert not out.exists()


@pytest.mark.parametrize("cut", ["between lines", "in a line", "in a character"])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, session: Session, cut: str) -> None:
    source = write(tmp_path / "in.jsonl", *({"prompt": f"def f{i}("} for i in range(4)))
    requests = read_requests(source, TEMPLATE)
    out = tmp_path / "out.jsonl"
    list(answer_file(lambda: session, requests, out))
    whole = answers(out)
    assert len(whole) == 12
    lines = out.read_bytes().splitlines(keepends=True)
    tail = {
        "between lines": b"",
        "in a line": lines[5][:9],
        "in a character": b'{"text": "\xe2\x80',
    }
    out.write_bytes(b"".join(lines[:5]) + tail[cut])
    kept = {json.loads(line)["task_id"] for line in lines[:5]}
    full = sum(sum(t == task for t, _ in answers_of(lines[:5])) == 3 for task in kept)
    reports = list(answer_file(lambda: session, requests, out))
    assert reports[0] == BatchReport(4, full, 0)
    assert reports[-1] == BatchReport(4, full, 4 - full)
    assert answers(out) == whole
    assert list(answer_file(never, requests, out)) == [BatchReport(4, 4, 0)]


def answers_of(lines: list[bytes]) -> list[tuple[str, int]]:
    return [(row["task_id"], row["sample"]) for row in map(json.loads, lines)]


def test_text_with_unusual_line_ends_is_resumed(tmp_path: Path) -> None:
    requests = read_requests(write(tmp_path / "in.jsonl", {"prompt": "a"}), TEMPLATE)
    out = tmp_path / "out.jsonl"
    rows = [{"task_id": "1", "sample": i, "text": LINE_SEPARATORS} for i in range(3)]
    write(out, *rows)
    assert list(answer_file(never, requests, out)) == [BatchReport(1, 1, 0)]
