"""What candidate programs do: the answers they give to the same calls, each as a short text that is
equal for answers that a test would take as equal.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from apr.common.errors import AprError
from apr.common.progress import EvalProgress
from apr.eval.generators import Submission
from apr.eval.rerank.mutate import inputs_of_type, more_inputs
from apr.eval.rerank.visible import (
    UNKNOWN,
    Example,
    Question,
    Truth,
    parameter_annotations,
    visible_examples,
)
from apr.sandbox import Job, Outcome, Sandbox
from apr.sandbox.codec import BadData, NotPlain
from apr.sandbox.judging.calls import Returned, encode, read_answer

RULES = 1  # to be raised when calls, limits or texts of answers change their meaning
INPUTS = 40  # calls of each candidate, those shown in the prompt among them
# CPU seconds: of a call, of the program's own statements, of all calls together.
CALL_LIMIT, START_LIMIT, TOTAL_LIMIT = 1.0, 3.0, 10.0
OUTPUT = 1 << 20
UNSEEN = "-"  # of a call that a program did not come to

SampleId = tuple[str, int]  # task id, number of the sample


@dataclass(frozen=True)
class Behaviour:
    """answers: a text for each call: "=" with what it returned, "~" with the class of what it
    raised, "!" with what ended the program there; none if there are no calls. shown: how many of
    the examples that the prompt shows with their answer it gets right.
    """

    answers: tuple[str, ...] = ()
    shown: int = 0

    @property
    def returns(self) -> bool:
        """Whether a call returned something. Bodies that are missing or only print return None."""
        return any(answer.startswith("=") and answer != "=None" for answer in self.answers)


@dataclass(frozen=True)
class Calls:
    """What the programs of one task are asked. version: names the calls and RULES."""

    entry_point: str
    examples: tuple[Example, ...]
    arguments: tuple[bytes, ...]
    version: str


Known = Mapping[SampleId, tuple[str, Behaviour]]  # with the version of the calls
Keep = Callable[[SampleId, str, Behaviour], None]


def behaviours(
    questions: Mapping[str, Question],
    candidates: Iterable[Submission],
    sandbox: Sandbox,
    seed: int = 0,
    known: Known | None = None,
    keep: Keep = lambda *_: None,
    progress: bool = False,
) -> dict[SampleId, Behaviour]:
    """What the program of each sample does with its task's calls.

    Programs that are the same run once. A task whose prompt gives rise to no call has none to
    run. known: what was found before; it counts if it was of the same calls. keep: told of each
    that is found here. Raises AprError if the sandbox itself fails.
    """
    calls: dict[str, Calls] = {}
    found: dict[SampleId, Behaviour] = {}
    members: dict[tuple[str, str], list[SampleId]] = {}
    for candidate in candidates:
        name, place = candidate.task_id, candidate.place
        if name not in calls:
            calls[name] = make_calls(questions[name], seed)
        version, behaviour = (known or {}).get(place, ("", Behaviour()))
        if version == calls[name].version or not calls[name].arguments:
            found[place] = behaviour
        else:
            members.setdefault((name, candidate.program), []).append(place)
    todo = {f"{name}#{number}": (name, text) for number, (name, text) in enumerate(members)}
    programs = {key: (text, calls[name]) for key, (name, text) in todo.items()}
    shown = EvalProgress(len(todo), enabled=progress, doing="observed")
    try:
        for key, behaviour in observe(programs, sandbox):
            for place in members[todo[key]]:
                found[place] = behaviour
                keep(place, programs[key][1].version, behaviour)
            shown.verdict(False)
    finally:
        shown.close()
    return found


def make_calls(question: Question, seed: int = 0) -> Calls:
    """The calls that a prompt shows, and others made from these; the same ones for a seed."""
    shown = visible_examples(question)
    if not shown:
        made = inputs_of_type(list(parameter_annotations(question).values()))
        shown = [] if made is None else [Example(made)]
    salt = zlib.crc32(question.task_id.encode())
    more = more_inputs([e.arguments for e in shown], INPUTS - len(shown), (seed << 32) + salt)
    examples = [*shown, *(Example(arguments) for arguments in more)]
    examples = [example for example in examples if _is_plain(example.arguments)]
    arguments = tuple(encode(example.arguments) for example in examples)
    digest = hashlib.sha256(f"{RULES} {question.entry_point} {examples!r}".encode())
    return Calls(question.entry_point, tuple(examples), arguments, digest.hexdigest()[:16])


def _is_plain(arguments: tuple[Any, ...]) -> bool:
    try:
        return bool(encode(arguments))
    except NotPlain:
        return False


def observe(
    programs: Mapping[str, tuple[str, Calls]], sandbox: Sandbox
) -> Iterator[tuple[str, Behaviour]]:
    """(key, behaviour) of programs, as they come. programs: key -> (program, its calls).

    A program whose process ends early is run again with a process for each call, up to the one
    that ends it: what comes after that is UNSEEN. Raises AprError if the sandbox itself fails.
    """
    ended = []
    for outcome in _run(sandbox, (_job(key, *programs[key]) for key in programs)):
        calls = programs[outcome.job_id][1]
        if outcome.passed:
            yield outcome.job_id, _behaviour(outcome, calls)
        elif outcome.verdict == "failed":  # before any call: what calls raise is an answer
            yield outcome.job_id, _behaviour(outcome, calls, "does not run")
        else:
            ended.append(outcome.job_id)
    for outcome in _run(sandbox, (_job(key, *programs[key], apart=True) for key in ended)):
        cause = "" if outcome.passed else outcome.verdict
        yield outcome.job_id, _behaviour(outcome, programs[outcome.job_id][1], cause)


def _run(sandbox: Sandbox, jobs: Iterable[Job]) -> Iterator[Outcome]:
    for outcome in sandbox.run_many(jobs):
        if outcome.verdict == "sandbox-error":
            raise AprError(
                f"the sandbox failed on a sample of {outcome.job_id.partition('#')[0]}:"
                f" {outcome.detail}",
                "apr doctor shows what works here",
            )
        yield outcome


def _job(key: str, program: str, calls: Calls, apart: bool = False) -> Job:
    """All calls in one process, or `apart` in one each."""
    return Job(
        job_id=key,
        program=program,
        entry_point=calls.entry_point,
        judge="calls",
        cases=lambda: [(arguments, None, CALL_LIMIT) for arguments in calls.arguments],
        parts=[(str(number), 1) for number in range(len(calls.arguments))] if apart else (),
        time_limit=START_LIMIT,
        total_limit=TOTAL_LIMIT,
        output_bytes=OUTPUT,
    )


def _behaviour(outcome: Outcome, calls: Calls, cause: str = "") -> Behaviour:
    """cause: what ended the program after the answers that there are."""
    answers = [_answer(seconds, reply) for seconds, reply in outcome.answers]
    right = sum(
        answer is not None
        and answer.error is None
        and example.expected is not UNKNOWN
        and is_as_shown(answer.value, example.expected)
        for answer, example in zip(answers, calls.examples, strict=False)
    )
    texts = [_text(answer) for answer in answers]
    if cause:
        texts.append(f"!{cause}")
    unseen = [UNSEEN] * (len(calls.examples) - len(texts))
    return Behaviour((*texts, *unseen), right)


def _answer(seconds: float, reply: bytes) -> Returned | None:
    """None for nonsense."""
    try:
        return read_answer(seconds, reply)
    except (BadData, RecursionError):
        return None


def _text(answer: Returned | None) -> str:
    if answer is None:
        return "!nonsense"
    return f"~{answer.error[:80]}" if answer.error else f"={canonical(answer.value)}"


def is_as_shown(value: Any, expected: Any) -> bool:
    """Whether an answer is what an example says. expected: see Example."""
    if isinstance(expected, Truth):
        return _is_true(value) is expected.value
    return canonical(value) == canonical(expected)


def _is_true(value: Any) -> bool:
    try:
        return bool(value)
    except ValueError:  # an array has no truth value
        return False


_LONG = 80  # characters; what is longer is told by its checksum
_DIGITS = 12  # significant digits of a float, of which 9 after the point


def canonical(value: Any) -> str:
    """A text for a value: equal for values that are == (1, 1.0 and True; sets and dicts in any
    order), floats after rounding. A list is no tuple. Never raises, whatever a program returned.
    """
    return _Reader().text(value)


class _Reader:
    """One value. Containers met again are not read again: shared ones may nest exponentially."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def text(self, value: Any) -> str:
        known = self._known.get(id(value))
        if known is None:
            self._known[id(value)] = "<cycle>"
            known = _short(self._read(value))
            self._known[id(value)] = known
        return known

    def _read(self, value: Any) -> str:
        if isinstance(value, bool | int | float):
            return _number(value)
        if isinstance(value, str | bytes | bytearray):
            return repr(value)
        if isinstance(value, complex):
            parts = [_number(value.real), _number(value.imag)]
            return parts[0] if parts[1] == "0" else f"({parts[0]}+{parts[1]}j)"
        if isinstance(value, dict):
            pairs = [f"{self.text(key)}: {self.text(member)}" for key, member in value.items()]
            return "{" + ", ".join(sorted(pairs)) + ":}"
        if isinstance(value, set | frozenset | type({}.keys())):
            return "{" + ", ".join(sorted(map(self.text, value))) + "}"
        if isinstance(value, tuple):
            return "(" + ", ".join(map(self.text, value)) + ",)"
        if isinstance(value, list):
            return "[" + ", ".join(map(self.text, value)) + "]"
        return self._other(value)

    def _other(self, value: Any) -> str:
        """Of a library's type (sandbox/extensions.py)."""
        kind = type(value).__name__
        tolist = getattr(value, "tolist", None)
        if tolist is not None:
            plain = tolist()
            return f"array{self.text(plain)}" if isinstance(plain, list) else self._read(plain)
        if kind in ("Decimal", "Fraction"):
            try:
                return _number(float(value))
            except (ValueError, OverflowError):
                return f"{kind} {value!r:.{_LONG}}"
        if kind in ("deque", "dict_items"):
            return f"{kind}[" + ", ".join(map(self.text, value)) + "]"
        return repr(value)


def _number(value: float) -> str:
    if isinstance(value, int):
        return repr(int(value)) if value.bit_length() < 1000 else hex(value)
    if not math.isfinite(value):
        return repr(value)
    rounded = round(float(f"{value:.{_DIGITS}g}"), 9)
    return repr(int(rounded)) if rounded == int(rounded) else repr(rounded)


def _short(text: str) -> str:
    if len(text) <= _LONG:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:24]}…{digest[:24]}"
