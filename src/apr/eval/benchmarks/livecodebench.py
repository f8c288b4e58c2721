"""LiveCodeBench, code generation (Jain et al. 2024, arXiv:2403.07974): dated contest problems.

Prompts, extraction and judging follow LiveCodeBench/LiveCodeBench (MIT; commit 28fef95:
prompts/code_generation.py, utils/extraction_utils.py, evaluation/testing_util.py), except where
its imitation of standard input differs from a real one (docs/evaluation.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.eval.benchmarks.livecodebench_data import (
    Problem,
    data_sha256,
    read_cases,
    read_problems,
    read_public_cases,
)
from apr.eval.benchmarks.task import Benchmark, Dates, Newline, Prompt, PromptStyle, Task
from apr.eval.code.extraction import is_program, last_program
from apr.sandbox import DEFAULT_PRELOAD, Job

TIME_LIMIT = 6.0  # a test
# Officially a script is the body of a function, where names are found in about half the time.
SCRIPT_FACTOR = 2.0
# Every program finds the names of these modules (in this order) and the modules themselves.
_NAMES_FROM = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json", "builtins"),
)
PRELUDE = "\n".join(
    [
        *(f"from {name} import *" for name in (*_NAMES_FROM, "typing")),
        *(f"import {name}" for name in _NAMES_FROM if name != "builtins"),
        "sys.setrecursionlimit(50000)",
        "sys.set_int_max_str_digits(50000)",
        "",
    ]
)
Cases = Callable[[], Sequence[tuple[str, str]]]
PRELOAD = (*DEFAULT_PRELOAD, *_NAMES_FROM, "threading", "traceback")
SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification)"
    " and will generate a correct Python program that matches the specification and passes all"
    " tests."
)
WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose"
    " your code within delimiters."
)
WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly"
    " test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when"
    " the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
)
BASE_STOP = ("###",)
# The solved example of the base prompt. The official ones are statements of contest sites.
_EXAMPLE = Problem(
    question_id="example",
    content=(
        "You are given a list of integers. Find the largest difference between two of its members"
        " that stand next to each other.\n\nExample 1:\n\nInput: nums = [4,1,7]\nOutput: 6\n\n"
        "Constraints:\n\n2 <= nums.length <= 1000\n-1000 <= nums[i] <= 1000"
    ),
    starter_code="class Solution:\n    def largestStep(self, nums: List[int]) -> int:\n        ",
)
_EXAMPLE_ANSWER = (
    "class Solution:\n    def largestStep(self, nums: List[int]) -> int:\n"
    "        return max(abs(a - b) for a, b in zip(nums, nums[1:]))"
)
_STDIN_EXAMPLE = Problem(
    question_id="example",
    content=(
        "A list of integers is given. Find the largest difference between two of its members that"
        " stand next to each other.\n\n-----Input-----\n\nThe first line contains an integer $n$"
        " ($2 \\le n \\le 1000$). The second line contains $n$ integers between $-1000$ and"
        " $1000$.\n\n-----Output-----\n\nPrint the largest difference.\n\n-----Example-----\n"
        "Input\n3\n4 1 7\n\nOutput\n6"
    ),
)
_STDIN_EXAMPLE_ANSWER = (
    "n = int(input())\nnums = list(map(int, input().split()))\n"
    "print(max(abs(a - b) for a, b in zip(nums, nums[1:])))"
)


class LiveCodeBench(Benchmark):
    """A sample's completion is its program, whole.

    data: its files (test.jsonl, test2.jsonl, … of code_generation_lite make up the releases).
    dates: contest dates that count.
    """

    name = "livecodebench"
    version = "livecodebench-2"
    newline: Newline = "keep"
    prefill = False
    max_tokens = 2000
    base_examples = True
    preload = PRELOAD

    def __init__(self, data: Sequence[Path], dates: Dates | None = None) -> None:
        dates = dates or Dates()
        known = read_problems(data)
        self._problems = {name: p for name, p in known.items() if dates.holds(p.date)}
        if not self._problems:
            raise UsageError(
                f"no problem of {data[0]} is from {dates}",
                f"its contests are from {_span(known.values())}",
            )
        self._outside = known.keys() - self._problems.keys()
        self.data_sha256 = data_sha256(data)
        self.tasks: Mapping[str, Task] = {
            name: Task(name, problem.content, problem.function, test="", canonical_solution="")
            for name, problem in self._problems.items()
        }
        self.groups = _groups(self._problems, dates)
        self.notes = _notes(self._problems, len(known), dates)

    def prompt(self, task: Task, style: PromptStyle) -> Prompt:
        problem = self._problems[task.task_id]
        if style.mode == "chat":
            messages = [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": question(problem)},
            ]
            return Prompt(text=None, messages=messages, prefill="", stop=())
        return Prompt(style.ended(one_shot(problem)), messages=None, prefill="", stop=BASE_STOP)

    def exemplar_question(self, prompt: str) -> str:
        if prompt.startswith("def "):
            content = "Write the function that is begun below and does what its docstring says."
            return question(Problem("exemplar", content, starter_code=prompt.rstrip()))
        return question(Problem("exemplar", prompt))

    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        return text.strip() if style.mode == "base" else answered(text)

    def whole(self, task: Task, completion: str) -> str:
        return completion

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float = 0.0) -> Job:
        problem = self._problems[task.task_id]
        return self._job(problem, program, job_id, partial(read_cases, problem))

    def visible_job(self, task: Task, program: str, job_id: str) -> Job:
        """Public tests are the examples of a problem's statement."""
        problem = self._problems[task.task_id]
        return self._job(problem, program, job_id, partial(read_public_cases, problem))

    def _job(self, problem: Problem, program: str, job_id: str, cases: Cases) -> Job:
        return Job(
            job_id=job_id,
            program=program,
            entry_point=problem.function,
            prelude=PRELUDE,
            cases=cases,
            time_limit=TIME_LIMIT if problem.function else SCRIPT_FACTOR * TIME_LIMIT,
            judge="functional" if problem.function else "stdin",
        )

    def read_row(self, row: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
        """Rows of LiveCodeBench's own files: `question_id` and `code_list`, or `output_list` of
        chat answers, and `graded_list`. What is outside the dates is left out.
        """
        if "question_id" not in row:
            return [] if row.get("task_id") in self._outside else [row]
        question_id = row["question_id"]
        if question_id in self._outside:
            return []
        field = "code_list" if "code_list" in row else "output_list"
        texts = row.get(field)
        if not (isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts)):
            raise UsageError(
                f"{where}: question_id {question_id!r} has no list of texts in field {field!r}"
            )
        codes = texts if field == "code_list" else [answered(text) for text in texts]
        graded = row.get("graded_list")
        if not (isinstance(graded, list) and len(graded) == len(codes)):
            graded = [None] * len(codes)
        return [
            {"task_id": question_id, "solution": code, "passed": passed}
            for code, passed in zip(codes, graded, strict=True)
        ]

    def export(self, samples: Iterable[tuple[str, str, str]]) -> dict[str, str]:
        """The file that LiveCodeBench's custom_evaluator reads."""
        questions: dict[str, dict[str, Any]] = {}
        for task_id, completion, text in samples:
            empty: dict[str, Any] = {"question_id": task_id, "code_list": [], "output_list": []}
            entry = questions.setdefault(task_id, empty)
            entry["code_list"].append(completion)
            entry["output_list"].append(text)
        return {"livecodebench.json": json.dumps(list(questions.values()), indent=1) + "\n"}


