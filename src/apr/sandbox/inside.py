"""Judging beside the candidate: for tests that need its live objects.

Test and program share a process, so this cannot be made safe against every program: native code
can rewrite whatever is here. What it does withstand: early exits (the token is read and sent
back only after the last assert), output that looks like a pass, replaced built-ins, tracing,
replaced checkers in the modules named below, and answers whose class defines equality itself or
that equal whatever they are compared to. The Outcome says judge="inside".
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
import os
import sys
import types
from typing import Any

from . import channel, codec
from .stdio import Full, Sink

MAX_CHECK = 64 << 20
_PRISTINE_BUILTINS = dict(vars(builtins))
_settrace, _setprofile = sys.settrace, sys.setprofile
_gettrace, _getprofile = sys.gettrace, sys.getprofile
_receive, _send, _receive_frame = channel.receive, channel.send, channel.receive_frame
_exec, _compile, _urandom = exec, compile, os.urandom


class Tampered(Exception):
    """The program changed what judges it."""


def fingerprint() -> dict[str, Any]:
    """Every function and class of the modules and classes that judge, by name.

    To be taken before the program runs. Loads unittest, which other candidates can do without.
    """
    import unittest
    import unittest.case

    watched: tuple[Any, ...] = (
        builtins,
        math,
        operator,
        unittest,
        unittest.case,
        unittest.case.TestCase,
        unittest.TestResult,
        unittest.TestSuite,
    )
    return {
        f"{getattr(owner, '__name__', owner)}.{name}": value
        for owner in watched
        for name, value in vars(owner).items()
        if callable(value)
    }


def run_check(
    fd: int, namespace: dict[str, Any], entry_point: str, original: dict[str, Any], sink: Sink
) -> None:
    """Receive the test, run it in the program's namespace, and answer with the token.

    original: the fingerprint. sink: where the program prints.

    Messages: out ("ready", []); in the test's source, then the token (left unread in the
    socket until the test has run); out {"token"} or {"failed": text, "kind": class name}.
    """
    _settrace(None)
    _setprofile(None)
    try:
        _verify(original)
        _send(fd, ("ready", []))
        source = _receive(fd, MAX_CHECK)
        namespace["__builtins__"] = dict(_PRISTINE_BUILTINS)
        if type(namespace.get(entry_point)) is types.FunctionType:
            namespace[entry_point] = _guarded(namespace[entry_point], original)
        before = namespace.get("check")
        _exec(_compile(source, "<string>", "exec", dont_inherit=True), namespace)
        check = namespace.get("check")
        if check is not None and check is not before:
            check(namespace[entry_point])
        _verify(original)
        if sink.full:  # and the program went on
            raise Full("the program prints more than allowed")
    except BaseException as error:
        _send(fd, {"failed": _text(error), "kind": type(error).__name__})
        return
    _send(fd, {"token": codec.loads(_receive_frame(fd, MAX_CHECK))})


def _verify(original: dict[str, Any]) -> None:
    if _gettrace() is not None or _getprofile() is not None:
        raise Tampered("the program traces its test")
    now = fingerprint()
    for name, value in original.items():
        if now.get(name) is not value:
            raise Tampered(f"the program replaced {name}")


def _guarded(function: Any, original: dict[str, Any]) -> Any:
    """The function, refusing answers that decide themselves what they equal."""

    @functools.wraps(function)
    def candidate(*args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        _verify(original)
        _refuse_own_equality(answer, [10_000])
        return answer

    return candidate


def _refuse_own_equality(value: Any, budget: list[int]) -> None:
    budget[0] -= 1
    if budget[0] < 0:
        return
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        for member in value:
            _refuse_own_equality(member, budget)
    elif kind is dict:
        for key, member in value.items():
            _refuse_own_equality(key, budget)
            _refuse_own_equality(member, budget)
    else:
        for name in ("__eq__", "__ne__"):
            method = getattr(kind, name, None)
            code = getattr(method, "__code__", None)
            # object and library classes have slot wrappers, or functions from files.
            if code is not None and code.co_filename.startswith("<"):
                raise Tampered(f"the answer's class {kind.__name__} defines {name}")
            if code is None and not isinstance(method, types.WrapperDescriptorType):
                raise Tampered(f"the answer's class {kind.__name__} replaces {name}")
        if _equals_anything(value):
            raise Tampered(f"the answer, of class {kind.__name__}, equals anything")


def _equals_anything(value: Any) -> bool:
    """Whether it says so of things nobody has seen before (as unittest.mock.ANY does)."""
    drawn = _urandom(8)
    for other in (object(), drawn, drawn.hex(), int.from_bytes(drawn, "big") / 7):
        try:
            if (value == other) is True:
                return True
        except Exception:  # an answer of a library's class that cannot be compared to this
            continue
    return False


def _text(error: BaseException) -> str:
    try:
        return str(error)[:10_000]
    except Exception as nested:
        return f"<{type(nested).__name__} in str()>"
