"""Choosing samples: the majority of what programs do, never what hidden tests say."""

from __future__ import annotations

import collections
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr.common.errors import AprError, UsageError
from apr.engine.request import Sampling
from apr.eval.benchmarks.task import Task
from apr.eval.generators import Answer, Submission
from apr.eval.rerank.behaviour import INPUTS, UNSEEN, Behaviour, behaviours, canonical
from apr.eval.rerank.choose import Choice, choose_by, majority, normal_form
from apr.eval.rerank.visible import Question
from apr.eval.run.evaluate import evaluate
from apr.eval.run.scoring import score_samples
from apr.eval.run.store import Store
from apr.sandbox import Sandbox
from apr.sandbox.extensions import Opaque

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


def candidates(*programs: str, logprobs: tuple[float | None, ...] = ()) -> list[Submission]:
    likely = logprobs or (None,) * len(programs)
    return [
        Submission("t", i, p, mean_logprob=lp)
        for i, (p, lp) in enumerate(zip(programs, likely, strict=True))
    ]


def chosen(method: str, sandbox: Sandbox, task: Task, *programs: str, **more: Any) -> int:
    found = choose_by([method], {"t": task}, candidates(*programs, **more), sandbox)
    return found[method]["t"].sample


def test_the_largest_group_that_does_the_same_wins(sandbox: Sandbox) -> None:
    programs = (*WRONG, *RIGHT)
    assert chosen("majority", sandbox, a_task(), *programs) == len(WRONG)
    likely = tuple([-0.1] * len(WRONG) + [-0.9, -0.5, -0.7])
    assert chosen("majority", sandbox, a_task(), *programs, logprobs=likely) == len(WRONG) + 1


def test_a_majority_that_only_fails_is_none(sandbox: Sandbox) -> None:
    failing = ("def double_all(xs):\n    return xs[9999]\n",) * 4
    assert chosen("majority", sandbox, a_task(), *failing, RIGHT[0]) == 4


def test_six_right_ones_outvote_four_that_err_each_in_its_own_way(sandbox: Sandbox) -> None:
    """All ten are right as shown; the prompt alone does not tell them apart."""
    right = (
        "def double_all(xs): return [x + x for x in xs]",
        "def double_all(xs): return list(map(lambda x: 2 * x, xs))",
        "def double_all(items):\n    return [item << 1 for item in items]",
        "def double_all(xs):\n    return [xs[0] * 2, *double_all(xs[1:])] if xs else []",
        "def double_all(xs):\n    ys = list(xs)\n    for i in range(len(ys)): ys[i] *= 2\n"
        "    return ys",
        "import math\ndef double_all(xs): return [math.prod((x, 2)) for x in xs]",
    )
    wrong = (
        "def double_all(xs): return [2, 4]",
        "def double_all(xs): return [2 * x for x in xs[:2]]",
        "def double_all(xs): return [2 * x for x in sorted(set(xs))]",
        "def double_all(xs): return [2 * x if x < 3 else x for x in xs]",
    )
    programs = [*wrong[:2], right[0], wrong[2], *right[1:], wrong[3]]
    # The wrong ones are the likelier ones, which decides only among equals.
    logprobs = tuple(-0.1 if program in wrong else -1.0 - i for i, program in enumerate(programs))
    assert chosen("majority", sandbox, a_task(), *programs, logprobs=logprobs) == 2
    assert chosen("tests", sandbox, a_task(), *programs, logprobs=logprobs) == 0
    did = behaviours({"t": Question("t", PROMPT, "double_all")}, candidates(*programs), sandbox)
    groups = [did["t", i].answers for i in range(10)]
    assert sorted(groups.count(group) for group in set(groups)) == [1, 1, 1, 1, 6]


def test_examples_come_before_numbers(sandbox: Sandbox) -> None:
    """Three that agree on what the prompt says is wrong lose to one that does as it says."""
    assert chosen("majority", sandbox, a_task(), WRONG[1], WRONG[1], WRONG[1], RIGHT[0]) == 3


def test_the_largest_group_is_what_mbr_exec_takes() -> None:
    """Against a brute force over pairs: gain 1 for a program that runs and gives the same (Shi et
    al. 2022, section 3), the log-probability among equals.
    """
    rng = random.Random(0)
    for _ in range(300):
        did = [
            Behaviour((f"={rng.randrange(3)}",) * 2 if rng.random() < 0.8 else ("~ValueError",) * 2)
            for _ in range(rng.randint(2, 9))
        ]
        group = candidates(*["def f(): pass"] * len(did), logprobs=tuple(
            round(-rng.random(), 1) for _ in did))  # fmt: skip
        gains = [sum(a.returns and a == b for b in did) for a in did]
        if not any(gains):
            continue
        best = max(range(len(did)), key=lambda i: (gains[i], group[i].mean_logprob, -i))
        assert majority(group, dict(enumerate(did))) == Choice(best, "behaviour")


def test_ties_go_to_the_likeliest_then_to_the_first(sandbox: Sandbox) -> None:
    pair = (WRONG[0], RIGHT[0])  # both right as shown
    assert chosen("majority", sandbox, a_task(), *pair) == 0
    assert chosen("majority", sandbox, a_task(), *pair, logprobs=(-2.0, -1.0)) == 1


