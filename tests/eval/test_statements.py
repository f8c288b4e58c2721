"""Which statements around a solution stay and which go: what runs must be the solution."""

from __future__ import annotations

from typing import Any

import pytest

from apr.eval.code.extraction import chat_code

FUNCTION = "def twice(n):\n    return n + n\n"
MAIN = "def main():\n    print(twice(int(input())))\n"


def value(program: str, given: int = 4) -> Any:
    """What the program's function returns; the programs here are our own."""
    names: dict[str, Any] = {"__name__": "candidate"}
    exec(compile(program, "<program>", "exec"), names)
    return names["twice"](given)


BEHIND = {
    "a main that reads": f"{MAIN}main()",
    "a main under a condition": f"{MAIN}if True:\n    main()",
    "a main that may fail": f"import sys\n{MAIN}try:\n    main()\nexcept Exception:\n"
    "    sys.exit(1)",
    "the end of a main": f"import sys\n{MAIN}sys.exit(main())",
    "an end by another name": "from sys import exit as leave\nleave(0)",
    "an end inside a function": "def stop():\n    import sys\n    sys.exit()\nstop()",
    "an exception that ends": "raise SystemExit(0)",
    "a call by another name": f"{MAIN}run = main\nrun()",
    "a thread": f"import threading\n{MAIN}threading.Thread(target=main).start()",
    "a coroutine": "import asyncio\nasync def show():\n    assert twice(1) == 3\n"
    "asyncio.run(show())",
    "a class that shows": "class Demo:\n    def run(self):\n        assert twice(2) == 5\n"
    "Demo().run()",
    "an own test": "def run_tests():\n    assert twice(5) == 11\nrun_tests()",
    "an own test of a helper": "def one():\n    return 1\ndef run():\n    assert one() == 2\nrun()",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n"
    "        self.assertEqual(twice(1), 3)\nunittest.main()",
    "unittest by hand": "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n"
    "        self.assertEqual(twice(1), 3)\nload = unittest.defaultTestLoader\n"
    "suite = load.loadTestsFromTestCase(T)\n"
    "assert not unittest.TextTestRunner().run(suite).failures",
    "doctest": "from doctest import testmod as check\ncheck()",
    "a loop of asserts": "cases = [(2, 5)]\nfor given, wanted in cases:\n"
    "    assert twice(given) == wanted",
    "a loop that reads": "while True:\n    n = int(input())\n    if n == 0:\n        break",
    "the arguments of a script": "import sys\nif len(sys.argv) > 1:\n    n = int(sys.argv[1])",
    "a file": "with open('/nothing/of/the/kind') as file:\n    numbers = file.read()",
    "the name of the function bound to a result": "twice = twice(3)",
    "a library for what is shown": "import nothing_of_the_kind as plt\nplt.plot([twice(1)])",
    "a library for tests": "import unittest\nimport nothing_of_the_kind as mock\n"
    "class T(unittest.TestCase):\n    def test(self):\n        mock.call(twice)\n"
    "unittest.main()",
    "two statements on a line": "n = 3; print(twice('a' + n))",
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
def test_what_stands_behind_the_solution_does_not_run(behind: str) -> None:
    assert value(chat_code(f"```python\n{FUNCTION}\n{behind}\n```", "twice")) == 8


def test_a_value_that_is_read_in_place_of_one_that_is_there() -> None:
    code = "N = 2\n\ndef twice(n):\n    return N * n\n\nN = int(input())\nprint(twice(3))\n"
    assert value(chat_code(code, "twice")) == 8


NEEDED = {
    "a logger": "import logging\nlogger = logging.getLogger(__name__)\n\n"
    "def twice(n):\n    logger.debug('n')\n    return n + n\n",
    "an attribute of the function": "def twice(n):\n    return twice.seen.setdefault(n, n + n)\n\n"
    "twice.seen = {}\n",
    "an attribute set by a function": "def reset():\n    twice.two = 2\n\n"
    "def twice(n):\n    return twice.two * n\n\nreset()\n",
    "an attribute set by name": "def twice(n):\n    return twice.two * n\n"
    "setattr(twice, 'two', 2)\n",
    "an attribute of a class": "class Two:\n    pass\nTwo.factor = 2\n"
    "def twice(n):\n    return Two.factor * n\n",
    "registered functions": "from functools import singledispatch\n@singledispatch\n"
    "def kind(v):\n    return 0\n@kind.register(int)\ndef _(v):\n    return 2\n"
    "@kind.register(str)\ndef _(v):\n    return 3\ndef twice(n):\n    return kind(n) * n\n",
    "functions in a register": "RULES = {}\ndef rule(name):\n    def add(f):\n"
    "        RULES[name] = f\n        return f\n    return add\n@rule('two')\ndef _(n):\n"
    "    return n + n\n@rule('three')\ndef _(n):\n    return 3 * n\n"
    "def twice(n):\n    return RULES['two'](n)\n",
    "a registered implementation of the function": "from functools import singledispatch\n"
    "@singledispatch\ndef twice(n):\n    raise TypeError\ntwice.register(int, lambda n: n + n)\n",
    "a table filled by a loop that prints": "TABLE = {}\nfor i in range(9):\n    TABLE[i] = i + i\n"
    "    print(i)\ndef twice(n):\n    return TABLE[n]\n",
    "a table filled by a function": "TABLE = []\ndef build():\n    for i in range(9):\n"
    "        TABLE.append(i + i)\nbuild()\ndef twice(n):\n    return TABLE[n]\n",
    "a table made by a function": "def build():\n    global TABLE\n"
    "    TABLE = [2 * i for i in range(9)]\n"
    "build()\ndef twice(n):\n    return TABLE[n]\n",
    "a table handed over": "def fill(table):\n    table[4] = 8\nTABLE = {}\nfill(TABLE)\n"
    "def twice(n):\n    return TABLE[n]\n",
    "a library that is missing": "try:\n    import nothing_of_the_kind as lib\n"
    "except ImportError:\n"
    "    print('going on without')\n    lib = None\ndef twice(n):\n"
    "    return n + n if lib is None else lib.two(n)\n",
    "a name that may be print": "DEBUG = False\nsay = print if DEBUG else (lambda *a: None)\n"
    "def twice(n):\n    say(n)\n    return n + n\n",
    "signatures for type checkers": "from typing import overload\n@overload\n"
    "def twice(n: int) -> int: ...\n@overload\ndef twice(n: float) -> float: ...\n"
    "def twice(n):\n    return n + n\n",
    "a helper first left open": "def twice(n):\n    return two(n)\ndef two(n):\n"
    '    """Later."""\n    raise NotImplementedError("later")\ndef two(n):\n    return n + n\n',
    "the function first left open": f"def twice(n):\n    raise NotImplementedError\n\n{FUNCTION}",
    "a name announced": f"twice = None\n{FUNCTION}",
    "a default argument": "TWO = 1 + 1\ndef twice(n, k=TWO):\n    return k * n\n",
    "the base of a class": "from typing import NamedTuple\n"
    "BASE = NamedTuple('BASE', [('n', int)])\n"
    "class Two(BASE):\n    pass\ndef twice(n):\n    return 2 * Two(n).n\n",
    "a wrapped function": f"{FUNCTION}import functools\ntwice = functools.lru_cache(None)(twice)\n",
    "several names at once": "(ZERO, TWO), *rest = (0, 2), 3\ndef twice(n):\n"
    "    return TWO * n + ZERO\n",
    "values by version": "import sys\nif sys.version_info >= (3,):\n    TWO = 2\nelse:\n"
    "    TWO = 3\n"
    "def twice(n):\n    return TWO * n\n",
    "a library set up": "import decimal\ndecimal.getcontext().prec = 30\n"
    "decimal.getcontext().clear_flags()\n"
    "def twice(n):\n    return 2 * n if decimal.getcontext().prec == 30 else None\n",
    "a value that a deeper function uses": "def outer():\n    def inner():\n        return TWO\n"
    "    return inner\nTWO = len(str(print)[:2])\ndef twice(n):\n    return outer()() * n\n",
}  # fmt: skip


@pytest.mark.parametrize("code", NEEDED.values(), ids=NEEDED.keys())
def test_what_the_solution_needs_stays(code: str) -> None:
    shown = f"{code}\nprint(twice(None))\n"
    assert value(chat_code(f"```python\n{shown}```", "twice")) == 8


def test_postponed_annotations() -> None:
    """`from __future__` cannot stand behind a prompt; what it postponed names what comes later."""
    code = (
        "from __future__ import annotations\n\n"
        "def twice(n: Später | None, *more: list[\n    Late], k: int = 2) -> Late:\n"
        "    m: int = n\n    return k * m\n\nclass Late:\n    next: Late | None = None\n"
    )
    program = f"def twice(n):\n    pass\n\n{chat_code(code, 'twice')}"
    assert value(program) == 8 and "__future__" not in program


def test_a_second_version_of_a_helper_does_not_count() -> None:
    code = f"def two():\n    return 2\n{FUNCTION}def two():\n    return 3\n"
    assert chat_code(code, "twice").count("def two") == 1


def test_names_of_a_function_are_not_the_modules() -> None:
    """`n` is a parameter: the statement that reads an `n` of the module is not needed."""
    code = f"n = int(input())\n{FUNCTION}"
    assert value(chat_code(code, "twice")) == 8


def test_calls_of_a_class_that_is_judged() -> None:
    code = (
        "class Stack:\n    def push(self, x): ...\n    size = 0\n\nStack.limit = 9\nStack.push(1)\n"
    )
    names: dict[str, Any] = {}
    exec(chat_code(f"```\n{code}s = Stack(1)\n```", "Stack"), names)
    assert names["Stack"].limit == 9 and "s" not in names
