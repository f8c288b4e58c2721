"""Quality of training data: checks against pyflakes' own command and the compiler; scores."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apr.cli.main import app
from apr.common.errors import AprError, UsageError
from apr.data.quality import COSTS, Problem, measure_quality, problems_of, python_code
from apr.data.training_rows import Example, read_examples, recognise
from eval.shared import shared_data

pytest.importorskip("rensa", reason="near-duplicates need rensa: pip install apr[data]")
pytest.importorskip("pyflakes", reason="code checks need pyflakes: pip install apr[data]")

FINE = "def area(r):\n    return 3 * r * r\n"


def check(example: Example) -> list[Problem]:
    return problems_of(example, python_code(example.response))


def answer(response: str, prompt: str = "Write a function.") -> Example:
    return recognise({"prompt": prompt, "completion": response}, "here")


@pytest.mark.parametrize(
    ("response", "kinds"),
    [
        (FINE, []),
        (f"Sure:\n```python\n{FINE}```\nThat is all.", []),
        ("The answer is 42.", []),
        ("red, green, blue", []),
        ("```js\nlet x = {;\n```", []),
        ("class Car {\n  private:\n};", []),
        ("```\n>>> area(2)\n12\n```", []),
        ("  \n", ["empty response"]),
        (f"```python\n{FINE}", ["unclosed code block"]),
        (FINE.replace(":", ""), []),  # not known to be Python
        (FINE.replace("* r *", "* r *)"), ["syntax error"]),
        (FINE + "\x00", ["syntax error"]),
        ("def f():\n    return " + "(" * 300 + ")" * 300 + "\n", ["syntax error"]),
        ("x = '\\d'\nprint(x)\n", ["compiler warning"]),
        (FINE.replace("3", "PI"), ["undefined name"]),
        ("import os\n" + FINE, ["redefined or unused"]),
        (FINE.replace("r)", "r, seen=[])"), ["mutable default"]),
        (FINE.replace("r)", "r, *, seen={})"), ["mutable default"]),
        ("try:\n    x = 1\nexcept:\n    x = 2\nprint(x)\n", ["bare except"]),
        ("def area(r):\n    # Your code goes here\n    pass\n", ["placeholder"]),
        ("def area(r):\n    '''Doc.'''\n", ["placeholder"]),
        ("As an AI language model, I have no hands.", ["refusal"]),
        ("from os import *\nprint(getcwd())\n", ["other pyflakes message"] * 2),
        ("x" * 8001, ["very long response"]),
    ],
)
def test_problems(response: str, kinds: list[str]) -> None:
    found = check(answer(response))
    assert [one.kind for one in found] == kinds
    assert set(kinds) <= COSTS.keys()


def test_problems_of_questions() -> None:
    assert [p.kind for p in check(answer(FINE, " "))] == ["empty question"]
    assert [p.kind for p in check(answer(FINE, FINE))] == ["repeats the question"]
    assert check(recognise({"text": FINE}, "here")) == []
    # A name the question gives is defined there.
    assert check(answer("print(numbers[0])\n", "Given numbers = [1], print the first.")) == []


def test_lint_is_what_the_pyflakes_command_says(tmp_path: Path) -> None:
    rows = read_examples(shared_data("instruct/code_alpaca_2k.json.gz"))
    codes = [code for one in islice(rows, 400) if (code := python_code(one.response)) is not None]
    lint = ("undefined name", "redefined or unused", "other pyflakes message", "syntax error")
    ours = []
    for number, code in enumerate(codes):
        path = tmp_path / f"{number:04}.py"
        path.write_text(code, newline="")
        found = [p for p in problems_of(answer(code, "?"), code) if p.kind in lint]
        ours += [f"{path.name} {p.detail}" for p in found if p.kind != "syntax error"]
        ours += [f"{path.name} syntax" for p in found if p.kind == "syntax error"]
    files = sorted(map(str, tmp_path.iterdir()))
    said = subprocess.run(
        [sys.executable, "-m", "pyflakes", *files], capture_output=True, text=True, check=False
    )
    theirs = []
    for line in said.stdout.splitlines():
        name, at, _, message = line.removeprefix(f"{tmp_path}/").split(":", 3)
        theirs.append(f"{name} line {at}: {message.strip()}")
    broken = {line.removeprefix(f"{tmp_path}/").split(":")[0] for line in said.stderr.splitlines()}
    theirs += [f"{name} syntax" for name in broken if name.endswith(".py")]
    assert len(theirs) > 20
    assert sorted(ours) == sorted(theirs)


def write(path: Path, responses: list[str]) -> Path:
    rows = [{"instruction": f"Task {i}.", "response": one} for i, one in enumerate(responses)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_score_is_the_mean_of_the_rows(tmp_path: Path) -> None:
    unused = "import os\nimport sys\n" + FINE
    responses = [FINE, "", unused, FINE.replace("3", "PI"), "Because the sky is blue."]
    data = write(tmp_path / "rows.jsonl", responses)
    with data.open("a") as file:
        file.write(json.dumps({"instruction": "Task 0.", "response": FINE}) + "\n")
        file.write(json.dumps({"instruction": "Task 0.", "response": FINE + "# x\n"}) + "\n")
    scores = tmp_path / "scores.jsonl"
    result = measure_quality(data, scores=scores)
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [row["score"] for row in rows][:5] == [100, 0, 95, 80, 100]
    assert rows[5]["score"] == 40
    assert rows[5]["problems"] == [
        {"kind": "exact duplicate", "detail": f"of {data} line 1"},
    ]
    assert rows[6]["problems"][-1] == {"kind": "near-duplicate", "detail": f"of {data} line 1"}
    assert result.score == pytest.approx(sum(row["score"] for row in rows) / 7, abs=0.01)
    assert result.problems["redefined or unused"] == 1
    assert result.lost["redefined or unused"] == pytest.approx(5 / 7, abs=0.01)
    assert (result.rows, result.lengths["min"], result.lengths["max"]) == (7, 0, len(unused))


def test_the_gate(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [FINE, ""])
    run = CliRunner().invoke(app, ["data", "quality", str(data), "--json"])
    assert run.exit_code == 0
    told = json.loads(run.stdout)
    assert told["score"] == 50 and told["problems"] == {"empty response": 1}
    run = CliRunner().invoke(app, ["data", "quality", str(data), "--min-score", "50.1"])
    assert run.exit_code == 1 and "score 50.0 of 100" in run.stdout


def test_bad_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "rows.jsonl", [])
    with pytest.raises(UsageError, match="has no rows"):
        measure_quality(data)
    with pytest.raises(UsageError, match="`near` 0 is not over 0"):
        measure_quality(data, threshold=0)
    write(data, [FINE])
    for name in ("rensa", "pyflakes"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, name, None)
            with pytest.raises(AprError, match=f"pip install {name}"):
                measure_quality(data)
