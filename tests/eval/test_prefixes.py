"""The longest prefix that parses, against trying every one; and how much is parsed for it."""

from __future__ import annotations

import ast
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.eval.code import prefixes
from apr.eval.code.extraction import chat_code
from apr.eval.code.prefixes import MAX_CUT_LINES, longest_prefix, parse

from .shared import QWEN, STARCODER, samples


def every_cut(code: str) -> str:
    """The definition: cut line after line off the end until Python can read the rest."""
    lines = code.split("\n")
    for cut in range(min(len(lines), MAX_CUT_LINES)):
        prefix = "\n".join(lines[: len(lines) - cut])
        if prefix.strip() and parse(prefix) is not None:
            return prefix
    return code


LINES = re.split(
    "[|]",
    "x = 1|if x:|    y = 2|else:|elif y:|    z = (|        3,|    )|w = '|try:|    try:|except:"
    "|    except E:|finally:|    finally:|    pass|        pass|try: x|except E: y|@dec|    @dec"
    "|def f(x):|    def g(self): return 1|class A:|    return x|match x:|    case 1:|for x in y:"
    "|x = [1,  # one (|  2]|# c (|\\|    \\|x = 1 + \\|  1|s = 'a\\|b'|s = '''|'''|    \"\"\"doc"
    "|t = f'{s!r}' 'it''s'|\t\ty = 1|\f    pass|import os; x = 2|``` is not Python|don't|)||  ",
)


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=14).map("\n".join))
def test_longest_prefix_of_lines_like_code(code: str) -> None:
    assert longest_prefix(code) == every_cut(code)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("`~\n\t \\'\"()[]{}:;=@#defrtunx\f\x00\u2028é")))
def test_longest_prefix_of_any_text(text: str) -> None:
    assert longest_prefix(text) == every_cut(text)


@pytest.mark.parametrize("name", [QWEN, STARCODER])
def test_longest_prefix_of_what_models_wrote_cut_anywhere(name: str) -> None:
    chance = random.Random(0)
    for row in samples(name):
        text = row["completion"] if "completion" in row else row["solution"]
        code = "def _():\n" + text[: chance.randrange(len(text) + 1)]
        assert longest_prefix(code) == every_cut(code), row["task_id"]


def test_a_cut_of_hundreds_of_lines_is_no_cut_off_end() -> None:
    broken = "x = = 1\n" * MAX_CUT_LINES
    assert longest_prefix("x = 1\n" + broken) == "x = 1\n" + broken
    assert longest_prefix("x = 1\n" + broken[:-9]) == "x = 1"


DEGENERATE = {
    "broken lines": "x = = 1\n",
    "heads of functions": "def f(x):\n",
    "brackets never closed": "def g(\n",
    "good functions, none of them asked for": "def g(x):\n    return 1\n",
    "blocks that never end": "```python\nx = (\n",
    "open tries": "try:\n    x = 1\n",
    "quotes": "'\\'",
    "imports": "import a\n",
    "lines of a body": "    x = 1\n",
    "decorators": "@x\n",
    "chatter": "I don't know, but f(x) is good.\n",
}


@pytest.mark.parametrize("end", ["", "y = ("])
@pytest.mark.parametrize("piece", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_a_degenerate_answer_is_parsed_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch, piece: str, end: str
) -> None:
    """An answer of 30 000 characters; the work does not grow with the number of its lines."""
    text = piece * (30_000 // len(piece)) + end
    read: list[int] = []

    def counted(code: str, whole=ast.parse) -> ast.Module:  # type: ignore[no-untyped-def]
        read.append(len(code))
        return whole(code)

    monkeypatch.setattr(prefixes.ast, "parse", counted)
    for fenced in (False, True):
        read.clear()
        chat_code(text, "f", fenced)
        # 20 beginnings that look like code, for each a handful of parses to find its end.
        assert sum(read) <= 20 * 8 * len(text)
    blocks = len(re.findall("```", text))
    assert len(read) <= 20 * 8 + 20 * blocks


def test_a_chain_of_helpers_is_followed() -> None:
    chain = [f"def a{i}(): return a{i + 1}()\n" for i in reversed(range(900))]
    text = "```\ndef f(): return a0()\n```\n```\n" + "".join(chain) + "```\n"
    assert chat_code(text, "f").count("def ") == 901
