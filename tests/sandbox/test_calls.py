"""Judging by calls: what programs answer, parts and limits, hostile programs."""

from __future__ import annotations

import venv
from collections.abc import Iterator
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import UsageError
from apr.sandbox import Job, Outcome, Sandbox
from apr.sandbox.codec import BadData, NotPlain
from apr.sandbox.extensions import LONG, Digest, Opaque, digest
from apr.sandbox.judging.calls import (
    Large,
    Returned,
    decode,
    encode,
    read_answer,
    reply_digest,
)

from . import hostile
from .styles import ANSWERS, PAIRS, small, surroundings

MIB = 1 << 20
Pairs = list[tuple[tuple[Any, ...], Any]]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(2, allow_weak=True) as opened:
        yield opened


def judged(name: str, program: str, pairs: Pairs, limit: float = 10, **more: Any) -> Job:
    cases = [(encode(given), encode(expected), limit) for given, expected in pairs]
    return _job(name, program, cases, limit, **more)


def asked(name: str, program: str, calls: list[tuple[Any, ...]], limit: float = 10) -> Job:
    return _job(name, program, [(encode(given), None, limit) for given in calls], limit)


def _job(name: str, program: str, cases: list[Any], limit: float, **more: Any) -> Job:
    options = {"entry_point": "f", "judge": "calls", "time_limit": limit, **more}
    return Job(name, program, cases=lambda: cases, **options)


def answers(outcome: Outcome) -> list[Returned]:
    return [read_answer(*answer) for answer in outcome.answers]


# What goes over the wire. -----------------------------------------------------------------------

VALUES = (
    *(None, True, 0, -(10**30), 1.5, inf, 1j, "ü\ud800", b"x", [], (), {}, set()),
    *([1, 2.5] * 9, [1, 2.0, 3, -0.0, 2**53] * 3, [2**53 + 1, 0.5] * 9, [True, 1] * 9),
    *({"a": [1, (2,)], 3: {4}}, frozenset({1, 2}), list(range(20)), ["s"] * 20, [inf, 1] * 9),
)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:40])
def test_values_survive_with_their_types(value: Any) -> None:
    found = decode(encode(value))
    assert repr(found) == repr(value)
    assert found == value


def test_mixed_numbers_with_nan_keep_their_places() -> None:
    found = decode(encode([1, nan, 2.0] * 4))
    assert repr(found) == repr([1, nan, 2.0] * 4)


def test_what_is_no_value() -> None:
    with pytest.raises(NotPlain):
        encode((object(),))
    forged = encode([1, 2.5] * 9).replace(encode([1, 2.5] * 9)[6:14], b"\xff" * 8)
    with pytest.raises(BadData):  # an int that is no number
        decode(forged)


def test_very_long_lists_are_compared_by_digest() -> None:
    long = [i % 7 for i in range(LONG + 1)]
    found = digest(long)
    assert found == digest(list(long))
    assert found != digest([*long[:-1], 9])
    assert found != digest(tuple(long))
    assert digest(long[:-1]) is None
    assert digest(["x" * LONG, "y"]) is not None
    assert digest([*long, object()]) is None
    assert decode(encode(found)) == found
    assert Digest(b"1") != b"1"


# Answers. ---------------------------------------------------------------------------------------


def test_answers(sandbox: Sandbox) -> None:
    program = "import re\ndef f(x):\n    if x == 3: raise KeyError('three')\n    return {x: [x]}\n"
    outcome = sandbox.run(asked("a", program, [(1,), (2,), (3,), (4,)]))
    assert outcome.passed
    found = answers(outcome)
    assert [(a.value, a.error) for a in found] == [
        *(({1: [1]}, None), ({2: [2]}, None), (None, "KeyError"), ({4: [4]}, None)),
    ]


def test_answers_that_are_no_data(sandbox: Sandbox) -> None:
    program = "import re\ndef f(x):\n    return [re.match('a', x), iter([]), len][: int(x[1:])]\n"
    (one, three) = answers(sandbox.run(asked("a", program, [("a1",), ("a3",)])))
    assert isinstance(one.value[0], Opaque)
    assert [value.type_name for value in three.value] == [
        *("Match", "list_iterator", "builtin_function_or_method"),
    ]
    assert one.value != three.value


