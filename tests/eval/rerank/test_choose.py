"""Choosing samples: the majority of what programs do, never what hidden tests say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from apr.engine.request import Sampling
from apr.errors import UsageError
from apr.eval.evaluate import evaluate
from apr.eval.model import Answer
from apr.eval.rerank.behaviour import INPUTS, Candidate, behaviours, canonical, syntax
from apr.eval.rerank.choose import choose_by
from apr.eval.rerank.visible import Question
from apr.eval.samples import score_samples
from apr.eval.sandbox import Sandbox
from apr.eval.sandbox.extensions import Opaque
from apr.eval.task import Task

from ..runs import SETTINGS, Canned

PROMPT = 'def double_all(xs):\n    """ Doubles.\n    >>> double_all([1, 2])\n    [2, 4]\n    """\n'
RIGHT = (
    "def double_all(xs):\n    return [2 * x for x in xs]\n",
    "def double_all(values):\n    out = []\n    for v in values:\n        out.append(v + v)\n"
    "    return out\n",
    "import operator\ndef double_all(xs):\n    return [operator.mul(x, 2) for x in xs]\n",
)
WRONG = (
    "def double_all(xs):\n    return [x * x if x == 2 else 2 for x in xs]\n",  # right as shown
    "def double_all(xs):\n    return xs * 2\n",
    "def double_all(xs):\n    return None\n",
    "def double_all(xs):\n    raise ValueError\n",
    "def double_all(xs:\n",
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(2, allow_weak=True) as opened:
        yield opened


def a_task(prompt: str = PROMPT, name: str = "double_all", test: str = "") -> Task:
    return Task("t", prompt, name, test, "")


def candidates(*programs: str, logprobs: tuple[float, ...] = ()) -> list[Candidate]:
    likely = logprobs or (None,) * len(programs)
    return [
        Candidate("t", i, p, lp) for i, (p, lp) in enumerate(zip(programs, likely, strict=True))
    ]


def chosen(method: str, sandbox: Sandbox, task: Task, *programs: str, **more: Any) -> int:
    return choose_by([method], {"t": task}, candidates(*programs, **more), sandbox)[method]["t"]


def test_the_largest_group_that_does_the_same_wins(sandbox: Sandbox) -> None:
    programs = (*WRONG, *RIGHT)
    assert chosen("majority", sandbox, a_task(), *programs) == len(WRONG)
    likely = tuple([-0.1] * len(WRONG) + [-0.9, -0.5, -0.7])
    assert chosen("majority", sandbox, a_task(), *programs, logprobs=likely) == len(WRONG) + 1


def test_a_majority_that_only_fails_is_none(sandbox: Sandbox) -> None:
    failing = ("def double_all(xs):\n    return xs[9999]\n",) * 4
    assert chosen("majority", sandbox, a_task(), *failing, RIGHT[0]) == 4


def test_ties_go_to_the_likeliest_then_to_the_first(sandbox: Sandbox) -> None:
    pair = (WRONG[1], RIGHT[0])
    assert chosen("majority", sandbox, a_task(), *pair) == 0
    assert chosen("majority", sandbox, a_task(), *pair, logprobs=(-2.0, -1.0)) == 1


def test_tests_are_those_that_the_prompt_shows(sandbox: Sandbox) -> None:
    assert chosen("tests", sandbox, a_task(), WRONG[2], WRONG[0], RIGHT[0]) == 1


def test_logprob(sandbox: Sandbox) -> None:
    assert chosen("logprob", sandbox, a_task(), *RIGHT, logprobs=(-0.4, -0.1, -0.2)) == 1
    with pytest.raises(UsageError, match="t sample 0 has no log-probability"):
        chosen("logprob", sandbox, a_task(), *RIGHT)


def test_without_calls_the_syntax_counts(sandbox: Sandbox) -> None:
    task = a_task("# Write f.\n", "f")
    same = ("def f(a):\n    '''One.'''\n    b = a\n    return b\n",
            "def f(x):\n    y = x  # a remark\n    return y\n")  # fmt: skip
    assert chosen("majority", sandbox, task, "def f(a): return 1\n", *same) == 1


@dataclass(frozen=True)
class _Watched(Task):
    """A task that cannot be asked for its test."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("test", "canonical_solution"):
            raise AssertionError(f"{name} was looked at")
        return super().__getattribute__(name)


def test_hidden_tests_are_neither_read_nor_of_use(sandbox: Sandbox) -> None:
    """A program that knows the hidden tests by heart, and nothing else, is not chosen for it."""
    hidden = [[17, 4], [100], []]
    known = {str(given): [2 * x for x in given] for given in hidden}
    by_heart = f"def double_all(xs):\n    return {known}[str(xs)]\n"
    task = _Watched("t", PROMPT, "double_all", "assert double_all([100]) == [200]", "")
    for method in ("majority", "tests"):
        assert chosen(method, sandbox, task, by_heart, by_heart, RIGHT[0], RIGHT[1]) == 2
    questions = {"t": Question("t", PROMPT, "double_all")}
    assert not hasattr(questions["t"], "test")


