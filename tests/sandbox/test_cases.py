"""Judging by cases: what a script finds, each case's own time, hostile programs of both styles."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from apr.common.errors import UsageError
from apr.sandbox import LEVELS, Job, Outcome, Sandbox, available_levels
from apr.sandbox.judging.cases import output_difference

from . import hostile, hostile_cases
from .test_hostile import processes_of

MIB = 1 << 20
UNAVAILABLE = {r.level: r.reason for r in available_levels() if not r.available}


def script(name: str, program: str, *cases: tuple[str, str], time_limit: float = 10) -> Job:
    return Job(name, program, judge="stdin", cases=lambda: cases, time_limit=time_limit)


def calls(
    name: str, program: str, *cases: tuple[str, str], function: str = "f", time_limit: float = 10
) -> Job:
    return Job(
        name,
        program,
        entry_point=function,
        judge="functional",
        cases=lambda: cases,
        time_limit=time_limit,
    )


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(2, allow_weak=True) as opened:
        yield opened


# What a script finds. ------------------------------------------------------------------------


FOUND = (
    "__name__",
    "sys.argv[1:]",
    "sys.modules['__main__'].__dict__ is globals()",
    "sys.stdin.encoding, sys.stdout.encoding, sys.stdin.newlines",
    "sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno()",
    "sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__",
    "sys.stdin.isatty(), sys.stdout.line_buffering, sys.stderr.line_buffering",
    "sys.stdin.mode, sys.stdout.mode, type(sys.stdin.buffer), type(sys.stdout.buffer)",
    "sys.stdin.seekable(), os.fstat(0).st_size, os.lseek(0, 0, 1)",
    "[fd for fd in range(3, 256) if is_open(fd)]",
    "os.listdir()",
    "input(), repr(input()), sys.stdin.readline(), sys.stdin.read()",
    "sys.stdin.readlines(), sys.stdin.read()",
    "list(sys.stdin.buffer), sys.stdin.buffer.read()",
    "sys.stdin.buffer.readline(), sys.stdin.buffer.readline()",
    "open(0).read()",
    "exit, quit, copyright, __builtins__.__name__",
    "sorted(name for name in globals() if not name.startswith('_'))",
    "writes(0)",
)


def test_a_script_finds_what_python_gives_it(sandbox: Sandbox, tmp_path: Path) -> None:
    """Against `python solution.py < stdin > file`, in a folder that holds stdin alone."""
    given = "a\n\n b \r\nlast"
    solution = tmp_path / "solution.py"
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "stdin").write_bytes(given.encode())
    differences = []
    for expression in FOUND:
        program = (
            "import os, sys\ndef is_open(fd):\n    try: os.fstat(fd)\n    except OSError: return\n"
            "    return True\ndef writes(fd):\n    try: return os.write(fd, b'x')\n"
            f"    except OSError as error: return error\nprint(({expression},))"
        )
        solution.write_text(program)
        with (tmp_path / "cwd" / "stdin").open() as stdin, (tmp_path / "out").open("w+") as out:
            subprocess.run(
                [sys.executable, "-s", str(solution)],
                stdin=stdin,
                stdout=out,
                stderr=subprocess.DEVNULL,
                cwd=tmp_path / "cwd",
                env={"LANG": "C.UTF-8"},
                check=True,
            )
            out.seek(0)
            outcome = sandbox.run(script(expression, program, (given, out.read())))
        if not outcome.passed:
            differences.append(outcome)
    assert differences == []


@pytest.mark.parametrize("name", hostile_cases.ECHOES)
def test_sound_scripts_pass(sandbox: Sandbox, name: str) -> None:
    job = script(name, hostile_cases.ECHOES[name], ("one line", "one line"))
    outcome = sandbox.run(job)
    assert outcome.passed, outcome.detail
    assert not outcome.retried


def test_text_of_every_kind_crosses(sandbox: Sandbox) -> None:
    for text in ("ä€😀", "a\\b\x01c", "", "'\"" * 9, "x" * 300_000 + "\n" + "y" * 300_000):
        assert sandbox.run(script("j", "print(open(0).read())", (text, text))).passed
    odd = sandbox.run(script("j", "import os\nos.write(1, b'\\xff\\xfe')", ("", "x")))
    assert (odd.verdict, odd.detail.startswith("failed: wrong answer")) == ("failed", True)


def test_input_and_output_larger_than_the_limits_of_each_other(sandbox: Sandbox) -> None:
    given = "7\n" * (4 * MIB)
    job = script("j", "import sys\nprint(sum(map(int, sys.stdin)))", (given, str(28 * MIB)))
    assert sandbox.run(replace(job, output_bytes=MIB)).passed
    job = script("j", "print('x' * (1 << 20))", ("", "x" * MIB))
    assert sandbox.run(replace(job, output_bytes=MIB + 1)).passed
    assert sandbox.run(replace(job, output_bytes=MIB)).verdict == "output-limit"


def test_dev_stdin_is_the_input() -> None:
    if "full" in UNAVAILABLE:
        pytest.skip(f"level full: {UNAVAILABLE['full']}")
    with Sandbox(1, "full") as opened:
        assert opened.run(script("j", "print(open('/dev/stdin').read())", ("1\n", "1"))).passed


def test_every_case_finds_a_fresh_folder_and_process(sandbox: Sandbox) -> None:
    program = (
        "import os, string\nassert not os.path.exists('left') and not hasattr(string, 'left')\n"
        "open('left', 'w').close()\nstring.left = 1\nprint(input())"
    )
    assert sandbox.run(script("j", program, ("1", "1"), ("2", "2"), ("3", "3"))).passed


# Verdicts. -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "verdict", "detail"),
    [
        ("print(1)", "failed", "failed: wrong answer: line 1 is '1', expected is '2'"),
        ("print(2, 2, sep='\\n')", "failed", "failed: wrong answer: 2 lines of output, expected"),
        ("int('x')", "failed", "failed: runtime error: ValueError: invalid literal"),
        ("print('x", "failed", "failed: runtime error: SyntaxError: unterminated"),
        ("import os\nos._exit(3)", "error", "failed: runtime error: its process exited with"),
        ("import os\nos.abort()", "error", "failed: runtime error: its process was ended by SIGA"),
        ("x = [0] * 10 ** 12", "memory", "failed: MemoryError"),
        ("while True: pass", "timeout", "timed out"),
    ],
)
def test_kinds_of_failure(sandbox: Sandbox, program: str, verdict: str, detail: str) -> None:
    """The second of three tests fails, and is named."""
    first = "if input() == 'a':\n    print(1)\n    raise SystemExit\n"
    cases = (("a", "1"), ("b", "2"), ("c", "3"))
    outcome = sandbox.run(script("j", first + program, *cases, time_limit=0.5))
    assert (outcome.verdict, outcome.judge) == (verdict, "stdin")
    assert outcome.detail.startswith(detail)
    if program != "print('x":  # does not even compile
        assert outcome.detail.endswith("(test 2 of 3)")


@pytest.mark.parametrize(
    ("body", "verdict", "detail"),
    [
        ("return 1", "failed", "failed: wrong answer: 1, expected is 2 (test 2 of 3)"),
        ("return {}[x]", "failed", "failed: runtime error: KeyError: 2 (test 2 of 3)"),
        ("raise SystemExit", "failed", "failed: runtime error: SystemExit:  (test 2 of 3)"),
        ("import os; os._exit(0)", "error", "failed: no answer, its process exited"),
        ("x = [0] * 10 ** 12", "memory", "failed: MemoryError (test 2 of 3)"),
        ("return 'x' * (1 << 21)", "output-limit", "failed: it prints or returns more than"),
        ("print('x' * (1 << 21))", "output-limit", "failed: it prints or returns more than"),
        ("while True: pass", "timeout", "timed out (test 2 of 3)"),
    ],
)
def test_kinds_of_failure_of_calls(sandbox: Sandbox, body: str, verdict: str, detail: str) -> None:
    program = f"def f(x):\n    if x == 1: return 1\n    {body}\n"
    job = calls("j", program, ("1", "1"), ("2", "2"), ("3", "3"), time_limit=0.5)
    outcome = sandbox.run(replace(job, output_bytes=MIB))
    assert (outcome.verdict, outcome.judge) == (verdict, "functional")
    assert outcome.detail.startswith(detail)


SPIN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"


def test_every_case_has_its_own_time(sandbox: Sandbox) -> None:
    """Five cases of 0.3 s within 0.8 s each; a total that no limit of 0.8 s would allow."""
    cases = [("1", "1")] * 5
    body = "".join(f"    {line}\n" for line in SPIN.splitlines())
    for job in (
        script("j", SPIN + "print(1)", *cases, time_limit=0.8),
        calls("j", f"def f(x):\n{body}    return 1", *cases, time_limit=0.8),
    ):
        outcome = sandbox.run(job)
        assert outcome.passed, outcome.detail
        assert outcome.cpu_seconds > 1.4


# The same work in three children, one after the other.
CHILDREN = """
import subprocess, sys
spin = "import time\\nwhile time.process_time() < 0.1: pass"
for _ in range(3):
    subprocess.run([sys.executable, "-I", "-c", spin], check=True)
