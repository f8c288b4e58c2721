"""What candidate programs do: the answers they give to the same calls, in a form to compare."""

from __future__ import annotations

import ast
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apr.eval.rerank.mutate import inputs_of_type, more_inputs
from apr.eval.rerank.visible import (
    UNKNOWN,
    Example,
    Question,
    Truth,
    parameter_annotations,
    visible_examples,
)
from apr.eval.sandbox import Job, Sandbox
from apr.eval.sandbox.calls import Answer, encode, read_answer
from apr.eval.sandbox.codec import BadData, NotPlain
from apr.eval.sandbox.extensions import Digest, Opaque

INPUTS = 40  # calls of each candidate, those shown in the prompt among them
CALL_LIMIT, TOTAL_LIMIT = 2.0, 8.0  # CPU seconds
OUTPUT = 8 << 20
DIGITS = 9  # of a float that count


@dataclass(frozen=True)
class Candidate:
    """One sample. program: as it would be judged, without the test. mean_logprob: see Answer."""

    task_id: str
    sample: int
    program: str
    mean_logprob: float | None = None


@dataclass(frozen=True)
class Behaviour:
    """answers: one text a call; empty where the program could not be called at all. shown: how
    many of the examples that the prompt shows with their answer it gets right. returns: whether
    any call gave an answer, rather than an exception.
    """

    answers: tuple[str, ...] = ()
    shown: int = 0
    returns: bool = False


def behaviours(
    questions: Mapping[str, Question],
    candidates: Iterable[Candidate],
    sandbox: Sandbox,
    seed: int = 0,
) -> dict[tuple[str, int], Behaviour]:
    """(task id, sample) -> what the program does with its task's calls.

    Programs that are the same run once. A task whose prompt shows no call has none to run.
    """
    members: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for candidate in candidates:
        key = candidate.task_id, candidate.program
        members.setdefault(key, []).append((candidate.task_id, candidate.sample))
    calls = {name: _calls(questions[name], seed) for name, _ in members}
    jobs, same = [], {}
    for number, (task_id, program) in enumerate(members):
        if calls[task_id]:
            same[str(number)] = task_id, program
            jobs.append(_job(str(number), program, questions[task_id], calls[task_id]))
    found = {place: Behaviour() for places in members.values() for place in places}
    for outcome in sandbox.run_many(jobs):
        key = same[outcome.job_id]
        if outcome.passed:
            try:
                answers = [read_answer(*answer) for answer in outcome.answers]
            except BadData:
                continue  # it answers nonsense: like a program that cannot be called
            behaviour = _behaviour(answers, calls[key[0]])
        else:
            behaviour = Behaviour((outcome.verdict,))
        found |= dict.fromkeys(members[key], behaviour)
    return found


def _calls(question: Question, seed: int) -> list[Example]:
    shown = visible_examples(question)
    if not shown:
        made = inputs_of_type(list(parameter_annotations(question).values()))
        shown = [] if made is None else [Example(made)]
    salt = zlib.crc32(question.task_id.encode())
    more = more_inputs([e.arguments for e in shown], INPUTS - len(shown), (seed << 32) + salt)
    found = [*shown, *(Example(arguments) for arguments in more)]
    return [example for example in found if _is_plain(example.arguments)]


def _is_plain(arguments: tuple[Any, ...]) -> bool:
    try:
        return bool(encode(arguments))
    except NotPlain:
        return False


def _job(name: str, program: str, question: Question, calls: list[Example]) -> Job:
    cases = [(encode(example.arguments), None, CALL_LIMIT) for example in calls]
    return Job(
        job_id=name,
        program=program,
        entry_point=question.entry_point,
        judge="calls",
        cases=lambda: cases,
        time_limit=CALL_LIMIT,
        total_limit=TOTAL_LIMIT,
        output_bytes=OUTPUT,
    )


def _behaviour(answers: list[Answer], calls: list[Example]) -> Behaviour:
    right = [
        answer.error is None and is_as_shown(answer.value, example.expected)
        for answer, example in zip(answers, calls, strict=True)
        if example.expected is not UNKNOWN
    ]
    texts = [a.error if a.error is not None else canonical(a.value) for a in answers]
    returns = any(a.error is None for a in answers)
    return Behaviour(tuple(texts), sum(right), returns)


def is_as_shown(value: Any, expected: Any) -> bool:
    """Whether an answer is what an example says. expected: see Example."""
    if isinstance(expected, Truth):
        return bool(value) is expected.value
    return canonical(value) == canonical(expected)


def canonical(value: Any) -> str:
    """A text that is the same for values a test would take to be the same."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | float):
        if isinstance(value, int) or (
            value == value and abs(value) < 2**53 and value == int(value)
        ):
            return str(int(value))  # 2 == 2.0
        return f"{value:.{DIGITS}g}"
    if isinstance(value, list | tuple):
        inside = ",".join(map(canonical, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(map(canonical, value))) + "}"
    if isinstance(value, dict):
        items = sorted((canonical(k), canonical(v)) for k, v in value.items())
        return "{" + ",".join(f"{k}:{v}" for k, v in items) + "}"
    if isinstance(value, Opaque):
        return f"<{value.type_name}>"
    if isinstance(value, Digest):
        return value.value.hex()
    return repr(value)


def syntax(program: str) -> str:
    """A program without what does not matter to what it does: names of its own variables,
    docstrings, comments, layout. The program itself where it does not parse.
    """
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return program
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            _without_docstring(node)
            _rename_locals(node)
            node.returns = None
    return ast.dump(tree)


def _without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        node.body = node.body[1:] or [ast.Pass()]


def _rename_locals(function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Number parameters and variables in the order they are met."""
    names: dict[str, str] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            names.setdefault(node.arg, f"_{len(names)}")
            node.annotation = None
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, f"_{len(names)}")
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            node.arg = names[node.arg]
        elif isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