def test_tests_are_those_that_the_prompt_shows(sandbox: Sandbox) -> None:
    assert chosen("tests", sandbox, a_task(), WRONG[2], WRONG[0], RIGHT[0]) == 1


def test_logprob(sandbox: Sandbox) -> None:
    assert chosen("logprob", sandbox, a_task(), *RIGHT, logprobs=(-0.4, -0.1, -0.2)) == 1
    # An empty answer has no tokens; that does not keep the others from being ranked.
    empty = chosen("logprob", sandbox, a_task(), *RIGHT, logprobs=(None, -0.4, -0.1))
    assert empty == 2
    with pytest.raises(UsageError, match="no log-probabilities"):
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


def test_a_program_that_hangs_is_known_by_what_it_gave_before(sandbox: Sandbox) -> None:
    hangs = "def double_all(xs):\n    while len(xs) != 2: pass\n    return [2 * x for x in xs]\n"
    dies = "import os\n" + RIGHT[0].replace("    ", "    len(xs) == 2 or os._exit(3)\n    ", 1)
    questions = {"t": Question("t", PROMPT, "double_all")}
    did = behaviours(questions, candidates(hangs, dies, RIGHT[0]), sandbox)
    right = did["t", 2].answers
    at = next(i for i, answer in enumerate(right) if answer.count(",") != 1)
    assert at > 0
    rest = (UNSEEN,) * (INPUTS - at - 1)
    assert did["t", 0].answers == (*right[:at], "!timeout", *rest)
    assert did["t", 1].answers == (*right[:at], "!error", *rest)
    assert did["t", 0].shown == did["t", 1].shown == 1


def test_values_no_test_would_return() -> None:
    """Texts stay short, and no answer of a program stops the evaluation."""
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested, nested]  # as a tree it would have 2**100 nodes
    cyclic: list[Any] = [1]
    cyclic.append(cyclic)
    values = [10**5000, -(10**5000), nested, cyclic, "x" * 10**6, b"\0" * 10**6, "\ud800",
              float("inf"), Decimal("sNaN"), Fraction(10**400), range(10**30), {1: {2}}.items(),
              np.array([[1.0, 2.0]]), np.int64(3), collections.deque([1]), 1j, complex(2, 0),
              bytearray(b"a"), {}.keys()]  # fmt: skip
    texts = [canonical(value) for value in values]
    assert len(set(texts)) == len(texts)
    assert all(len(text) < 200 for text in texts)
    assert canonical(np.int64(3)) == canonical(3)
    assert canonical(complex(2, 0)) == canonical(2)
    assert canonical(1234567890.5) != canonical(1234567890)


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
    plain = normal_form("def f(a):\n  return a")
    assert plain == normal_form("def f(b: int) -> int:\n    'Says.'\n    return (b)  # so")
    assert plain != normal_form("def f(a):\n  return -a")
    assert normal_form("def f(a):\n  return g(a)") != normal_form("def f(a):\n  return h(a)")
    nested = "def f({0}):\n  def g({1}):\n    return {0} + {1}\n  return [g({2}) for {2} in {0}]"
    assert normal_form(nested.format("a", "b", "c")) == normal_form(nested.format("x", "y", "z"))
    assert normal_form(nested.format("a", "b", "c")) != normal_form(nested.format("a", "a", "c"))
    assert normal_form("def f(:") is None
    assert normal_form("x = " + "-" * 100_000 + "1") is None


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
    assert written["reranked"]["majority"]["decided_by"] == {"behaviour": 6}
    taken = [json.loads(row) for row in (folder / "reranked-logprob.jsonl").open()]
    assert [row["task_id"] for row in taken] == [f"HumanEval/{i}" for i in range(6)]
    assert taken[1]["completion"] == "    return 0\n"
    again, _ = evaluate(settings, canned.model())
    assert again.reranked == result.reranked
    assert canned.loads == 1


def test_what_was_observed_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies while it observes goes on where it was."""
    settings = replace(
        SETTINGS,
        limit=4,
        n_samples=3,
        sampling=Sampling(temperature=0.8),
        out=tmp_path / "run",
        rerank=("majority",),
    )
    original, told = Store.add_behaviour, []

    def dies(self: Store, *args: Any) -> None:
        if len(told) == 5:
            raise AprError("no power")
        told.append(args[0])
        original(self, *args)

    monkeypatch.setattr(Store, "add_behaviour", dies)
    with pytest.raises(AprError, match="no power"):
        evaluate(settings, Canned(write).model())
    assert not (tmp_path / "run" / "results.json").exists()
    first, told[:] = list(told), []
    monkeypatch.setattr(
        Store, "add_behaviour", lambda self, *args: (told.append(args[0]), original(self, *args))
    )
    result, _ = evaluate(settings, Canned(write).model())
    assert set(first).isdisjoint(told) and len(first) + len(told) == 12
    whole, _ = evaluate(replace(settings, out=tmp_path / "other"), Canned(write).model())
    assert whole.reranked == result.reranked
    told.clear()
    evaluate(settings, Canned(write).model())
    assert told == []


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
