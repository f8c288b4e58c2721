"""Judging by calls: Python values in, Python values out.

A case is a call of the entry point. Its answer is compared with the expected one by a rule, or
handed out for whoever asked what the program does. Arguments and answers travel as codec bytes,
many in one message: a test of a thousand calls costs few turns between the processes.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple

from .. import codec, extensions
from .cases import ProgramRaised, WrongAnswer
from .remote import Candidate, SetupFailed, start

LAP_EVERY = 0.05  # seconds; a case's time is told from its neighbours' no finer than this
_SHOWN = 60
_LARGE = 1 << 16  # bytes
_NANS = (b"\xf8\x7f", b"\xf8\xff")  # upper bytes of a NaN; now and then of something else


class Returned(NamedTuple):
    """What a call gave. seconds: of processor time, as the program's process says.

    value: what it returned (extensions.Opaque for what is no plain data). error: name of the
    exception's class, if it raised.
    """

    seconds: float
    value: Any = None
    error: str | None = None


class Large(NamedTuple):
    """In place of an expected value's bytes where these are many: judge and program compare the
    digest, and exchange bytes only if theirs differ. (Equal values may have different bytes.)

    digest: of the reply that holds the value. read: gives the value's bytes.
    """

    digest: bytes
    read: Callable[[], bytes]


class NeedsWhole(Exception):
    """An answer has to be compared by its bytes, of which the judge has the digest."""


def reply_digest(value: bytes) -> bytes | None:
    """Of an expected value that can be a `Large`; None for one that is small or may hold a NaN,
    which is not equal to itself.
    """
    if len(value) < _LARGE or any(nan in value for nan in _NANS):
        return None
    return sha256(b"v" + value).digest()


def sent(case: tuple[Any, ...], whole: bool) -> tuple[Any, ...]:
    """A case as the judge gets it."""
    given, expected, limit = case
    if isinstance(expected, Large):
        return given, expected.read() if whole else (expected.digest,), limit
    return case


def encode(value: Any) -> bytes:
    """Arguments (a tuple) or an expected value. Raises codec.NotPlain."""
    encoder = codec.Encoder(extend=_write)
    encoder.value(value)
    return bytes(encoder.out)


def decode(data: bytes) -> Any:
    """What `encode` took. Raises codec.BadData."""
    return codec.Decoder(data, extend=_build).value()


def read_answer(seconds: float, reply: bytes) -> Returned:
    """One of the answers of an outcome (Outcome.answers). Raises codec.BadData."""
    decoder = codec.Decoder(reply, extend=_build)
    kind = decoder.byte()
    value = decoder.value()
    if kind == ord("v"):
        return Returned(seconds, value)
    if kind == ord("e") and isinstance(value, tuple) and len(value) == 4:
        return Returned(seconds, error=str(value[1]))
    raise codec.BadData(f"reply of kind {kind}")


def judge(
    fd: int, candidate: Candidate, job: dict[str, Any], lap: Callable[[float], None]
) -> list[tuple[float, bytes]]:
    """Call the candidate for each case of `job`; raises what is wrong with the first that fails.

    cases: (arguments, expected, limit in seconds); expected None asks for the answer only, and
    these answers are returned. lap: called with its limit when the time of a case begins.
    """
    entry_point, cases = job["entry_point"], job["cases"]
    if job["rule"][0] == "evalplus" and not _has_numpy():
        raise SetupFailed("EvalPlus' rules need numpy in the interpreter that runs the programs")
    same = rule(entry_point, *job["rule"])
    only_asked = all(expected is None for _, expected, _ in cases)
    if entry_point not in start(fd, candidate, job, [entry_point]):
        raise NameError(f"name {entry_point!r} is not defined")
    answers: list[tuple[float, bytes]] = []
    limits = [limit for _, _, limit in cases]
    lap(limits[0])
    begun = time.monotonic()
    calls = [arguments for arguments, _, _ in cases]
    # What was answered before a call with another limit is told first, so that its time counts
    # from its beginning.
    told_before = [i for i in range(1, len(limits)) if limits[i] != limits[i - 1]]
    digest_from = _LARGE if any(isinstance(case[1], tuple) for case in cases) else None
    for seconds, reply in candidate.many(calls, only_asked, told_before, digest_from):
        given, expected, _ = cases[len(answers)]
        if expected is not None:
            _check(reply, given, expected, same, digest_from is not None)
        answers.append((seconds, reply))
        now, at = time.monotonic(), len(answers)
        if at < len(cases) and (now - begun > LAP_EVERY or limits[at] != limits[at - 1]):
            lap(limits[at])
            begun = now
    return answers if only_asked else []


@cache
def _has_numpy() -> bool:
    from importlib.util import find_spec  # not needed by most jobs

    return find_spec("numpy") is not None


def _check(
    reply: bytes,
    given: bytes,
    expected: bytes | tuple[bytes],
    same: Rule,
    digests: bool,
) -> None:
    if isinstance(expected, tuple) or (digests and reply[:1] == b"h"):
        if not (same.by_bytes and isinstance(expected, tuple) and reply == b"h" + expected[0]):
            raise NeedsWhole
        return
    # Bytes that are the same mean values that are equal, unless NaN is among them.
    alike = same.by_bytes and reply[:1] == b"v" and reply[1:] == expected
    if alike and not any(nan in expected for nan in _NANS):
        return
    answer = read_answer(0.0, reply)
    if answer.error is not None:
        raise ProgramRaised(answer.error)
    wanted = decode(expected)
    try:
        right = same.holds(answer.value, wanted, lambda: decode(given))
    except Exception as error:  # an array has no truth value, a list no hash
        raise WrongAnswer(f"{short(answer.value)}: {type(error).__name__}: {error}") from None
    if not right:
        raise WrongAnswer(f"{short(answer.value)}, expected is {short(wanted)}")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"


def _write(encoder: codec.Encoder, value: Any) -> None:
    if not extensions.write(encoder, value):
        raise codec.NotPlain(type(value).__name__)


def _build(name: str, contents: Any) -> Any:
    try:
        return extensions.build(name, contents)
    except Exception as error:
        raise codec.BadData(f"extension {name!r}: {error}") from None


# When an answer counts as the expected one. -----------------------------------------------------


class Rule(NamedTuple):
    """holds(answer, expected, arguments): whether they are the same; may raise, which means they
    are not. by_bytes: whether an answer that equals the expected one needs no other look.
    """

    holds: Callable[[Any, Any, Callable[[], Any]], bool]
    by_bytes: bool = True


# MBPP's functions whose result EvalPlus compares as a set, or only for being there.
_AS_SETS = {
    "similar_elements",
    "find_char_long",
    "common_in_nested_lists",
    "extract_singly",
    "larg_nnum",
    "intersection_array",
    "find_dissimilar",
    "Diff",
}
_NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}
_RTOL, _FLOAT_ATOL = 1e-7, 1e-6


def rule(entry_point: str, name: str, *settings: Any) -> Rule:
    """A rule by name: "equal", or "evalplus" with ("humaneval" or "mbpp", the task's atol)."""
    if name == "evalplus":
        return Rule(_evalplus(entry_point, *settings), by_bytes=entry_point != "find_zero")
    return Rule(lambda answer, expected, _: bool(answer == expected))


def _evalplus(
    entry_point: str, dataset: str, atol: float
) -> Callable[[Any, Any, Callable[[], Any]], bool]:
    """EvalPlus' rule (evalplus/eval/__init__.py, commit 26d6d00).

    A task's tolerance, once a float was expected, stays for its later cases as it does there.
    """

    def same(answer: Any, expected: Any, arguments: Callable[[], Any]) -> bool:
        nonlocal atol
        exact = answer == expected
        if dataset == "mbpp":
            exact = _mbpp(entry_point, answer, expected, exact, arguments, atol)
        elif entry_point == "find_zero":  # any root of the polynomial is right
            return abs(_polynomial(arguments()[0], answer)) <= atol
        if atol == 0 and _is_floats(expected):
            atol = _FLOAT_ATOL
        if exact:  # of an array: raises, as there
            return True
        if atol == 0 or type(answer) is not type(expected):
            return False
        if isinstance(expected, list | tuple) and len(answer) != len(expected):
            return False
        numpy = importlib.import_module("numpy")
        return bool(numpy.allclose(answer, expected, rtol=_RTOL, atol=atol))

    return same


def _mbpp(
    entry_point: str,
    answer: Any,
    expected: Any,
    exact: Any,
    arguments: Callable[[], Any],
    atol: float,
) -> Any:
    if entry_point == "are_equivalent":
        return True
    if entry_point == "sum_div":
        return exact or answer == 0
    if entry_point == "surface_Area":  # height: of the pyramid, not of its sides
        return exact or abs(answer - _surface(*arguments())) <= atol
    if entry_point == "digit_distance_nums":  # numbers of different lengths: zeros in front
        return exact or answer == _digit_distance(*arguments())
    if entry_point in _AS_SETS:
        return set(answer) == set(expected)
    if entry_point in _NOT_NONE and not isinstance(answer, bool):
        return expected == (answer is not None)
    return exact


def _surface(base: float, height: float) -> int:
    """Of a square pyramid."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def _digit_distance(first: int, second: int) -> int:
    a, b = str(first), str(second)
    length = max(len(a), len(b))
    pairs = zip(a.zfill(length), b.zfill(length), strict=True)
    return sum(abs(int(x) - int(y)) for x, y in pairs)


def _polynomial(coefficients: list[float], x: float) -> float:
    """coefficients[0] + coefficients[1] * x + ..."""
    return sum(c * math.pow(x, i) for i, c in enumerate(coefficients))


def _is_floats(value: Any) -> bool:
    """A float, a list or tuple of nothing else, or an array of doubles or singles."""
    if isinstance(value, float):
        return True
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    dtype = getattr(value, "dtype", None)
    return dtype is not None and dtype.kind == "f" and dtype.itemsize in (4, 8)