"""


@pytest.mark.parametrize("work", [SPIN, CHILDREN], ids=["itself", "children"])
def test_waiting_for_a_processor_does_not_count(sandbox: Sandbox, work: str) -> None:
    """0.3 s of work within 0.9 s, on processors that six others keep busy."""
    spin = [sys.executable, "-c", "while True: pass"]
    # Each in a session of its own, as our workers: schedulers share by session first.
    count = 6 * (os.cpu_count() or 1)
    busy = [subprocess.Popen(spin, start_new_session=True) for _ in range(count)]
    try:
        outcome = sandbox.run(script("j", work + "print(1)", ("", "1"), time_limit=0.9))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert outcome.passed, outcome.detail
    assert not outcome.retried


def test_the_prelude_is_there_and_a_program_may_begin_with_a_future_import(
    sandbox: Sandbox,
) -> None:
    prelude = "from math import *\nimport bisect\n"
    future = "from __future__ import annotations\n"
    for job in (
        script("j", future + "print(gcd(4, 6), bisect.__name__)", ("", "2 bisect")),
        calls("j", future + "def f(x: Nothing): return gcd(x, 6)", ("4", "2")),
    ):
        assert sandbox.run(replace(job, prelude=prelude)).passed


def test_jobs_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="judge is stdin without cases"):
        Job("j", "", judge="stdin")
    with pytest.raises(UsageError, match="judge is proxy with cases"):
        Job("j", "", "", "f", cases=lambda: ())
    with pytest.raises(UsageError, match="entry_point"):
        Job("j", "", judge="functional", cases=lambda: ())
    with pytest.raises(UsageError, match="judge is 'x'"):
        Job("j", "", "", "f", judge="x")  # type: ignore[arg-type]


def test_faulty_cases_are_nobodys_failure(sandbox: Sandbox) -> None:
    assert sandbox.run(script("j", "print(1)")).verdict == "sandbox-error"
    for case in (("x", "1"), ("1", "x"), ("", "1")):
        outcome = sandbox.run(calls("j", "def f(x): return 1", ("1", "1"), case))
        assert outcome.verdict == "sandbox-error"
        assert "test 2 is not JSON" in outcome.detail


def test_cases_are_called_for_when_the_job_starts(sandbox: Sandbox) -> None:
    asked = []

    def cases(name: str) -> Sequence[tuple[str, str]]:
        asked.append(name)
        return [("", "1")]

    jobs = [
        Job(name, "print(1)", judge="stdin", cases=lambda name=name: cases(name)) for name in "abcd"
    ]
    outcomes = sandbox.run_many(jobs)
    next(outcomes)
    assert len(asked) < 4
    assert all(outcome.passed for outcome in outcomes)
    assert asked == list("abcd")


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1 2\n3", "1 2\n3\n", True),
        (" 1 2 \n\t3\r\n\n", "1 2\n3", True),
        ("1\n\n2", "1\n2", False),
        ("1", "1.000", True),
        ("1e2 0x1", "100 0x1", False),  # a line is either text or numbers
        ("100 0x1", "100 0x1", True),
        ("1e2", "100", True),
        ("0.1", "0.10000000000000000001", False),
        ("50000000000000001", "50000000000000000", False),
        ("1 2", "1 2 3", False),
        ("nan", "NaN", False),
        ("", "\n", True),
        ("", "0", False),
        ("1e999999999999999999", "1e999999999999999999 ", True),
        ("-0", "0", True),
        ("1\x0c2", "1 2", True),
    ],
)
def test_output_difference(output: str, expected: str, same: bool) -> None:
    assert (output_difference(output, expected) == "") == same


# Hostile programs. ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=LEVELS)
def verdicts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """Every script run once; nothing of them is left."""
    if request.param in UNAVAILABLE:
        pytest.skip(f"level {request.param}: {UNAVAILABLE[request.param]}")
    work = tmp_path_factory.mktemp("scripts")
    for parent in (work, work.parent, work.parent.parent):  # pytest's are for their owner only
        parent.chmod(0o711)
    python = work.parent / f"python-{request.param}"
    python.symlink_to(os.path.realpath(sys.executable))
    jobs = [
        replace(
            script(item.name, item.program, (hostile_cases.GIVEN, hostile_cases.ANSWER)),
            time_limit=0.3,
            memory_bytes=512 * MIB,
            output_bytes=4 * MIB,
        )
        for item in hostile_cases.SCRIPTS
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(work))
        with Sandbox(2, request.param, allow_weak=True, python=str(python)) as opened:
            found = {outcome.job_id: outcome for outcome in opened.run_many(jobs)}
    assert processes_of(python) == []
    assert list(work.iterdir()) == []
    return found


@pytest.mark.parametrize("item", hostile_cases.SCRIPTS, ids=lambda item: item.name)
def test_hostile_scripts_do_not_pass(item: hostile.Hostile, verdicts: dict[str, Outcome]) -> None:
    assert verdicts[item.name].verdict in item.verdicts, verdicts[item.name]


def test_the_searches_find_what_is_there() -> None:
    """They are able: run beside the answer, the first finds it."""
    search = hostile_cases.SCRIPTS[0]
    code = f"kept = [{hostile_cases.ANSWER!r}]\nexec({search.program!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == hostile_cases.ANSWER + "\n"