def question(problem: Problem) -> str:
    """The user's message of the official generic chat prompt."""
    if problem.starter_code:
        form = f"### Format: {WITH_STARTER}\n```python\n{problem.starter_code}\n```\n\n"
    else:
        form = f"### Format: {WITHOUT_STARTER}\n```python\n# YOUR CODE HERE\n```\n\n"
    return (
        f"### Question:\n{problem.content}\n\n{form}"
        "### Answer: (use the provided format with backticks)\n\n"
    )


def one_shot(problem: Problem) -> str:
    """The base prompt: a solved example, then the problem, in the official form."""
    if problem.starter_code:
        solved = _section(_EXAMPLE, _EXAMPLE_ANSWER)
    else:
        solved = _section(_STDIN_EXAMPLE, _STDIN_EXAMPLE_ANSWER)
    return f"{solved}\n\n{_section(problem, '')}"


def _section(problem: Problem, answer: str) -> str:
    starter = f"### Starter Code\n{problem.starter_code}\n\n" if problem.starter_code else ""
    return f"### Question\n{problem.content}\n\n{starter}### Answer\n\n{answer}"


def answered(text: str) -> str:
    """The program of a chat answer: the official block or, where that is none (sample output behind
    the program, say), the last block that is one.
    """
    block = last_block(text)
    other = last_program(text) if block and not is_program(block) else ""
    return other if is_program(other) else block


def last_block(text: str) -> str:
    """The lines between the last two that hold a fence; empty if there are not two."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""


def _span(problems: Iterable[Problem]) -> str:
    dates = sorted(problem.date for problem in problems)
    return f"{dates[0]:%Y-%m-%d} to {dates[-1]:%Y-%m-%d}"


def _groups(problems: Mapping[str, Problem], dates: Dates) -> dict[str, tuple[str, ...]]:
    """Question id -> difficulty, the easiest first, and the side of the cut-off it is on."""
    order = ("easy", "medium", "hard")
    found = {
        name: (problem.difficulty, *_side(problem, dates.cutoff))
        for name, problem in problems.items()
    }
    ranked = sorted(found.items(), key=lambda item: (*order, item[1][0]).index(item[1][0]))
    return dict(ranked)


def _side(problem: Problem, cutoff: datetime | None) -> tuple[str, ...]:
    if cutoff is None:
        return ()
    return (f"{'up to' if problem.date <= cutoff else 'after'} {cutoff:%Y-%m-%d}",)


def _notes(problems: Mapping[str, Problem], known: int, dates: Dates) -> tuple[str, ...]:
    """The dates of what is scored, and how much of it a model may have been trained on."""
    notes = [f"{len(problems)} of {known} problems, contests of {_span(problems.values())}"]
    cutoff = dates.cutoff
    if cutoff is None:
        notes.append(
            "contamination: unknown; --cutoff, the last day of the model's training data, tells the"
            " score of the problems that are newer"
        )
    else:
        older = sum(problem.date <= cutoff for problem in problems.values())
        if older:
            notes.append(
                f"contamination: {older} of {len(problems)} problems are not newer than the cut-off"
                f" {cutoff:%Y-%m-%d}, so the model may have seen them"
            )
    return tuple(notes)
