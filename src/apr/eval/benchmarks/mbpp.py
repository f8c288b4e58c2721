"""MBPP (Austin et al. 2021, arXiv:2108.07732): short Python functions, judged by three asserts.

Data: google-research (CC BY 4.0), all 974 problems or the 427 that were verified by hand. The
program is what the model wrote, alone. Its verdict follows bigcode-evaluation-harness (the asserts
after the program, 3 seconds), except that `test_setup_code` and `test_imports` run before them, as
the data's README asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.common.record import sha256_of
from apr.common.rows import read_rows
from apr.eval.benchmarks.asserts import stands_alone, tested_function
from apr.eval.benchmarks.humaneval import QUESTION, asked
from apr.eval.benchmarks.task import Benchmark, Newline, Prompt, PromptStyle, Task
from apr.eval.code.extraction import chat_function, cut_at
from apr.eval.code.prefixes import parse
from apr.hub.data_files import find_data
from apr.sandbox import Job

# Task ids of each part, both ends included (README of the data).
SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
EXAMPLES = (2, 3, 4)  # of the prompt split: the field's three shots
SHOT = (
    "You are an expert Python programmer, and here is your task: {text}"
    " Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
)
BASE_STOP = ("[DONE]",)
TIME_LIMIT = 3.0
REFERENCE_FACTOR = 10.0  # the solution of task 123, and no other, takes more than 3 s


@dataclass(frozen=True)
class _Problem:
    number: int
    text: str
    code: str
    setup: str
    imports: tuple[str, ...]
    asserts: tuple[str, ...]


class Mbpp(Benchmark):
    """Sample rows hold the whole program, as `completion` or
    `solution`; task ids are "Mbpp/11", as EvalPlus writes them.

    name: "mbpp" or "mbpp-sanitized". split: which part; None is all. `newline`: the field's base
    prompt ends with a line end after "[BEGIN]".
    """

    newline: Newline = "keep"
    base_examples = True

    def __init__(
        self,
        data: Path | None = None,
        name: str = "mbpp",
        split: str | None = "test",
    ) -> None:
        self.name = name
        self.version = f"{name}-2"
        path = find_data(name, data)
        problems = {problem.number: problem for problem in _read_problems(path)}
        self.data_sha256 = sha256_of(path)
        self._examples = [problems[n] for n in EXAMPLES if n in problems]
        first, last = SPLITS[split] if split else (1, 974)
        self._problems = {
            f"Mbpp/{number}": problem
            for number, problem in sorted(problems.items())
            if first <= number <= last
        }
        if not self._problems:
            raise UsageError(f"{path} has no task_id from {first} to {last}")
        self.tasks: Mapping[str, Task] = {
            task_id: _task(path, task_id, problem) for task_id, problem in self._problems.items()
        }

    def prompt(self, task: Task, style: PromptStyle) -> Prompt:
        """Base: three solved problems, then this one (Austin et al. 2021, section 3).

        Chat: EvalPlus' question about its form of the problem, a docstring with the text and the
        first assert.
        """
        if style.mode == "chat":
            return asked(QUESTION.format(prompt=task.prompt), style.prefill)
        if len(self._examples) < len(EXAMPLES):
            raise UsageError(
                f"the data of {self.name} lacks task_id 2, 3 and 4, the examples of its prompt",
                "use the whole file, or --mode chat",
            )
        shots = [f"{_shot(example)}{example.code}\n[DONE]" for example in self._examples]
        text = "\n\n".join([*shots, _shot(self._problems[task.task_id])])
        return Prompt(text=style.ended(text), messages=None, prefill="", stop=BASE_STOP)

    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        if style.mode == "base":
            return cut_at(text, BASE_STOP).lstrip("\n")
        return chat_function(text, task.entry_point, task.prompt, style.prefill)

    def whole(self, task: Task, completion: str) -> str:
        return completion

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float = 0.0) -> Job:
        # In one namespace, what the test imports is there for the program, too.
        imports = self._problems[task.task_id].imports
        tests = parse(task.test)
        assert tests is not None  # or there would be no such task
        return Job(
            job_id=job_id,
            program="\n".join([program, *imports]),
            test=task.test,
            entry_point=task.entry_point,
            time_limit=max(TIME_LIMIT, REFERENCE_FACTOR * reference_seconds),
            # Five of 974 tests hand over a type, build their inputs from the program's classes or
            # use its imports.
            judge="proxy" if stands_alone(tests, task.entry_point) else "in-process",
        )


def _shot(problem: _Problem) -> str:
    return SHOT.format(text=problem.text, tests="\n".join(problem.asserts))


def _task(path: Path, task_id: str, problem: _Problem) -> Task:
    test = "\n".join([*problem.imports, *filter(None, [problem.setup]), *problem.asserts])
    solution, tests = parse(problem.code), parse(test)
    if solution is None or tests is None:
        raise UsageError(f"{path} {task_id}: its code or tests do not parse")
    entry_point = tested_function(solution, tests)
    if entry_point is None:
        raise UsageError(f"{path} {task_id}: no assert calls a function of its solution")
    return Task(
        task_id=task_id,
        prompt=f'"""\n{problem.text}\n{problem.asserts[0]}\n"""',
        entry_point=entry_point,
        test=test,
        canonical_solution=problem.code,
    )


def _read_problems(path: Path) -> list[_Problem]:
    """The rows of mbpp.jsonl, or of sanitized-mbpp.json (one array). Raises UsageError."""
    problems = []
    for number, row in read_rows(path):
        where = f"{path} {'line' if '.jsonl' in path.suffixes else 'row'} {number}"
        try:
            problems.append(_problem(row))
        except (KeyError, TypeError) as error:
            raise UsageError(f"{where} is not an MBPP problem: {error}") from None
    if len({problem.number for problem in problems}) < len(problems):
        raise UsageError(f"{path} has a task_id twice")
    return problems


def _problem(row: Mapping[str, Any]) -> _Problem:
    """Raises KeyError or TypeError for what is not one."""
    if type(row["task_id"]) is not int:
        raise TypeError("field 'task_id' is not a number")
    lists = {"test_list": row["test_list"], "test_imports": row.get("test_imports", [])}
    for name, value in lists.items():
        if not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
            raise TypeError(f"field {name!r} is not a list of texts")
    if not lists["test_list"]:
        raise TypeError("field 'test_list' is empty")
    text = "prompt" if "prompt" in row else "text"
    texts = {name: row[name] for name in (text, "code")}
    texts["test_setup_code"] = row.get("test_setup_code", "")
    for name, value in texts.items():
        if not isinstance(value, str):
            raise TypeError(f"field {name!r} is not text")
    return _Problem(
        number=row["task_id"],
        text=_unix(texts[text]),
        code=_unix(texts["code"]),
        setup=_unix(texts["test_setup_code"]),
        imports=tuple(lists["test_imports"]),
        asserts=tuple(map(_unix, lists["test_list"])),
    )


def _unix(text: str) -> str:
    """mbpp.jsonl has the line ends of Windows."""
    return text.replace("\r\n", "\n")
