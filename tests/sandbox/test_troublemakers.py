"""Odd endings, files and words: each program has its verdict, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from apr.sandbox import LEVELS, Sandbox, available_levels
from apr.sandbox.pool import MAX_DETAIL

from . import hostile, styles, troublemakers

UNAVAILABLE = {r.level: r.reason for r in available_levels() if not r.available}


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param in UNAVAILABLE:
        pytest.skip(f"level {request.param}: {UNAVAILABLE[request.param]}")
    with Sandbox(2, request.param, allow_weak=True) as opened:
        yield opened


# Every style at the strongest level, one at the others; all of them among the slow tests.
STYLES = [
    pytest.param(
        level, style, marks=[pytest.mark.slow] if level != "full" and style != "proxy" else []
    )
    for level in LEVELS
    for style in styles.STYLES
]


@pytest.mark.parametrize(("sandbox", "style"), STYLES, indirect=["sandbox"])
def test_odd_endings_and_words(sandbox: Sandbox, style: str) -> None:
    check(sandbox, style, troublemakers.ENDINGS | troublemakers.WORDS)


def test_odd_files(sandbox: Sandbox) -> None:
    check(sandbox, "proxy", troublemakers.FILES)


def check(sandbox: Sandbox, style: str, programs: dict[str, str]) -> None:
    """Each gets a verdict that can be stored; the right program beside them passes."""
    job = styles.STYLES[style]
    jobs = [styles.small(job(name, program, 3.0)) for name, program in programs.items()]
    right = job("right", hostile.RIGHT, 10.0)
    outcomes = {o.job_id: o for o in sandbox.run_many([*jobs, right])}
    assert outcomes.pop("right").passed
    assert outcomes.keys() == programs.keys()
    unjudged = [o for o in outcomes.values() if o.verdict in ("passed", "sandbox-error")]
    assert unjudged == []
    for outcome in outcomes.values():
        assert outcome.detail.encode()
        assert len(outcome.detail) <= MAX_DETAIL
    assert [path for path in Path(sandbox._base).glob("*/*") if path.is_dir()] == []
