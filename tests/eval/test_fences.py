"""Where the code of a chat answer begins and ends; what a program's answer is, not a function's."""

from __future__ import annotations

from typing import Any

import pytest

from apr.eval.code.extraction import chat_code, chat_function, last_program
from apr.eval.code.fences import fenced_blocks

BODY = "    return int(fsum([n, n]))\n"
CODE = f"from math import fsum\n\ndef twice(n):\n{BODY}"


def value(program: str) -> Any:
    names: dict[str, Any] = {}
    exec(compile(program, "<program>", "exec"), names)
    return names["twice"](4)


def with_docstring(text: str) -> str:
    indented = "".join(f"    {line}\n" for line in text.splitlines())
    return CODE.replace(BODY, f'    """Twice.\n\n{indented}    """\n{BODY}')


FENCED = with_docstring("```\ntwice(2)\n```")
NAMED = with_docstring("```py\n>>> twice(2)\n```")
TILDES = with_docstring("~~~\ntwice(2)\n~~~")
ONE = with_docstring("```")
PLAIN = with_docstring("x")
BY_TWO = CODE.replace("[n, n]", "[n] * TWO")

FENCES = {
    "a fence in a docstring": f"```python\n{FENCED}```\nDone.",
    "one that names a language": f"```python\n{NAMED}```",
    "one of tildes": f"~~~python\n{TILDES}~~~",
    "one that has no second": f"```python\n{ONE}```\nDone.",
    "one at the start of a line": f'```python\nUSE = """\n```\ntwice(2)\n```\n"""\n\n{CODE}```\n',
    "one in a docstring of a block that does not end": f"```\n{ONE}",
    "one in a docstring, and a cut-off end": f"```\n{ONE}\ndef other(n):\n    ret",
    "one in a docstring, and a second block": f"```python\n{FENCED}"
    '```\nUse:\n```python\n"""\ntwice(2)\n"""\n```\n',
    "no opening fence": f"{CODE}```\n\nThis adds the number to itself.\n",
    "no opening fence, words before": f"Here you are.\n\n{CODE}```\n\nIt adds.\n",
    "no opening fence, and a second block": f"{CODE}```\nUse:\n```python\nprint(twice(2))\n```\n",
    "no opening fence, a value above": f"TWO = 2\n{BY_TWO}```\nDone.",
    "no opening fence, bare ones after": f"{CODE}```\nUse:\n```\nprint(twice(2))\n```\n",
    "an opening fence behind words": f"Here is the function: ```python\n{CODE}```\nDone.\n",
    "one behind words without a language": f"Here it is: ```\n{CODE}```\nDone.\n",
    "one behind quoted code": f"Call `twice` as in: ```python\n{CODE}```\n",
    "a closing fence behind code": f"```python\n{CODE.rstrip()}```\nDone.",
    "a closing fence with words behind": f"```\n{CODE}``` That is all.\n\n```\ntwice(2)\n```\n",
    "code on the fence's line": f"```{CODE}```",
    "code behind the language": f"```python {CODE}```",
    "words behind the language": f'```python title="twice.py" and more\n{CODE}```\n',
    "braces": f"```{{python}}\n{CODE}```\n",
    "four ticks around three": f"````markdown\nIt is:\n\n```python\n{CODE}```\n\nDone.\n````\n",
    "four ticks around code with three": f"````python\n{FENCED}````",
    "tildes around ticks": f"~~~~md\nIt is:\n```\n{CODE}```\n~~~~\n",
    "a quotation": "".join(f"> {line}\n" for line in f"```python\n{CODE}```".splitlines()),
    "a list": "1. So:\n\n" + "".join(f"   {line}\n" for line in f"```py\n{CODE}```".splitlines()),
    "HTML": f'<pre><code class="language-python">\n{CODE}</code></pre>\nDone.',
    "HTML with entities": f"<pre>if n &lt; 2:\n    pass</pre>\n<pre>\n{CODE}\n# n &gt; 1</pre>",
    "tags": f"[PYTHON]\nTWO = 2\n{BY_TWO}[/PYTHON]\n[TESTS]\nassert 0\n",
    "an answer tag": f"<answer>\n{CODE}</answer>",
    "a value in another block": f"```python\nTWO = 2\n```\n```\n{BY_TWO}```",
}  # fmt: skip