def test_times_are_told(sandbox: Sandbox) -> None:
    program = "def f(n):\n    return sum(range(n))\n"
    quick, slow = answers(sandbox.run(asked("a", program, [(1,), (20_000_000,)])))
    assert slow.seconds > 100 * quick.seconds


def test_arguments_of_one_call_do_not_reach_the_next(sandbox: Sandbox) -> None:
    program = "def f(x):\n    x.append(1)\n    return x\n"
    assert sandbox.run(judged("a", program, [(([],), [1])] * 50)).passed


def test_state_lives_within_a_part_and_no_longer(sandbox: Sandbox) -> None:
    program = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)\n"
    pairs: Pairs = [((0,), 1), ((0,), 2), ((0,), 1)]
    parts = [("first", 2), ("second", 1)]
    assert sandbox.run(judged("a", program, pairs, parts=parts)).passed
    outcome = sandbox.run(judged("a", program, pairs[:2] + pairs[:1]))
    assert outcome.verdict == "failed"


@pytest.mark.parametrize(("wrong", "part"), [(1, "first"), (3, "second")])
def test_the_part_that_failed_is_named(sandbox: Sandbox, wrong: int, part: str) -> None:
    program = f"def f(x):\n    return None if x == {wrong} else x\n"
    pairs: Pairs = [((x,), x) for x in range(5)]
    parts = [("first", 2), ("second", 3)]
    outcome = sandbox.run(judged("a", program, pairs, parts=parts))
    assert (outcome.verdict, outcome.part) == ("failed", part)
    assert outcome.detail == f"failed: wrong answer: None, expected is {wrong}"