def test_the_choice_does_not_depend_on_workers_or_order(sandbox: Sandbox) -> None:
    found = candidates(*WRONG, *RIGHT)
    questions = {"t": Question("t", PROMPT, "double_all")}
    first = behaviours(questions, found, sandbox)
    with Sandbox(1, allow_weak=True) as other:
        assert behaviours(questions, found[::-1], other) == first
    assert len(first["t", 5].answers) == INPUTS
    assert first["t", 5] == first["t", 6] == first["t", 7]
    assert not first["t", 3].returns


def test_hostile_candidates_change_nothing(sandbox: Sandbox) -> None:
    hostile = (
        "import os\nos._exit(0)\n",
        "def double_all(xs):\n    while True: pass\n",
        "def double_all(xs):\n    return ['x' * 10_000_000] * 9\n",
        "def double_all(xs):\n    import os\n    os.kill(os.getppid(), 9)\n",
        "class Z(list):\n    __eq__ = lambda a, b: True\ndef double_all(xs):\n    return Z(xs)\n",
    )
    assert chosen("majority", sandbox, a_task(), *hostile, RIGHT[0], RIGHT[1]) == len(hostile)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (2, 2.0, True),
        (0.1 + 0.2, 0.3, True),
        ({1, 2}, {2, 1}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([1], (1,), False),
        (True, 1, True),
        (None, 0, False),
        ("1", 1, False),
        (float("nan"), float("nan"), True),
        (Opaque("X"), Opaque("X"), True),
    ],
)
def test_values_that_count_as_the_same(a: Any, b: Any, same: bool) -> None:
    assert (canonical(a) == canonical(b)) is same


def test_syntax_that_counts_as_the_same() -> None:
    assert syntax("def f(a):\n  return a") == syntax("def f(b: int) -> int:\n    return (b)")
    assert syntax("def f(a):\n  return a") != syntax("def f(a):\n  return -a")
    assert syntax("def f(:") == "def f(:"


# In an evaluation. ------------------------------------------------------------------------------


class _Several(Canned):
    """Three of five samples wrong in ways of their own for odd tasks, else all right."""

    def __call__(self, asks: Any) -> Iterator[Answer]:
        for answer in super().__call__(asks):
            yield replace(answer, mean_logprob=-0.1 if answer.sample == 0 else -1.0)


def write(task: Task, sample: int) -> str:
    if int(task.task_id.split("/")[1]) % 2 == 0 or sample in (1, 3):
        return task.canonical_solution
    return f"    return {sample}\n"


def test_an_evaluation_with_all_ways(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS,
        limit=6,
        n_samples=5,
        sampling=Sampling(temperature=0.8),
        out=tmp_path / "run",
        rerank=("majority", "logprob", "tests"),
    )
    canned = _Several(write)
    result, folder = evaluate(settings, canned.model())
    assert result.passes[1][0] == pytest.approx((3 + 3 * 2 / 5) / 6)
    assert result.reranked["majority"]["pass@1"] == 1.0
    assert result.reranked["tests"]["pass@1"] == 1.0
    assert result.reranked["logprob"]["pass@1"] == 0.5
    assert result.reranked["majority"]["best_of_all"] == 1.0
    assert result.reranked["majority"]["chosen"]["HumanEval/1"] == 1
    written = json.loads((folder / "results.json").read_text())
    assert written["reranked"]["logprob"]["chosen"]["HumanEval/1"] == 0
    again, _ = evaluate(settings, canned.model())
    assert again.reranked == result.reranked
    assert canned.loads == 1


def test_a_samples_file(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    rows = [
        {"task_id": "HumanEval/23", "completion": body}
        for body in ("    return 1\n", "    return len(string)\n", "    return string.__len__()\n")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = score_samples(path, allow_partial=True, rerank=("majority",), progress=False)
    assert result.reranked["majority"]["chosen"] == {"HumanEval/23": 1}
    assert result.reranked["majority"]["pass@1"] == 1.0
    with pytest.raises(UsageError, match="--rerank chances is unknown"):
        score_samples(path, allow_partial=True, rerank=("chances",), progress=False)


def test_one_sample_leaves_no_choice(tmp_path: Path) -> None:
    settings = replace(SETTINGS, out=tmp_path / "run", rerank=("majority",))
    with pytest.raises(UsageError, match="several samples"):
        evaluate(settings, Canned().model())
