"""Programs that try to pass a unittest class without being right, as data (see hostile.py).

All but the last group get their way with the official rule: run the class, pass if there are
neither failures nor errors.
"""

from __future__ import annotations

TEST = """
import unittest
class TestCases(unittest.TestCase):
    def setUp(self):
        self.two = 2
    def test_small(self):
        found = add(1, self.two)
        self.assertEqual(found, 3)
    def test_large(self):
        found = add(40, self.two)
        self.assertEqual(found, 42)
"""
WRONG = "def add(a, b):\n    return None\n"
_ALWAYS = "class Always:\n    def __eq__(self, other): return True\n"
_CALLER = "import sys\ntest = sys._getframe(1).f_locals['self']\n"


def _at_once(statements: str) -> str:
    return f"import unittest, unittest.mock, sys\n{statements}\n{WRONG}"


def _when_called(statements: str) -> str:
    body = "".join(f"    {line}\n" for line in statements.strip().splitlines())
    return f"import unittest, unittest.mock\ndef add(a, b):\n{body}    return None\n"


FOOLING: dict[str, str] = {
    # What unittest does not count as a failure.
    "skipping": _when_called("raise unittest.SkipTest"),
    "skipping from a signal": "import signal, unittest, time\ndef skip(*args):\n"
    "    raise unittest.SkipTest\nsignal.signal(signal.SIGALRM, skip)\ndef add(a, b):\n"
    "    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    time.sleep(5)\n",
    "failures that skip": _at_once("unittest.TestCase.failureException = unittest.SkipTest"),
    "every class skipped": _at_once("unittest.TestCase.__unittest_skip__ = True"),
    "every failure expected": _at_once("unittest.TestCase.__unittest_expecting_failure__ = True"),
    "expected from now on": _when_called(
        f"{_CALLER}type(test).__unittest_expecting_failure__ = True\n"
        "test._outcome.expecting_failure = True"
    ),
    "no test found": _at_once("unittest.TestLoader.testMethodPrefix = 'nothing'"),
    "no test defined": _at_once(
        "def strip(cls, **kwargs):\n    for name in [n for n in vars(cls) if n[:4] == 'test']:\n"
        "        delattr(cls, name)\nunittest.TestCase.__init_subclass__ = classmethod(strip)"
    ),
    "classes built without tests": _at_once(
        "import builtins\nbuild = builtins.__build_class__\ndef tame(body, name, *bases, **kw):\n"
        "    cls = build(body, name, *bases, **kw)\n"
        "    for key in [n for n in vars(cls) if n[:4] == 'test']:\n        delattr(cls, key)\n"
        "    return cls\nbuiltins.__build_class__ = tame"
    ),
    # Patches before the test.
    "run replaced": _at_once("unittest.TestCase.run = lambda self, result: result"),
    "call replaced": _at_once("unittest.TestCase.__call__ = lambda self, result: result"),
    "test method not called": _at_once("unittest.TestCase._callTestMethod = lambda *args: None"),
    "assertion replaced": _at_once("unittest.TestCase.assertEqual = lambda *args: None"),
    "comparison replaced": _at_once(
        "unittest.TestCase._getAssertEqualityFunc = lambda *args: lambda *args, **kw: None"
    ),
    "failures not added": _at_once("unittest.TestResult.addFailure = lambda *args: None"),
    "errors passed over": _at_once("unittest.case._addError = lambda *args: None"),
    "suite replaced": _at_once("unittest.TestSuite.run = lambda self, result: result"),
    "another TestCase": _at_once(
        "class Tame(unittest.TestCase):\n    def assertEqual(self, *args): pass\n"
        "unittest.TestCase = Tame"
    ),
    "another unittest": _at_once(
        "import types\nfake = types.ModuleType('unittest')\nvars(fake).update(vars(unittest))\n"
        "class Tame(unittest.TestCase):\n    def assertEqual(self, *args): pass\n"
        "fake.TestCase = Tame\nsys.modules['unittest'] = fake"
    ),
    # Patches while the test runs.
    "assertion replaced when called": _when_called(
        "unittest.TestCase.assertEqual = lambda *args: None"
    ),
    "assertion of the class replaced": _when_called(
        f"{_CALLER}type(test).assertEqual = lambda *args: None"
    ),
    "assertion of the instance replaced": _when_called(
        f"{_CALLER}test.assertEqual = lambda *args: None"
    ),
    "assertion replaced and built-ins with it": _when_called(
        "import builtins\nunittest.TestCase.assertEqual = lambda *args: None\n"
        "builtins.all = lambda *args: True\nbuiltins.map = lambda *args: ()"
    ),
    "failures of the instance skip": _when_called(
        f"{_CALLER}test.failureException = unittest.SkipTest"
    ),
    "result emptied by its test": _when_called(
        f"{_CALLER}result = test._outcome.result\nresult.addFailure = lambda *args: None"
    ),
    "assertion replaced by a thread": "import threading, time, unittest\ndef patch():\n"
    "    time.sleep(0.2)\n    unittest.TestCase.assertEqual = lambda *args: None\n"
    "def add(a, b):\n    if not threads:\n        threads.append(threading.Thread(target=patch))\n"
    "        threads[0].start()\n    time.sleep(0.5)\nthreads = []\n",
    # Answers that are equal to everything.
    "an always-equal object": f"{_ALWAYS}def add(a, b):\n    return Always()\n",
    "an always-equal int": "class Always(int):\n    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\ndef add(a, b):\n    return Always(7)\n",
    "an equality that is no function": "import functools\nclass Always: pass\n"
    "Always.__eq__ = functools.partialmethod(lambda *args: True)\ndef add(a, b):\n"
    "    return Always()\n",
    "an equality of the library": "from unittest.mock import ANY\nclass Always: pass\n"
    "Always.__eq__ = type(ANY).__eq__\ndef add(a, b):\n    return Always()\n",
    "an equal mock": "from unittest.mock import MagicMock\ndef add(a, b):\n    m = MagicMock()\n"
    "    m.__eq__.return_value = True\n    return m\n",
    "mock.ANY": "from unittest.mock import ANY\ndef add(a, b):\n    return ANY\n",
    "a class that answers": f"{_ALWAYS}class add:\n    def __new__(cls, a, b): return Always()\n",
    "a cached answer": f"import functools\n{_ALWAYS}@functools.lru_cache\ndef add(a, b):\n"
    "    return Always()\n",
    "a callable object": f"{_ALWAYS}class Add:\n    def __call__(self, a, b): return Always()\n"
    "add = Add()\n",
}

