"""In every style of judging: no hostile program passes, and verdicts are the same every time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apr.sandbox import Outcome, Sandbox

from . import hostile, hostile_cases
from .styles import ANSWERS, PRELOAD, STRICT, STYLES, small, surroundings


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_hostile_program_passes(style: str, whole: bool, tmp_path: Path) -> None:
    """The list, and a right program after it; outside nothing has changed. The whole list has
    those programs as well that use up their time and memory.
    """
    with surroundings(tmp_path) as names, Sandbox(2, allow_weak=True, preload=PRELOAD) as sandbox:
        jobs = [
            small(STYLES[style](item.name, names + item.program, 0.25))
            for item in hostile.PROGRAMS
            if sandbox.level in item.levels and (item.name != ANSWERS or style in STRICT)
            if whole or not {"timeout", "memory"} & item.verdicts
        ]
        right = STYLES[style]("right", names + hostile.RIGHT, 10)
        outcomes = list(sandbox.run_many([*jobs, right]))
    assert {o.judge for o in outcomes} == {style} and len(outcomes) == len(jobs) + 1
    assert [o.job_id for o in outcomes if o.passed] == ["right"]
    unknown = [o for o in outcomes if o.verdict not in {*hostile_cases.NOT_PASSED, "passed"}]
    assert unknown == []
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["secret"]
    assert (tmp_path / "outside" / "secret").read_text() == "a secret"


def _spinning(seconds: float) -> str:
    spin = f"import time\nwhile time.process_time() < {seconds}: pass\n"
    return spin + hostile.RIGHT


LARGE = "800 MB of memory"  # takes as long as the time limit here
MIXED = {
    **{f"sound: {name}": hostile.CONTROLS[name] for name in hostile.CONTROLS if name != LARGE},
    "wrong": hostile.WRONG,
    "off by one": "def add(a, b):\n    return a + b + 1\n",
    "right for one of two": "def add(a, b):\n    return 3\n",
    "raises": "def add(a, b):\n    raise ValueError(a, b)\n",
    "raises when loaded": "1 / 0\n",
    "does not parse": "def add(a, b:\n",
    "is missing": "def plus(a, b):\n    return a + b\n",
    "exits": "import sys\nsys.exit(0)\n",
    "exits hard": "import os\nos._exit(0)\n",
    "exits when called": "import sys\ndef add(a, b):\n    sys.exit(3)\n",
    "always equal": "class A:\n    def __eq__(self, other): return True\n"
    "def add(a, b):\n    return A()\n",
    "near its time limit": _spinning(0.3),
}
# What uses up what it has -> the verdict.
GREEDY = {
    "beyond its time limit": (_spinning(60), "timeout"),
    "too much memory": ("x = b'x' * (2 << 30)\n" + hostile.RIGHT, "memory"),
    "too much output": ("print('x' * (32 << 20))\n" + hostile.RIGHT, "output-limit"),
}
LIMIT = 1.0


def _told(outcome: Outcome) -> tuple[str, str]:
    """Without addresses of objects."""
    return outcome.verdict, re.sub("0x[0-9a-f]+", "0x", outcome.detail)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("times", "greedy"),
    [((1, 3), {}), pytest.param((1, 2, 2, 2, 4), GREEDY, marks=pytest.mark.slow)],
    ids=["twice", "whole"],
)
def test_verdicts_do_not_depend_on_workers_or_chance(
    style: str, times: tuple[int, ...], greedy: dict[str, tuple[str, str]]
) -> None:
    """With so many workers each time: verdict and detail of each program are the same."""
    programs = {**MIXED, **{name: program for name, (program, _) in greedy.items()}}
    jobs = [STYLES[style](name, program, LIMIT) for name, program in programs.items()]
    jobs = [small(job) if job.job_id.startswith("too much") else job for job in jobs]
    found = []
    for workers in times:
        with Sandbox(workers, allow_weak=True, preload=PRELOAD) as sandbox:
            found.append({o.job_id: _told(o) for o in sandbox.run_many(jobs)})
    assert found[0].keys() == programs.keys()
    assert found[1:] == found[:1] * (len(times) - 1)
    verdicts = {name: verdict for name, (verdict, _) in found[0].items()}
    assert verdicts["near its time limit"] == verdicts["sound: plain"] == "passed"
    assert verdicts["wrong"] != "passed" and verdicts["always equal"] != "passed"
    assert {name: verdicts[name] for name in greedy} == {n: v for n, (_, v) in greedy.items()}
