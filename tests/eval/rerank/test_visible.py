"""Examples read from prompts: right by the benchmarks' own solutions, and none from elsewhere."""

from __future__ import annotations

import pytest

from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.task import Benchmark
from apr.eval.rerank.behaviour import is_as_shown
from apr.eval.rerank.mutate import inputs_of_type, more_inputs
from apr.eval.rerank.visible import (
    UNKNOWN,
    Example,
    Question,
    Truth,
    parameter_annotations,
    visible_examples,
)

from ..shared import shared_data


def ask(prompt: str, name: str = "f") -> list[Example]:
    return visible_examples(Question("t", prompt, name))


@pytest.mark.parametrize(
    ("line", "arguments", "expected"),
    [
        (">>> f(1)\n    2", (1,), 2),
        (">>> f('a', [1])\n    {'a': 1}\n    ", ("a", [1]), {"a": 1}),
        (">>> f(3.5)\n    0.5\n    '''", (3.5,), 0.5),
        (">>> f([1]) == [2]", ([1],), [2]),
        (">>> round(f([1, 2]), 2)\n    -0.5", ([1, 2],), UNKNOWN),
        ("assert f(2) == False", (2,), False),
        ("assert f(1)", (1,), Truth(True)),
        ("assert not f(1)", (1,), Truth(False)),
        ("assert set(f((3, 4))) == set((4, 5))", ((3, 4),), UNKNOWN),
        ("f(1, 2) => true", (1, 2), True),
        ("f(1, 2) ==> (1, 2).", (1, 2), (1, 2)),
        ("f('x') ➞ 'y'  # a remark", ("x",), "y"),
        ("f(12) returns 3, because it is so", (12,), 3),
        ("for f('(()') it should be obvious", ("(()",), UNKNOWN),
        ("f([1, 2], (3)) == something", ([1, 2], 3), UNKNOWN),
    ],
)
def test_forms(line: str, arguments: tuple, expected: object) -> None:
    prompt = f'def f(x):\n    """ Words.\n\n    {line}\n    """\n'
    assert ask(prompt) == [Example(arguments, expected)]


@pytest.mark.parametrize(
    "line", ["f(x)", "f(a=1)", "g(1) == 2", "other.f(1) == 2", "f(", "f(open('x'))", "def f(1): 2"]
)
def test_what_is_no_example(line: str) -> None:
    assert ask(f'def f(x):\n    """{line}"""\n') == []


def test_the_end_of_a_code_block_is_no_part_of_an_answer() -> None:
    prompt = 'Solve:\n```\ndef f(x):\n    """\n    >>> f(1)\n    2\n    """\n```\n'
    assert ask(prompt) == [Example((1,), 2)]


def test_inputs_and_outputs() -> None:
    prompt = 'def f(grid, n):\n    """\n    Input: grid : [[1]], n = 2\n    Output: 6\n    """\n'
    assert ask(prompt) == [Example(([[1]], 2), 6)]
    prompt = 'def f(arr):\n    """\n    Input: [4, 2]\n    Output: [2, 1]\n    """\n'
    assert ask(prompt) == [Example(([4, 2],), [2, 1])]


def test_outputs_in_words() -> None:
    prompt = 'def f(s, n):\n    """\n    For s = "ab", n = 2 the output should be "b".\n    """\n'
    assert ask(prompt) == [Example(("ab", 2), "b")]


def test_an_answer_is_kept_for_a_call_shown_twice() -> None:
    assert ask('"""f(1)\nf(2)\nf(1) == 3"""') == [Example((1,), 3), Example((2,))]


def benchmark(name: str) -> Benchmark:
    file = {"mbpp": "mbpp/mbpp.jsonl.gz", "mbpp+": "evalplus/MbppPlus-v0.2.0.jsonl.gz"}.get(name)
    return load_benchmark(name, shared_data(file) if file else None)


# Prompts whose examples say something else than their own solution gives.
WRONG = {
    "humaneval": {"HumanEval/47", "HumanEval/116", "HumanEval/130", "HumanEval/148"},
    "mbpp": {"Mbpp/313", "Mbpp/436"},  # they print more than they return
    "mbpp+": set(),
}


@pytest.mark.parametrize(("name", "least"), [("humaneval", 150), ("mbpp", 495), ("mbpp+", 360)])
def test_examples_hold_for_the_reference_solutions(name: str, least: int) -> None:
    tasks = benchmark(name).tasks
    told, wrong = 0, set()
    for task in tasks.values():
        examples = visible_examples(Question(task.task_id, task.prompt, task.entry_point))
        known = [e for e in examples if e.expected is not UNKNOWN]
        told += bool(known)
        scope: dict = {}
        code = task.canonical_solution
        exec(code if "def " in code and name != "humaneval" else task.prompt + code, scope)
        for example in known:
            answer = scope[task.entry_point](*example.arguments)
            if not is_as_shown(answer, example.expected):
                wrong.add(task.task_id)
    assert told >= least
    assert wrong <= WRONG[name], wrong


# More inputs. -----------------------------------------------------------------------------------


def test_mutants_keep_types_and_differ() -> None:
    shown = [([1, 2, 3], "abc", {"k": 1.5}, True, (1, "x"), {1, 2})]
    found = more_inputs(shown, 30, seed=1)
    assert len(found) == 30
    assert len({repr(f) for f in (*shown, *found)}) == 31
    for arguments in found:
        assert [type(a) for a in arguments] == [type(a) for a in shown[0]]
        assert all(type(x) is int for x in arguments[0])
    assert found == more_inputs(shown, 30, seed=1)
    assert found != more_inputs(shown, 30, seed=2)


def test_numbers_stay_near_those_shown() -> None:
    """Growing ones and negative ones, which no example has, make right programs hang."""
    for shown, least, most in [([(25,)], 0, 27), ([(3,)], 0, 10), ([(3, [-40])], -42, 42)]:
        found = more_inputs(shown, 40, seed=0)
        numbers = [n for f in found for a in f for n in (a if isinstance(a, list) else [a])]
        assert len(found) > 8 and least <= min(numbers) and max(numbers) <= most
        assert len(set(numbers)) > 4


def test_nothing_to_mutate() -> None:
    assert more_inputs([], 5, seed=0) == []
    assert more_inputs([()], 5, seed=0) == []
    assert more_inputs([(None,)], 5, seed=0) == []


def test_inputs_from_annotations() -> None:
    question = Question("t", "def g(x):\n    pass\n\ndef f(s: str, n: List[int]) -> int:\n", "f")
    assert parameter_annotations(question) == {"s": "str", "n": "List[int]"}
    made = inputs_of_type(["str", "List[int]", "Optional[float]", "dict"])
    assert made is not None
    assert [type(value) for value in made] == [str, list, float, dict]
    assert inputs_of_type(["str", ""]) is None
    assert inputs_of_type([]) is None
