"""Judging by calls: Python values in, Python values out.

A case is a call of the entry point. Its answer is compared with the expected one by a rule, or
handed out for whoever asked what the program does. Arguments and answers travel as codec bytes,
many in one message: a test of a thousand calls costs few turns between the processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple

from . import codec, equality, extensions
from .cases import ProgramRaised, WrongAnswer
from .remote import Candidate, SetupFailed, start

LAP_EVERY = 0.05  # seconds; a case's time is told from its neighbours' no finer than this
_SHOWN = 60
_LARGE = 1 << 16  # bytes
_NANS = (b"\xf8\x7f", b"\xf8\xff")  # upper bytes of a NaN; now and then of something else


class Answer(NamedTuple):
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


def read_answer(seconds: float, reply: bytes) -> Answer:
    """One of the answers of an outcome (Outcome.answers). Raises codec.BadData."""
    decoder = codec.Decoder(reply, extend=_build)
    kind = decoder.byte()
    value = decoder.value()
    if kind == ord("v"):
        return Answer(seconds, value)
    if kind == ord("e") and isinstance(value, tuple) and len(value) == 4:
        return Answer(seconds, error=str(value[1]))
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
    same = equality.rule(entry_point, *job["rule"])
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
    same: equality.Rule,
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
