"""Overlap by n-grams against sets of tuples, and decontamination end to end."""

from __future__ import annotations

import gzip
import json
import re
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from apr.cli.main import app
from apr.common.errors import UsageError
from apr.data.decontaminate import decontaminate, docstring_prose, read_reference
from apr.data.overlap import NgramIndex, words
from apr.data.training_rows import read_examples
from eval.shared import shared_data


def tokens(text: str) -> list[str]:
    plain = re.sub(r"(?<=\\)[nrt]", " ", text)
    return [word.lower() for word in re.findall(r"\w+", plain)]


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def brute_force(row: str, text: str, n: int) -> float:
    """Coverage by definition: mark every word of the text that a shared run holds."""
    shared = {run for run in ngrams(tokens(row), n) if not all(word.isdigit() for word in run)}
    words = tokens(text)
    covered = set()
    for i, run in enumerate(ngrams(words, n)):
        if run in shared:
            covered |= set(range(i, i + n))
    return len(covered) / len(words) if words else 0.0


def found(index: NgramIndex, row: str) -> dict[int, float]:
    return {one.text: one.coverage for one in index.overlaps(row)}


def expected(row: str, texts: list[str], n: int) -> dict[int, float]:
    shares = {i: brute_force(row, text, n) for i, text in enumerate(texts)}
    return {i: share for i, share in shares.items() if share}


WORDS = st.lists(st.sampled_from(["a", "B", "c", "1", "22"]), max_size=14).map(" , ".join)


@settings(max_examples=200, deadline=None)
@given(WORDS, st.lists(WORDS, max_size=4), st.integers(1, 4))
def test_coverage_is_the_definition(row: str, texts: list[str], n: int) -> None:
    index = NgramIndex(texts, n)
    overlaps = found(index, row)
    assert overlaps == pytest.approx(expected(row, texts, n))
    assert list(overlaps.values()) == sorted(overlaps.values(), reverse=True)
    for text in overlaps:
        inside = [word for start, end in index.spans(row, text) for word in tokens(row[start:end])]
        runs = set(ngrams(tokens(texts[text]), n))
        words, marked = tokens(row), set()
        for i, run in enumerate(ngrams(words, n)):
            if run in runs and not all(word.isdigit() for word in run):
                marked |= set(range(i, i + n))
        assert inside == [words[i] for i in sorted(marked)]


@pytest.mark.parametrize("n", [4, 10])
def test_coverage_is_the_definition_on_real_rows(n: int) -> None:
    texts = [one.text for one in read_reference("humaneval")]
    rows = [
        one.text
        for one in islice(read_examples(shared_data("instruct/code_alpaca_2k.json.gz")), 410, 430)
    ]
    index = NgramIndex(texts, n)
    hits = 0
    for row in rows:
        overlaps = found(index, row)
        assert overlaps == pytest.approx(expected(row, texts, n))
        hits += len(overlaps)
    assert hits > 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("返回列表sum_two，好。", ["返", "回", "列", "表", "sum_two", "好"]),
        ("こんにちは 日々", [*"こんにちは日々"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("ครับ", [*"ครบ"]),
        (r"def f():\n\treturn x", ["def", "f", "return", "x"]),
        ("\\\\nabla \\def", ["abla", "def"]),
        ("naïve_1 λx", ["naïve_1", "λx"]),
    ],
)
def test_words(text: str, wanted: list[str]) -> None:
    assert words(text) == wanted


PLANTED = (
    "def check_even(number):\n    for each in range(number):\n        if each % 2 == 0:\n"
    "            yield each, number, 'even', True\n    return None\n"
)


@pytest.mark.parametrize(
    "turn",
    [
        {"content": PLANTED},
        {"content": [{"type": "text", "text": PLANTED}]},
        {"content": "", "reasoning_content": PLANTED},
        {"tool_calls": [{"function": {"name": "write", "arguments": {"code": PLANTED}}}]},
        {"tool_calls": [{"name": "write", "arguments": json.dumps({"code": PLANTED})}]},
        {"content": json.dumps({"code": PLANTED})},
    ],
    ids=["content", "parts", "reasoning", "call", "call as text", "escaped"],
)
def test_all_that_is_rendered_is_compared(tmp_path: Path, turn: dict[str, object]) -> None:
    row = {"messages": [{"role": "user", "content": "Write it."}, {"role": "assistant", **turn}]}
    tool = {"function": {"name": "f", "description": PLANTED}}
    asking = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    rows = [row, {**asking, "tools": [tool]}, {"c": PLANTED}, asking]
    (tmp_path / "reference.jsonl").write_text(json.dumps({"code": PLANTED}) + "\n")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in (rows[0], rows[1], rows[3])))
    result = decontaminate(data, [str(tmp_path / "reference.jsonl")])
    assert [one.where for one in result.found] == [f"{data} line 1", f"{data} line 2"]
    assert all(one.coverage == 1 for one in result.found)
    data.write_text(json.dumps(rows[2]) + "\n")
    named = decontaminate(data, [str(tmp_path / "reference.jsonl")], columns=["text=c"])
    assert len(named.found) == 1


def test_references_are_read_as_rows_are(tmp_path: Path) -> None:
    """A task that is a conversation, in any of its spellings."""
    call = {"from": "function_call", "value": json.dumps({"name": "w", "arguments": PLANTED})}
    turns = [{"from": "human", "value": "x"}, call, {"from": "gpt", "value": PLANTED}]
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": PLANTED}) + "\n")
    result = decontaminate(tmp_path / "rows.jsonl", [str(tmp_path / "tasks.jsonl")])
    assert len(result.found) == 1