# These get nowhere with the official scorer either.
FUTILE: dict[str, str] = {
    "exit": "import sys\nsys.exit(0)\n",
    "exit when called": "import sys\ndef add(a, b):\n    sys.exit(0)\n",
    "hard exit when called": "import os\ndef add(a, b):\n    os._exit(0)\n",
    "interrupting": "def add(a, b):\n    raise KeyboardInterrupt\n",
    "a test class of its own": "import unittest\nclass TestCases(unittest.TestCase):\n"
    "    def test_nothing(self): pass\n" + WRONG,
    "answering from a fork": "import os\ndef add(a, b):\n    if os.fork():\n        os._exit(0)\n",
    "a module of its own": "import sys, types\nsys.modules['__test__'] = types.ModuleType('x')\n"
    + WRONG,
    "forged reports": "import os, struct\ndef add(a, b):\n    for text in (b'T', b'N', b'l'):\n"
    "        os.write(3, struct.pack('<I', len(text)) + text)\n",
    "sandbox modules": "import sys\nfor name in list(sys.modules):\n    if 'sandbox' in name:\n"
    "        vars(sys.modules[name]).clear()\n" + WRONG,
    "globals of the frames": "import sys\ndef add(a, b):\n    frame = sys._getframe()\n"
    "    while frame:\n        for name in ('_compare', 'note', 'record', '_snapshot'):\n"
    "            if name in frame.f_globals:\n"
    "                frame.f_globals[name] = lambda *args, **kw: None\n"
    "        frame = frame.f_back\n",
}