WRONG = {
    "raises": ("def f(x): return 1 / x", "ZeroDivisionError"),
    "is missing": ("def g(x): return 0", "name 'f' is not defined"),
    "does not parse": ("def f(x:", ""),
    "returns an iterator": ("def f(x): return iter([0])", "<list_iterator>"),
    "always equal": ("class A:\n    def __eq__(s, o): return True\ndef f(x): return A()", "<A>"),
    "nearly": ("def f(x): return 1e-9", "1e-09"),
    "an int that says it equals": (
        "class I(int):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef f(x): return I(5)",
        "5, expected is 0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs(sandbox: Sandbox, name: str) -> None:
    program, detail = WRONG[name]
    outcome = sandbox.run(judged(name, program, [((0,), 0)]))
    assert outcome.verdict == "failed"
    assert detail in outcome.detail


def test_equal_is_what_python_calls_equal(sandbox: Sandbox) -> None:
    pairs: Pairs = [((1,), True), ((2.0,), 2), (([3],), [3.0]), (({1, 2},), {2, 1})]
    assert sandbox.run(judged("a", "def f(x): return x", pairs)).passed
    for given, expected in (((1,), 2), ((nan,), nan), (([nan],), [nan]), (((1,),), [1])):
        outcome = sandbox.run(judged("a", "def f(x): return x", [((given[0],), expected)]))
        assert outcome.verdict == "failed", given


def test_a_part_over_its_time_decides_though_a_later_one_fails_too(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others the first part ends, with slack; what counts is that alone it does not."""
    monkeypatch.setattr("apr.sandbox.pool.SLACK", 20.0)
    program = (
        "import time\n"
        "def f(n):\n"
        "    end = time.process_time() + n\n"
        "    while time.process_time() < end: pass\n"
        "    return 0\n"
    )
    pairs: Pairs = [((0.8,), 0), ((100.0,), 0)]
    outcome = sandbox.run(judged("a", program, pairs, 0.4, parts=[("first", 1), ("second", 1)]))
    assert (outcome.verdict, outcome.part, outcome.retried) == ("timeout", "first", True)


def test_large_expected_values_are_compared_by_their_bytes_first(sandbox: Sandbox) -> None:
    """Equal values with other bytes are still equal, others still are not."""
    many = [7] * 50_000
    digest = reply_digest(encode(many))
    assert digest is not None and reply_digest(encode(many[:9])) is None
    assert reply_digest(encode([nan] * 50_000)) is None
    wanted = Large(digest, lambda: encode(many))
    cases = [(encode((3,)), encode(3), 5.0), (encode((50_000,)), wanted, 5.0)]
    programs = {
        "same": "def f(n): return n if n < 9 else [7] * n",
        "equal": "def f(n): return n if n < 9 else [7.0] * n",
        "other": "def f(n): return n if n < 9 else [8] * n",
        "where a small one is expected": "def f(n): return [7] * 50_000",
    }
    jobs = [_job(name, program, cases, 5.0) for name, program in programs.items()]
    found = {o.job_id: o.verdict for o in sandbox.run_many(jobs)}
    right, wrong = ("same", "equal"), ("other", "where a small one is expected")
    assert found == {**dict.fromkeys(right, "passed"), **dict.fromkeys(wrong, "failed")}


def test_an_interpreter_that_cannot_compare_gives_no_verdict(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare")
    job = judged("a", "def f(x): return x", [((1,), 1)], rule=("evalplus", "humaneval", 0.0))
    with Sandbox(1, allow_weak=True, python=str(tmp_path / "bare" / "bin" / "python")) as bare:
        outcome = bare.run(job)
        assert bare.run(judged("a", "def f(x): return x", [((1,), 1)])).passed
    assert outcome.verdict == "sandbox-error" and "numpy" in outcome.detail


def test_each_call_has_its_own_time(sandbox: Sandbox) -> None:
    program = "def f(n):\n    while n > 0: n -= 1\n    return n\n"
    quick: Pairs = [((3_000_000,), 0)] * 8
    assert sandbox.run(judged("a", program, quick, limit=2)).passed
    never: Pairs = [((1,), 0), ((float(1 << 60),), 0), ((1,), 0)]
    outcome = sandbox.run(judged("b", program, never, limit=0.3))
    assert (outcome.verdict, outcome.retried) == ("timeout", False)
    outcome = sandbox.run(judged("c", program, quick * 20, limit=5, total_limit=1.0))
    assert outcome.verdict == "timeout"


def test_a_call_with_more_time_has_it_from_its_beginning(sandbox: Sandbox) -> None:
    program = "def f(n):\n    while n > 0: n -= 1\n    return n\n"
    cases = [(encode((n,)), encode(0), limit) for n, limit in ((5, 0.2), (12_000_000, 20.0))]
    assert sandbox.run(_job("a", program, [cases[0], cases[1], cases[0]], 20.0)).passed
    swapped = [(given, expected, 20.2 - limit) for given, expected, limit in cases]
    assert sandbox.run(_job("b", program, swapped, 20.0)).verdict == "timeout"


def test_long_answers(sandbox: Sandbox) -> None:
    program = "def f(n):\n    return [str(i % 9) for i in range(n)]\n"
    n = LONG + 5
    right = encode(digest([str(i % 9) for i in range(n)]))
    job = _job("a", program, [(encode((n,)), right, 30.0)], 30.0)
    assert sandbox.run(job).passed
    wrong = program.replace("% 9", "% 8")
    outcome = sandbox.run(replace(job, program=wrong))
    assert outcome.verdict == "failed"
    much = "def f(n):\n    return ['x' * n]\n"
    outcome = sandbox.run(judged("b", much, [((1_500_000,), 0)], output_bytes=MIB))
    assert outcome.verdict == "output-limit"


def test_jobs_are_checked() -> None:
    with pytest.raises(UsageError, match="judge is calls without cases"):
        Job("a", "x = 1", entry_point="f", judge="calls")


# Hostile programs. ------------------------------------------------------------------------------


def test_hostile_functions_that_are_only_asked(tmp_path: Path) -> None:
    """The whole list: none may give the right answers to all calls."""
    jobs = []
    with surroundings(tmp_path) as names, Sandbox(2) as opened:
        for item in hostile.PROGRAMS:
            if opened.level in item.levels and item.name != ANSWERS:
                job = asked(item.name, names + item.program, [given for given, _ in PAIRS], 0.25)
                jobs.append(small(replace(job, entry_point="add")))
        outcomes = list(opened.run_many(jobs))
    assert len(outcomes) == len(jobs)
    right = [answer for _, answer in PAIRS]
    assert [o for o in outcomes if o.passed and [a.value for a in answers(o)] == right] == []
    assert not any(o.verdict == "sandbox-error" for o in outcomes)
