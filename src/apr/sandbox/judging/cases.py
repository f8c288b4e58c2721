"""Judging by cases: input and expected output are data, not code (LiveCodeBench's two styles).

stdin: a case is a run of the program as a script; its output is compared as text.
functional: a case is a call of a function or of a method of `Solution` with JSON arguments.

The rules are those of LiveCodeBench (lcb_runner/evaluation/testing_util.py, commit 28fef95).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from decimal import Decimal, DecimalException
from typing import Any

from .. import channel, codec
from ..processes import signal_name
from .remote import Candidate, CandidateGone, SetupFailed, TooMuchOutput, receive_hello, start

MAX_REPORT = 1 << 30
_SHOWN = 60  # characters of a value in a message


class WrongAnswer(Exception):
    """The program ran and gave something else."""


class ProgramRaised(Exception):
    """An exception of the program's that it did not catch."""


class ProgramDied(Exception):
    """The program's process ended by a signal, or with a status of its own."""


class OutOfTime(Exception):
    """The kernel ended the program for the processor time it took."""


def judge_script(fd: int, job: dict[str, Any]) -> None:
    """Have the candidate's process run the program on the one case of `job`; raises what is wrong.

    The case holds texts: what standard input holds, and what the output must be.
    """
    ((given, expected),) = job["cases"]
    order = {
        "script": True,
        "program": job["program"],
        "prelude": job["prelude"],
        "input": given,
    }
    receive_hello(fd, order)
    try:
        report = channel.receive(fd, MAX_REPORT)
        status, output, errors = report["status"], report["output"], report["errors"]
        ended = os.waitstatus_to_exitcode(status)
        complaint = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
    except (channel.Closed, channel.TooLarge) as error:
        raise CandidateGone(str(error) or "its process ended") from None
    except (codec.BadData, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CandidateGone(f"it answers nonsense: {error}") from None
    if len(output) > job["output"]:
        raise TooMuchOutput("it prints more than allowed")
    _check_end(ended, complaint[:500])
    difference = output_difference(output.decode("utf-8", "replace"), expected)
    if difference:
        raise WrongAnswer(difference)


def _check_end(ended: int, complaint: str) -> None:
    """Raise unless the process ended regularly. ended: exit status, or minus a signal."""
    if ended in (-signal.SIGXCPU, -signal.SIGKILL):
        # Nobody else ends it while we wait: past its processor time, or out of memory.
        raise OutOfTime if ended == -signal.SIGXCPU else MemoryError("its process was killed")
    if ended < 0:
        raise ProgramDied(f"its process was ended by {signal_name(-ended)}")
    if ended == 1 and complaint:
        if complaint.partition(":")[0] == "MemoryError":
            raise MemoryError(complaint)
        raise ProgramRaised(complaint)
    if ended:
        raise ProgramDied(f"its process exited with status {ended}")


def output_difference(output: str, expected: str) -> str:
    """How an output differs from the expected one; empty if it does not.

    White space around the whole and around each line does not count. A line that differs as text
    is right if both are the same numbers, exactly (Decimal), however written.
    """
    lines, wanted = _lines(output), _lines(expected)
    if len(lines) != len(wanted):
        return f"{len(lines)} lines of output, expected are {len(wanted)}"
    for number, (line, want) in enumerate(zip(lines, wanted, strict=True), 1):
        if line != want and not _same_numbers(line, want):
            return f"line {number} is {_short(line)}, expected is {_short(want)}"
    return ""


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_numbers(line: str, want: str) -> bool:
    try:
        return [Decimal(part) for part in line.split()] == [Decimal(p) for p in want.split()]
    except DecimalException:  # not numbers, or a signalling NaN
        return False


def judge_calls(
    fd: int, candidate: Candidate, job: dict[str, Any], lap: Callable[[], None]
) -> None:
    """Call the candidate for each case of `job` until one fails; raises what is wrong.

    The function is `entry_point` of one Solution() if the program has such a class, else of the
    module. lap: called before each call, whose time counts from there.
    """
    import json  # not before the fork of those that candidates come from

    in_class = "class Solution" in job["program"]
    name = job["entry_point"]
    target = "Solution" if in_class else name
    calls = []
    try:
        for given, expected in job["cases"]:
            arguments = [json.loads(line) for line in given.split("\n")]
            calls.append((arguments, json.loads(expected)))
    except ValueError as error:
        raise SetupFailed(f"test {len(calls) + 1} is not JSON: {error}") from None
    try:
        if target not in start(fd, candidate, {**job, "entry_point": target}, [target]):
            raise NameError(f"name {target!r} is not defined")
        function = candidate.function(target)
        if in_class:
            function = getattr(function(), name)
        for arguments, expected in calls:
            lap()
            _compare(function(*arguments), expected)
    except (WrongAnswer, SetupFailed, MemoryError):
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise ProgramRaised(f"{type(error).__name__}: {error}"[:500]) from None


def _compare(answer: Any, expected: Any) -> None:
    if isinstance(answer, tuple):
        answer = list(answer)
    if not answer == expected:  # may raise (an array has no truth): the official result as well
        raise WrongAnswer(f"{_short(answer)}, expected is {_short(expected)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"
