"""Running a unittest class beside the program it tests, in the candidate's process.

The tests need the program's live objects, so both share an interpreter and no verdict from here
can be beyond doubt: code that looks for this module's objects in memory can speak in its name.
What a program has to get past is this:

- The test and a secret arrive once the program's own statements have run, and are taken from the
  socket at once. Every outcome goes into a hash keyed with that secret, which is not kept
  otherwise. So an early exit or a forged message has no seal.
- Passing takes a recorded success of every test the judge read from the source itself. Skipped
  tests, expected failures and a loader that finds nothing are no successes.
- Tests that cannot pass run before and after the real ones, with names nobody can guess, through
  the same machinery. Where they do not fail, something makes tests pass.
- What tests are made of (built-ins, unittest, the assertions of numpy and pandas) must be the same
  objects after the program's statements as before, and after each call of the entry point. Tests
  themselves may patch as they like.
- The entry point's answers must not be equal to values drawn by lot.
"""

from __future__ import annotations

import builtins
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from . import channel
from .stdio import Full, Sink

MODULE = "__test__"  # where program and test meet, named as BigCodeBench names it
MAX_TEST = 64 << 20
MAX_TEXT = 500
_PACKAGE = __name__.rpartition(".")[0]
_ASSERTIONS = ("numpy.testing", "pandas.testing", "pandas._testing")
# As they are before a program or a test replaces them.
_exit, _getpid, _urandom = os._exit, os.getpid, os.urandom
_gettrace, _getprofile = sys.gettrace, sys.getprofile
_is, _modules = operator.is_, sys.modules
# For the functions below: what a program or a test patches is not theirs.
globals()["__builtins__"] = dict(vars(builtins))


class Tampered(Exception):
    """The program changed what judges it."""


class Runner:
    """Holds what the tests need of the time before the program ran.

    namespace: for the program. Its sandbox modules are out of its sight from here on.
    """

    def __init__(self, fd: int, entry_point: str, sink: Sink) -> None:
        import hashlib
        import unittest
        import unittest.mock

        self.module = types.ModuleType(MODULE)
        self.namespace = self.module.__dict__
        self.namespace.update(
            __file__=f"{MODULE}.py", __package__=None, sys=sys, os=os, environ=os.environ
        )
        self._fd, self._entry_point, self._sink = fd, entry_point, sink
        self._unittest, self._blake2b = unittest, hashlib.blake2b
        self._pid = _getpid()
        self._watched = _watched(unittest)
        self._before = _snapshot(self._watched)
        for name in [name for name in sys.modules if name.startswith(_PACKAGE)]:
            del sys.modules[name]

    def run(self) -> NoReturn:
        """Test the program, whose statements have run, and end.

        Messages: out ("ready", []); in {"test": source, "secret": bytes}; out {"outcomes": [(test,
        outcome, text)], "seal": bytes} or {"failed": text, "kind": class name}.
        """
        try:
            answer = self._answer()
        except BaseException as error:
            answer = {"failed": _text(error), "kind": type(error).__name__}
        if _getpid() == self._pid:  # and not a process that the program forked
            channel.send(self._fd, answer)
        _exit(0)

    def _answer(self) -> dict[str, Any]:
        _compare(self._watched, self._before)
        channel.send(self._fd, ("ready", []))
        order = channel.receive(self._fd, MAX_TEST)
        record, finish = _sealing(self._blake2b(key=order["secret"]))
        name = order["secret"].hex()
        del order["secret"]
        code = compile(order["test"], "<test>", "exec", dont_inherit=True)
        exec(code, self.namespace)
        sys.modules[MODULE] = self.module
        case = self.namespace["TestCases"]
        entry = self.namespace.get(self._entry_point)
        watched = (*self._watched, case)
        if callable(entry):
            self.namespace[self._entry_point] = _guarded(entry, watched)
        unittest = self._unittest
        suite = unittest.TestLoader().loadTestsFromTestCase(case)
        result = _result_class(unittest, record)()
        impossible = _impossible_case(unittest, name)
        for tests in (_suite_of(unittest, impossible), suite, _suite_of(unittest, impossible)):
            tests.run(result)
        if self._sink.full:  # and the program went on
            raise Full("the program prints more than allowed")
        return finish()


def _sealing(seal: Any) -> tuple[Callable[[str, str, str], None], Callable[[], dict[str, Any]]]:
    """Functions that record one outcome, and that give all of them with their seal."""
    outcomes: list[tuple[str, str, str]] = []
    update, digest, append = seal.update, seal.digest, outcomes.append

    def record(test: str, outcome: str, text: str) -> None:
        update(f"{test} {outcome}\n".encode("utf-8", "surrogatepass"))
        append((test, outcome, text))

    def finish() -> dict[str, Any]:
        return {"outcomes": outcomes, "seal": digest()}

    return record, finish


def _result_class(unittest: Any, record: Callable[[str, str, str], None]) -> type:
    """A TestResult that records one outcome for each thing it is told."""
    plain = frozenset(name for name, v in vars(unittest.TestCase).items() if callable(v))

    def note(test: Any, outcome: str, error: Any = None) -> None:
        kind = "" if error is None else error[0].__name__
        text = "" if error is None else f"{kind}: {_text(error[1])}"
        record(getattr(test, "_testMethodName", None) or test.id(), outcome, text)

    class Result(unittest.TestResult):
        def addSuccess(self, test: Any) -> None:
            if plain & vars(test).keys():
                raise Tampered("the program replaced a method of its test")
            note(test, "ok")

        def addFailure(self, test: Any, err: Any) -> None:
            note(test, "failed", err)

        def addError(self, test: Any, err: Any) -> None:
            note(test, "failed", err)

        def addSkip(self, test: Any, reason: str) -> None:
            note(test, "skipped")

        def addExpectedFailure(self, test: Any, err: Any) -> None:
            note(test, "expected")

        def addUnexpectedSuccess(self, test: Any) -> None:
            note(test, "unexpected")

        def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
            if err is not None:
                note(test, "failed", err)

    return Result


