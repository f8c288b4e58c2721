"""HumanEval+ and MBPP+ (EvalPlus, Liu et al. 2023, arXiv:2305.01210): the problems of HumanEval and
MBPP with some eighty times as many tests.

Data: evalplus/humanevalplus_release and evalplus/mbppplus_release (Apache-2.0; MBPP CC BY 4.0).
Prompts, stop strings and verdicts follow evalplus/evalplus at commit 26d6d00: an answer is compared
with that of the canonical solution, which is run here, once, and remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apr.common.errors import AprError, UsageError
from apr.common.record import sha256_of
from apr.common.rows import read_task_rows
from apr.eval.benchmarks.expected import Expected, expected_answers
from apr.eval.benchmarks.humaneval import QUESTION, asked, behind_prompt, continued
from apr.eval.benchmarks.task import Benchmark, Newline, Prompt, PromptStyle, Task
from apr.eval.code.extraction import chat_code, chat_function, cut_at
from apr.eval.code.prefixes import longest_prefix
from apr.eval.code.statements import definitions
from apr.hub.data_files import find_data
from apr.sandbox import DEFAULT_PRELOAD, Job, Sandbox
from apr.sandbox.interpreter import Interpreter
from apr.sandbox.judging.calls import Large, decode, encode

_END = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")
BASE_STOP = {
    "humaneval": (*_END, "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert "),
    "mbpp": (*_END, '\n"""', "\nassert"),
}
# A test has 4 s of processor time, or 4 times what its reference takes here. All together have the
# sum of that, but no more than 60 s or 4 times the references. Officially these are seconds by the
# clock and 60 s whatever the references take: that fails right but slow programs on busy machines.
LEAST_LIMIT, REFERENCE_FACTOR, WHOLE_LIMIT = 4.0, 4.0, 60.0
MEMORY = 4 << 30
# MBPP's functions with results that no file holds: what counts is whether there is one.
NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution")


class EvalPlus(Benchmark):
    """name: humaneval+ or mbpp+, a version of the data behind an @.

    A sample passes with the base and the plus tests (the "+" score); `base` is its score with the
    base tests alone. Rows hold `completion` (put after the prompt) or `solution`, as EvalPlus
    writes both.
    """

    newline: Newline = "add"
    max_tokens = 768
    parts = ("base",)

    def __init__(self, data: Path | None = None, name: str = "humaneval+") -> None:
        self.name = name
        self._dataset = name.partition("@")[0].removesuffix("+")
        self.version = f"{name}-2"
        path = find_data(name, data)
        self._rows = _read_rows(path, self._dataset)
        self.data_sha256 = sha256_of(path)
        self.tasks: Mapping[str, Task] = {
            task_id: Task(
                task_id=task_id,
                prompt=row["prompt"],
                entry_point=row["entry_point"],
                test="",
                canonical_solution=row["canonical_solution"],
            )
            for task_id, row in self._rows.items()
        }
        self._expected: Mapping[str, Expected] = {}
        if self._dataset == "mbpp":
            self.preload = (*DEFAULT_PRELOAD, "numpy")

    def prepare(
        self, sandbox: Sandbox, interpreter: Interpreter, tasks: Sequence[Task], progress: bool
    ) -> None:
        """Find the expected answers of these tasks. Raises AprError if a reference fails."""
        jobs = [self._reference(task) for task in tasks]
        source = f"{self._dataset}-{self.data_sha256}"
        found = expected_answers(source, sandbox, interpreter, jobs, progress)
        for task in tasks:
            if task.entry_point in NOT_NONE:
                values = found[task.task_id].values
                given = [isinstance(v, Large) or decode(v) is not None for v in values]
                found[task.task_id] = found[task.task_id]._replace(values=list(map(encode, given)))
        self._expected = found

    def prompt(self, task: Task, style: PromptStyle) -> Prompt:
        if style.mode == "chat":
            return asked(QUESTION.format(prompt=task.prompt.strip()), style.prefill)
        stop = BASE_STOP[self._dataset]
        return Prompt(text=style.ended(task.prompt), messages=None, prefill="", stop=stop)

    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        """What follows the prompt: as much of the text as parses, without examples of its use."""
        if style.mode == "base":
            body = continued(task, cut_at(text, BASE_STOP[self._dataset]), style)
            whole = longest_prefix(task.prompt + body)
            return whole[len(task.prompt) :] if whole.startswith(task.prompt) else body
        if self._dataset == "mbpp":
            gap = "" if task.prompt.endswith("\n") else "\n"
            code = chat_function(text, task.entry_point, task.prompt, style.prefill)
            return gap + definitions(code, task.entry_point)
        return behind_prompt(task, chat_code(text, task.entry_point, style.prefill))

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float = 0.0) -> Job:
        """The limits come from the times of the reference, whatever reference_seconds is."""
        expected = self._expected.get(task.task_id)
        if expected is None:
            raise AprError(f"{task.task_id} was not prepared: its expected answers are unknown")
        limits = [max(LEAST_LIMIT, REFERENCE_FACTOR * seconds) for seconds in expected.seconds]
        whole = max(WHOLE_LIMIT, REFERENCE_FACTOR * sum(expected.seconds))
        row = self._rows[task.task_id]
        return Job(
            job_id=job_id,
            program=program,
            entry_point=task.entry_point,
            judge="calls",
            cases=partial(_cases, expected, limits),
            parts=[(part, len(row[part])) for part in ("base", "plus") if row[part]],
            rule=("evalplus", self._dataset, row["atol"]),
            time_limit=max(limits),
            total_limit=min(whole, sum(limits)) + 1,
            memory_bytes=MEMORY,
        )

    def _reference(self, task: Task) -> Job:
        row = self._rows[task.task_id]
        return Job(
            job_id=task.task_id,
            program=task.prompt + task.canonical_solution,
            entry_point=task.entry_point,
            judge="calls",
            cases=partial(_asked, row),
            time_limit=WHOLE_LIMIT,
            memory_bytes=MEMORY,
            output_bytes=256 << 20,
        )