@pytest.mark.parametrize("text", FENCES.values(), ids=FENCES.keys())
def test_fences_that_people_and_models_write(text: str) -> None:
    assert value(chat_code(text, "twice")) == 8
    assert value(chat_code(text.replace("\n", "\r\n"), "twice")) == 8


BEGUN = {
    "a fence in a docstring": f"{FENCED}```\nDone.",
    "no closing fence": ONE,
    "a closing fence behind code": f"{CODE.rstrip()}```",
}


@pytest.mark.parametrize("text", BEGUN.values(), ids=BEGUN.keys())
def test_fences_of_an_answer_that_was_begun(text: str) -> None:
    assert value(chat_code(text, "twice", fenced=True)) == 8


def test_quotes_that_are_never_closed_cost_one_block() -> None:
    text = f'```python\nx = """\n```\nThen\n```python\n{PLAIN}```\n'
    assert value(chat_code(text, "twice")) == 8


def test_inline_code_is_no_block() -> None:
    assert fenced_blocks("Call ```f(1)``` or `f`.\nThe string '```' is one.") == []


BODIES = {
    "the parameters are spelled": ("Write twice(n).", "    return 2 * n\n"),
    "with blanks": ("Write a function `twice( n )` for me.", "```\n    return 2 * n\n```"),
    "as a head": ("Finish def twice(n): ...", "    return 2 * n\n"),
    "only one name is free": ("Write twice. >>> twice(4)", "    m = 2\n    return m * number\n"),
    "not indented": ("Write twice(n).", "```python\nm = 2 * n\nreturn m\n```"),
}


@pytest.mark.parametrize(("prompt", "text"), BODIES.values(), ids=BODIES.keys())
def test_a_bare_body_becomes_a_whole_function(prompt: str, text: str) -> None:
    assert value(chat_function(text, "twice", prompt)) == 8


def test_a_body_whose_parameters_nobody_knows() -> None:
    body = "    return a * b\n"
    assert chat_function(body, "twice", "Write twice.") == body
    assert chat_function(body, "twice", "Write twice(a, b).") == f"def twice(a, b):\n{body}"
    assert chat_function("    return 8\n", "twice", "Write twice().").startswith("def twice():\n")


PROGRAM = "n = int(input())\nprint(n + n)\n"
PROGRAMS = {
    "the only block": f"```python\n{PROGRAM}```\n",
    "sample output behind": f"```python\n{PROGRAM}```\nIt prints\n```\n8\n```\n",
    "sample words behind": f"```python\n{PROGRAM}```\nIt prints\n```\nYES\nNO\n```\n",
    "a list behind": f"```python\n{PROGRAM}```\n```\n[1, 2]\n```\n",
    "a command behind": f"```python\n{PROGRAM}```\nRun\n```bash\npython main.py < in.txt\n```\n",
    "a part explained behind": f"```python\n{PROGRAM}```\nHere\n```python\nprint(n + n)\n```\n",
    "a draft before": f"```python\nprint(int(input()) ** 2)\n```\nNo:\n```python\n{PROGRAM}```\n",
    "no closing fence": f"So:\n```python\n{PROGRAM}",
    "a fence in a string": f"```python\nUSE = '''\n```\nx\n```\n'''\n{PROGRAM}```\n",
    "four ticks": f"````\nIt is\n```python\n{PROGRAM}```\nwith\n```\n8\n```\n````\n",
}


@pytest.mark.parametrize("text", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_the_last_block_that_is_a_program(text: str) -> None:
    assert last_program(text).rstrip().endswith(PROGRAM.rstrip())


def test_answers_without_a_program() -> None:
    assert last_program("```\n8\n```\n```\n9\n```\n") == "9\n"
    assert last_program("No idea.") == "No idea."
    assert last_program(f"Sure.\n\nimport sys\n{PROGRAM}").endswith(PROGRAM.rstrip())
    assert last_program("") == ""
