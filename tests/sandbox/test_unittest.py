"""The unittest judge: unittest's own verdicts, and none for programs that only pretend."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from apr.common.errors import UsageError
from apr.sandbox import LEVELS, Job, Outcome, Sandbox, available_levels

from . import hostile, hostile_unittest

AVAILABLE = [report.level for report in available_levels() if report.available]
RIGHT = "def add(a, b):\n    return a + b\n"


def job(program: str, test: str = hostile_unittest.TEST, name: str = "j", **options: float) -> Job:
    return Job(name, program, test, "add", judge="unittest", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(2, allow_weak=True, preload=("hashlib", "unittest", "unittest.mock")) as opened:
        yield opened


# The official rule, as bigcodebench/eval/__init__.py applies it, in a process of its own.
OFFICIAL = """
import json, os, sys, types, unittest
program, test = json.load(sys.stdin)
module = types.ModuleType("__test__")
module.__dict__.update(sys=sys, os=os, environ=os.environ)
try:
    exec(compile(program + "\\n" + test, "__test__.py", "exec"), module.__dict__)
    sys.modules["__test__"] = module
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromTestCase(module.TestCases).run(result)
except BaseException:
    os._exit(1)
os._exit(bool(result.failures or result.errors))
"""


def official(program: str, test: str) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", OFFICIAL],
        input=json.dumps([program, test]),
        text=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return done.returncode == 0


CLASS = "import unittest\nfrom unittest.mock import patch\nclass TestCases(unittest.TestCase):\n"
TESTS: dict[str, str] = {
    "equal": "def test(self): self.assertEqual(add(1, 2), 3)",
    "not equal": "def test(self): self.assertEqual(add(1, 2), 4)",
    "one of two": "def test_a(self): self.assertTrue(add(1, 2))\n"
    "def test_b(self): self.assertFalse(add(1, 2))",
    "assert statement": "def test(self): assert add(1, 2) == 4",
    "raises": "def test(self):\n    with self.assertRaises(TypeError): add(1, None)",
    "raises nothing": "def test(self):\n    with self.assertRaises(TypeError): add(1, 2)",
    "error": "def test(self): add(1)",
    "set-up fails": "def setUp(self): 1 / 0\ndef test(self): pass",
    "tear-down fails": "def tearDown(self): 1 / 0\ndef test(self): pass",
    "clean-up fails": "def test(self): self.addCleanup(add)",
    "class set-up fails": "@classmethod\ndef setUpClass(cls): 1 / 0\ndef test(self): pass",
    "class tear-down fails": "@classmethod\ndef tearDownClass(cls): 1 / 0\ndef test(self): pass",
    "subtests": "def test(self):\n    for n in (1, 2):\n        with self.subTest(n=n):\n"
    "            self.assertEqual(add(n, n), 2 * n)",
    "a subtest fails": "def test(self):\n    for n in (1, 2):\n        with self.subTest(n=n):\n"
    "            self.assertEqual(add(n, n), 2)",
    "the test skips": "def test(self): self.skipTest('not today')",
    "a decorated skip": "@unittest.skip('no')\ndef test(self): add()",
    "expected": "@unittest.expectedFailure\ndef test(self): self.assertEqual(add(1, 2), 4)",
    "unexpected": "@unittest.expectedFailure\ndef test(self): self.assertEqual(add(1, 2), 3)",
    "patched built-in": "@patch('builtins.print')\ndef test(self, printed):\n"
    "    say(add(1, 2))\n    printed.assert_called_once_with(3)",
    "patched for good": "@classmethod\ndef setUpClass(cls): patch('builtins.len').start()\n"
    "def test_a(self): self.assertEqual(add(1, 2), 3)\n"
    "def test_b(self): self.assertEqual(add(1, 2), 3)",
    "patched entry point": "@patch('__test__.say')\ndef test(self, said): say(3)",
    "patched wrongly": "@patch('nowhere.say')\ndef test(self, said): say(3)",
    "state between tests": "def test_a(self): add.seen = 1\n"
    "def test_b(self): self.assertEqual(add.seen, 1)",
    "asynchronous": "async def test(self): self.assertEqual(add(1, 2), 4)",
    "files": "def setUp(self):\n    os.mkdir('d')\n    open('d/x', 'w').close()\n"
    "def test(self): self.assertEqual(os.listdir('d'), ['x'])\n"
    "def tearDown(self):\n    os.remove('d/x')\n    os.rmdir('d')",
    "time zone": "def test(self):\n    import time\n    self.assertEqual(time.timezone, 0)",
    "no network": "def test(self):\n    import socket\n"
    "    with self.assertRaises(OSError): socket.create_connection(('127.0.0.1', 9), 1)",
}
SAY = RIGHT + "def say(text):\n    print(text)\n"


def test_verdicts_of_unittest(sandbox: Sandbox) -> None:
    tests = {
        name: CLASS + "".join(f"    {line}\n" for line in body.splitlines())
        for name, body in TESTS.items()
    }
    ours = {o.job_id: o for o in sandbox.run_many(job(SAY, t, n) for n, t in tests.items())}
    theirs = {name: official(SAY, test) for name, test in tests.items()}
    assert {name: outcome.passed for name, outcome in ours.items()} == theirs
    assert {o.verdict for o in ours.values()} == {"passed", "failed"}
    assert {o.judge for o in ours.values()} == {"unittest"}
    assert ours["one of two"].detail.startswith("failed: 1 of 2 tests, test_b: AssertionError:")


PROGRAMS: dict[str, str] = {
    **hostile.CONTROLS,
    "a data class": "from dataclasses import dataclass\n@dataclass\nclass N:\n    n: int\n"
    "    def __eq__(self, other): return self.n == other\n"
    "def add(a, b):\n    return N(a + b)\n",
    "a cached function": "import functools\n@functools.lru_cache\n" + RIGHT,
    "a partial function": "import functools\ndef f(c, a, b):\n    return a + b + c\n"
    "add = functools.partial(f, 0)\n",
    "a tracer of its own": "import sys\ndef add(a, b):\n    sys.settrace(lambda *args: None)\n"
    "    sys.settrace(None)\n    return a + b\n",
    "a mock of its own": "from unittest.mock import patch\ndef add(a, b):\n"
    "    with patch('builtins.len', lambda x: 0):\n        len([1])\n    return a + b\n",
    "threads that go on": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(99,)).start()\n" + RIGHT,
}


def test_sound_programs_pass(sandbox: Sandbox) -> None:
    jobs = [job(p, name=name, time_limit=10) for name, p in PROGRAMS.items()]
    outcomes = {outcome.job_id: outcome for outcome in sandbox.run_many(jobs)}
    assert [o for o in outcomes.values() if not o.passed] == []
    assert outcomes.keys() == PROGRAMS.keys()


@pytest.mark.parametrize("level", LEVELS)
def test_no_pretence_passes(level: str) -> None:
    if level not in AVAILABLE:
        pytest.skip(f"level {level} is not to be had here")
    programs = {**hostile_unittest.FOOLING, **hostile_unittest.FUTILE}
    with Sandbox(2, level, allow_weak=True, preload=("unittest.mock",)) as sandbox:  # type: ignore[arg-type]
        outcomes = list(
            sandbox.run_many(
                [
                    *(job(program, name=name, time_limit=1) for name, program in programs.items()),
                    job(RIGHT, name="right"),
                ]
            )
        )
    assert len(outcomes) == len(programs) + 1
    assert [o.job_id for o in outcomes if o.passed] == ["right"]
    assert {o.verdict for o in outcomes} <= {"passed", "failed", "error", "timeout"}


@pytest.mark.parametrize("name", hostile_unittest.FOOLING)
def test_pretences_are_dangerous(name: str) -> None:
    """With the official rule they pass."""
    assert official(hostile_unittest.FOOLING[name], hostile_unittest.TEST)


@pytest.mark.parametrize("test", ["class TestCases(:", "import unittest\n", "1 / 0"])
def test_a_faulty_test_is_nobodys_failure(sandbox: Sandbox, test: str) -> None:
    assert sandbox.run(job(RIGHT, test)).verdict == "sandbox-error"


def outcome(sandbox: Sandbox, program: str, **options: float) -> Outcome:
    return sandbox.run(job(program, **options))


def test_limits(sandbox: Sandbox) -> None:
    noisy = "def add(a, b):\n    print('x' * 5000)\n    return a + b\n"
    assert outcome(sandbox, noisy, output_bytes=1000).verdict == "output-limit"
    caught = "def add(a, b):\n    try:\n        print('x' * 5000)\n    except BaseException:\n"
    caught += "        pass\n    return a + b\n"
    assert outcome(sandbox, caught, output_bytes=1000).verdict == "output-limit"
    large = "def add(a, b):\n    return len(b'x' * (2 << 30)) and a + b\n"
    assert outcome(sandbox, large, memory_bytes=1 << 30).verdict == "memory"
    endless = "def add(a, b):\n    while True: pass\n"
    assert outcome(sandbox, endless, time_limit=0.3).verdict == "timeout"


def test_unknown_judges_are_refused() -> None:
    with pytest.raises(UsageError, match="unittest"):
        Job("j", "", "", "f", judge="nose")  # type: ignore[arg-type]