def _cases(expected: Expected, limits: Sequence[float]) -> list[tuple[bytes, bytes | Large, float]]:
    return list(zip(expected.calls, expected.values, limits, strict=True))


def _asked(row: Mapping[str, Any]) -> list[tuple[bytes, None, float]]:
    calls = (*row["base"], *row["plus"])
    return [(encode(tuple(arguments)), None, WHOLE_LIMIT) for arguments in calls]


def _read_rows(path: Path, dataset: str) -> dict[str, dict[str, Any]]:
    """Rows by task id, with the argument lists of `base` and `plus` calls. Raises UsageError."""
    rows: dict[str, dict[str, Any]] = {}
    for where, row in read_task_rows(path, FIELDS):
        if type(row.get("atol")) not in (int, float):
            raise UsageError(f"{where} has no number in field 'atol'")
        for field in ("base_input", "plus_input"):
            # Some plus inputs of v0.1.0 are missing: an empty object stands in their place.
            inputs = row.get(field) or []
            if not (isinstance(inputs, list) and all(isinstance(i, list) for i in inputs)):
                raise UsageError(f"{where} has no list of argument lists in field {field!r}")
            restored = restore_inputs(row["task_id"], inputs) if dataset == "mbpp" else inputs
            row[field.partition("_")[0]] = restored
        rows[row["task_id"]] = {name: row[name] for name in (*FIELDS, "atol", "base", "plus")}
    return rows


# MBPP+'s file is JSON, which has no tuples, sets or complex numbers. Which tasks take what follows
# EvalPlus (evalplus/data/mbpp.py, commit 26d6d00).
Arguments = list[Any]

_ALL = frozenset(
    {
        *(2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630),
        *(726, 740, 744, 809),
    }
)
_MEMBERS_OF_ALL = frozenset((63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780))
_MEMBERS_OF_FIRST = frozenset((75, 413, 444, 753))
_SECOND = frozenset((106, 750))
_FIRST = frozenset((250, 405, 446, 617, 720, 763, 808, 307))
_ALL_AND_MEMBERS = frozenset((259, 401, 445))
_EVERY_DEPTH = frozenset((580, 615, 791))


def restore_inputs(task_id: str, inputs: list[Arguments]) -> list[Arguments]:
    """The argument lists of one task. Raises TypeError or ValueError for what cannot be them."""
    restore = _rule(int(task_id.rpartition("/")[2]))
    return [restore(arguments) for arguments in inputs]


def _rule(number: int) -> Callable[[Arguments], Arguments]:
    if number in _ALL:
        return lambda a: [tuple(x) for x in a]
    if number in _MEMBERS_OF_ALL:
        return lambda a: [_members(x) for x in a]
    if number in _MEMBERS_OF_FIRST:
        return lambda a: [_members(a[0]), a[1]]
    if number in _SECOND:
        return lambda a: [a[0], tuple(a[1])]
    if number in _FIRST:
        return lambda a: [tuple(a[0]), *a[1:]]
    if number in _ALL_AND_MEMBERS:
        return lambda a: [tuple(_members(x)) for x in a]
    if number in _EVERY_DEPTH:
        return lambda a: [_tuples(x) for x in a]
    return _SINGLE.get(number, lambda a: a)


# An empty list stands for an empty dict in task 115.
_SINGLE: dict[int, Callable[[Arguments], Arguments]] = {
    115: lambda a: [[set(x) if isinstance(x, list) and x else {} for x in a[0]]],
    124: lambda a: [float(a[0]), complex(a[1])],
    252: lambda a: [complex(a[0])],
    278: lambda a: [tuple(tuple(x) if isinstance(x, list) else x for x in a[0])],
    722: lambda a: [{name: tuple(value) for name, value in a[0].items()}, *a[1:]],
}


def _members(values: list[Any]) -> list[Any]:
    return [tuple(value) for value in values]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value