def test_runs_of_numbers_alone_say_nothing() -> None:
    row = "1 2 3 4 5 6"
    assert found(NgramIndex(["1 2 3 4 5 6 x"], 3), row) == {}
    assert found(NgramIndex(["f 1 2 3 4 5 6"], 3), f"f {row}") == {0: pytest.approx(3 / 7)}


def test_docstring_prose() -> None:
    prompt = 'import os\n\ndef f(x):\n    """ Add one\n    to x.\n    >>> f(1)\n    2\n    """\n'
    assert docstring_prose(prompt) == "Add one\nto x."
    assert docstring_prose('"""\nAdd one to x.\nassert f(1) == 2\n"""\n') == "Add one to x."
    assert docstring_prose("Write a function.") == ""


def humaneval_rows() -> list[dict[str, str]]:
    with gzip.open(shared_data("humaneval/HumanEval.jsonl.gz"), "rt") as lines:
        return [json.loads(line) for line in lines]


def planted(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Clean rows with HumanEval tasks hidden among them in several disguises.

    Also: "line N" of each planted row -> its task.
    """
    clean = [
        {"instruction": "Explain.", "response": one.text[:3000]}
        for one in islice(
            read_examples(shared_data("python_corpus/thealgorithms-python.jsonl.gz")), 300
        )
    ]
    tasks = [task for task in humaneval_rows() if len(tokens(task["canonical_solution"])) > 25][:20]
    rows: list[dict[str, str]] = []
    where: dict[str, str] = {}
    for i, row in enumerate(clean):
        if i % 15 == 7:
            task = tasks[i // 15]
            program = task["prompt"] + task["canonical_solution"]
            disguises = [
                program,
                f"Sure!\n```python\n{program.replace('    ', chr(9)).upper()}\n```",
                f"import os\n{task['canonical_solution']}\nprint(os.name)",
                f"{row['response']}\n{task['prompt']}\n{row['response']}",
            ]
            rows.append({"instruction": "Solve.", "response": disguises[i // 15 % 4]})
            where[f"line {len(rows)}"] = task["task_id"]
        rows.append(row)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, where


def test_planted_tasks_are_found_and_nothing_else(tmp_path: Path) -> None:
    path, where = planted(tmp_path)
    clean = tmp_path / "clean.jsonl"
    result = decontaminate(path, ["humaneval"], output=clean)
    hits = {one.where.removeprefix(f"{path} "): one.task for one in result.found}
    assert hits == where and len(where) == 20
    assert result.references["humaneval"]["tasks"] == 164
    assert result.references["humaneval"]["tasks_found"] >= 20
    lines = path.read_text().splitlines()
    kept = [line for i, line in enumerate(lines, 1) if f"line {i}" not in where]
    assert clean.read_text().splitlines() == kept
    rows = {one.where: one.text for one in read_examples(path)}
    for one in result.found:
        assert one.spans
        for span in one.spans:
            assert rows[one.where][span["start"] : span["end"]] == span["text"]


def test_the_gate(tmp_path: Path) -> None:
    path, where = planted(tmp_path)
    report, clean = tmp_path / "report.json", tmp_path / "clean.jsonl"
    mbpp = shared_data("mbpp/mbpp.jsonl.gz")
    command = ["data", "decontaminate", str(path), "--reference", "humaneval", f"mbpp={mbpp}"]
    run = CliRunner().invoke(app, [*command, "--report", str(report), "--json"])
    assert run.exit_code == 1
    told = json.loads(run.stdout)
    assert told == json.loads(report.read_text())
    assert told["contaminated"] == len(where)
    assert told["references"]["mbpp"]["tasks"] == 500
    run = CliRunner().invoke(app, [*command, "-o", str(clean)])
    assert run.exit_code == 0
    run = CliRunner().invoke(app, ["data", "decontaminate", str(clean), *command[3:]])
    assert run.exit_code == 0 and "0 of 300 rows" in run.stdout


def test_any_file_can_be_the_reference(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    asked = "Which of the seven towers of the old harbour fell first in the great storm of 1703"
    secret.write_text(
        json.dumps({"messages": [{"role": "user", "content": asked}]})
        + "\n"
        + json.dumps({"prompt": "short", "test_list": ["assert f(1) == 2"] * 9})
    )
    data = tmp_path / "rows.jsonl"
    data.write_text(
        json.dumps({"text": f"Q: {asked.lower()}?"})
        + "\n"
        + json.dumps({"text": "Which of the seven towers of the old harbour stands"})
    )
    result = decontaminate(data, [str(secret)])
    assert [(one.where, one.task, one.part) for one in result.found] == [
        (f"{data} line 1", "1", "messages")
    ]
    assert (result.rows, result.overlapping) == (2, 1)
    strict = decontaminate(data, [str(secret)], ngram=8, threshold=0)
    assert len(strict.found) == 2
    assert strict.references[str(secret)] == {
        "tasks": 2,
        "texts": 3,
        "too_short": 1,
        "tasks_found": 1,
    }


@pytest.mark.parametrize(
    ("references", "options", "complaint"),
    [
        ([], {}, "no `reference`"),
        (["humanevil"], {}, "no such data.*one of humaneval"),
        (["humanevil=x"], {}, "humanevil is no benchmark"),
        (["mbpp=absent.jsonl"], {}, "no such file"),
        (["humaneval"], {"threshold": 1.5}, r"`threshold` 1\.5 is not from 0 to 1"),
        (["humaneval"], {"ngram": 0}, "`ngram` 0"),
    ],
)
def test_bad_requests(
    tmp_path: Path, references: list[str], options: dict[str, int], complaint: str
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "x"}\n')
    with pytest.raises(UsageError, match=complaint):
        decontaminate(data, references, **options)  # type: ignore[arg-type]