def _impossible_case(unittest: Any, name: str) -> type:
    """A test class of which every test fails, each in its own way. name: part of their names."""

    def unequal(test: Any) -> None:
        test.assertEqual(name, name[::-1] + "x")

    def untrue(test: Any) -> None:
        test.assertTrue(not name)

    def absent(test: Any) -> None:
        test.assertIn(name, [name + "x"])

    def nothing_raised(test: Any) -> None:
        with test.assertRaises(ValueError):
            name.lower()

    def plain_assert(test: Any) -> None:
        assert not name

    def error(test: Any) -> None:
        raise LookupError(name)

    bodies = (unequal, untrue, absent, nothing_raised, plain_assert, error)
    methods = {impossible_name(name, number): body for number, body in enumerate(bodies)}
    return type("TestCases", (unittest.TestCase,), {**methods, "__module__": MODULE})


IMPOSSIBLE = 6


def impossible_name(name: str, number: int) -> str:
    return f"test_{name}_{number}"


def _suite_of(unittest: Any, case: type) -> Any:
    return unittest.TestSuite(case(name) for name in vars(case) if name.startswith("test_"))


# What must stay as it is. -----------------------------------------------------------------------


def _watched(unittest: Any) -> tuple[Any, ...]:
    import math

    return (
        *(builtins, math, operator),
        *(unittest, unittest.case, unittest.suite, unittest.loader, unittest.result, unittest.util),
        *(unittest.TestCase, unittest.TestSuite, unittest.BaseTestSuite, unittest.TestResult),
        *(unittest.TestLoader, unittest.case._Outcome, unittest.case._AssertRaisesContext),
        *(unittest.case._AssertRaisesBaseContext, unittest.mock, unittest.mock.NonCallableMock),
        *(sys.modules[name] for name in _ASSERTIONS if name in sys.modules),
    )


def _snapshot(watched: tuple[Any, ...]) -> list[Any]:
    return [*(list(vars(owner).values()) for owner in watched), _gettrace(), _getprofile()]


def _compare(watched: tuple[Any, ...], before: list[Any]) -> None:
    """Raise Tampered unless every name bound then is bound to the same object; new ones may be."""
    *now, trace, profile = _snapshot(watched)
    *then, old_trace, old_profile = before
    if trace is not old_trace or profile is not old_profile:
        raise Tampered("the program traces its test")
    for owner, old, new in zip(watched, then, now, strict=True):
        if isinstance(owner, types.ModuleType) and _modules.get(owner.__name__) is not owner:
            raise Tampered(f"the program replaced module {owner.__name__}")
        if len(new) < len(old) or not all(map(_is, old, new)):
            raise Tampered(f"the program changed {getattr(owner, '__name__', owner)}")


def _guarded(function: Callable[..., Any], watched: tuple[Any, ...]) -> Callable[..., Any]:
    """The entry point, refusing calls that change what judges and answers that equal anything."""
    import functools

    depth = [0]

    def candidate(*args: Any, **kwargs: Any) -> Any:
        if depth[0]:
            return function(*args, **kwargs)
        before = _snapshot(watched)
        depth[0] = 1
        try:
            answer = function(*args, **kwargs)
        finally:
            depth[0] = 0
            _compare(watched, before)
        _refuse_equal_to_all(answer, [1000])
        return answer

    functools.update_wrapper(candidate, function)
    for name in dir(function):  # what a wrapper of a wrapper shows: cache_info, func
        if not name.startswith("__") and not hasattr(candidate, name):
            setattr(candidate, name, getattr(function, name))
    return candidate


def _refuse_equal_to_all(value: Any, budget: list[int]) -> None:
    budget[0] -= 1
    if budget[0] < 0:
        return
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        for member in value:
            _refuse_equal_to_all(member, budget)
    elif kind is dict:
        for member in value.values():
            _refuse_equal_to_all(member, budget)
    elif _decides_itself(kind) and any(_equals(value, probe) for probe in _probes()):
        raise Tampered(f"an answer of class {kind.__name__} is equal to anything")


def _decides_itself(kind: type) -> bool:
    """Whether a class has an __eq__ that is neither C's nor that of a library's class."""
    method = next(vars(cls)["__eq__"] for cls in kind.__mro__ if "__eq__" in vars(cls))
    if isinstance(method, types.WrapperDescriptorType) or type(method).__name__ == "MagicProxy":
        return False
    home = _modules.get(kind.__module__) if kind.__module__ != MODULE else None
    of_library = home is not None and vars(home).get(kind.__name__) is kind
    return kind.__name__ == "_ANY" or not of_library


def _probes() -> Iterator[Any]:
    number = int.from_bytes(_urandom(7), "little")
    yield from (object(), number, number / 7, str(number), [number], (number,), {number: number})


def _equals(value: Any, probe: Any) -> bool:
    try:
        return (value == probe) is True
    except Exception:
        return False


def _text(error: BaseException) -> str:
    try:
        return str(error)[:MAX_TEXT]
    except BaseException as nested:
        return f"<{type(nested).__name__} in str()>"
