"""CRUXEval, output prediction (Gu et al. 2024, arXiv:2401.03065): what does this function return?

Data: facebookresearch/cruxeval (MIT), 800 short Python functions with one call each. Prompts,
extraction and verdict follow it at commit 190faf1 (prompts.py, evaluation/utils_general.py,
inference/tasks/output_prediction.py), except where what passes is no answer (docs/evaluation.md).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.common.record import sha256_of
from apr.common.rows import read_task_rows
from apr.eval.benchmarks.task import Benchmark, Newline, Prompt, PromptStyle, Task
from apr.eval.code.extraction import cut_at
from apr.eval.code.prefixes import parse
from apr.hub.data_files import find_data
from apr.sandbox import Job
from apr.sandbox.judging.calls import encode

DATA = "cruxeval-output"
TIME_LIMIT = 3.0
STOP = ("[/ANSWER]",)
MAX_TOKENS = {"cruxeval-output": 256, "cruxeval-output-cot": 1024}
ANSWER = "answer"  # the function that a program answers by
FIELDS = ("id", "code", "input", "output")
_SHOWN = "{code}\nassert f({input}) == ??\n[/PYTHON]\n"
DIRECT = (
    "You are given a Python function and an assertion containing an input to the function. Complete"
    " the assertion with a literal (no unsimplified expressions, no function calls) containing the"
    " output when executing the provided code on the given input, even if the function is incorrect"
    " or incomplete. Do NOT output any extra information. Provide the full assertion with the"
    " correct output in [ANSWER] and [/ANSWER] tags, following the examples.\n\n"
    "[PYTHON]\ndef f(n):\n    return n\nassert f(17) == ??\n[/PYTHON]\n"
    "[ANSWER]\nassert f(17) == 17\n[/ANSWER]\n\n"
    '[PYTHON]\ndef f(s):\n    return s + "a"\nassert f("x9j") == ??\n[/PYTHON]\n'
    '[ANSWER]\nassert f("x9j") == "x9ja"\n[/ANSWER]\n\n'
    "[PYTHON]\n"
)
STEP_BY_STEP = (
    "You are given a Python function and an assertion containing an input to the function. Complete"
    " the assertion with a literal (no unsimplified expressions, no function calls) containing the"
    " output when executing the provided code on the given input, even if the function is incorrect"
    " or incomplete. Do NOT output any extra information. Execute the program step by step before"
    " arriving at an answer, and provide the full assertion with the correct output in [ANSWER] and"
    " [/ANSWER] tags, following the examples.\n\n"
    '[PYTHON]\ndef f(s):\n    s = s + s\n    return "b" + s + "a"\n'
    'assert f("hi") == ??\n[/PYTHON]\n'
    "[THOUGHT]\nLet's execute the code step by step:\n\n"
    "1. The function f is defined, which takes a single argument s.\n"
    '2. The function is called with the argument "hi", so within the function, s is initially'
    ' "hi".\n'
    '3. Inside the function, s is concatenated with itself, so s becomes "hihi".\n'
    '4. The function then returns a new string that starts with "b", followed by the value of s'
    ' (which is now "hihi"), and ends with "a".\n'
    '5. The return value of the function is therefore "bhihia".\n[/THOUGHT]\n'
    '[ANSWER]\nassert f("hi") == "bhihia"\n[/ANSWER]\n\n'
    "[PYTHON]\n"
)


class CruxEval(Benchmark):
    """name: cruxeval-output, or cruxeval-output-cot, which has the
    model think first. A sample's completion is its answer, an expression.
    """

    newline: Newline = "keep"
    base_examples = True
    writes_code = False
    one_object = True

    def __init__(self, name: str, data: Path | None = None) -> None:
        self.name = name
        self.version = f"{name}-1"
        path = find_data(DATA, data)
        self._rows = _read_rows(path)
        self._steps = name.endswith("-cot")
        self.data_sha256 = sha256_of(path)
        self.tasks: Mapping[str, Task] = {
            name: Task(
                name, f"{row['code']}\nassert f({row['input']}) == ", ANSWER, "", row["output"]
            )
            for name, row in self._rows.items()
        }
        self.max_tokens = MAX_TOKENS[name]

    def prompt(self, task: Task, style: PromptStyle) -> Prompt:
        """The official text, which ends where the answer begins, or the thoughts before it."""
        shown = _SHOWN.format(**self._rows[task.task_id])
        text = (STEP_BY_STEP if self._steps else DIRECT) + shown
        begun = "[THOUGHT]\n" if self._steps else "[ANSWER]\n"
        if style.mode == "base":
            return Prompt(style.ended(text + begun), messages=None, prefill="", stop=STOP)
        content = text if style.prefill else text + begun
        prefill = begun if style.prefill else ""
        return Prompt(None, [{"role": "user", "content": content}], prefill, STOP)

    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        """The answer: what the last assertion compares the call with."""
        text = cut_at(text, STOP)
        _, tag, rest = text.partition("[ANSWER]")
        text = (rest.partition("[ANSWER]")[0] if tag else text).strip()
        asserted = _compared(text)
        if asserted is not None:
            return asserted
        return text.split("==")[1].strip() if "==" in text else text

    def whole(self, task: Task, completion: str) -> str:
        """The answer as a function of the code's module, from which the code's own is gone: to run
        it is to predict nothing.
        """
        answer = _compared(f"assert f() == {completion}")
        if answer is None:
            return 'raise SyntaxError("the answer is not one expression")\n'
        code = self._rows[task.task_id]["code"]
        return f"{code}\n\ndel f\n\n\ndef {ANSWER}():\n    return (\n{answer}\n    )\n"

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float = 0.0) -> Job:
        expected = ast.literal_eval(task.canonical_solution)
        return Job(
            job_id=job_id,
            program=program,
            entry_point=ANSWER,
            judge="calls",
            cases=lambda: [(encode(()), encode(expected), TIME_LIMIT)],
            time_limit=TIME_LIMIT,
        )

    def read_row(self, row: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
        """Rows of `id` and `answer`; or the official generations: ids with lists of answers."""
        if "task_id" in row:
            return [row]
        if "id" in row:
            return [{"task_id": row["id"], "completion": row.get("answer")}]
        found: list[Mapping[str, Any]] = []
        for task_id, answers in row.items():
            if not (isinstance(answers, list) and all(isinstance(a, str) for a in answers)):
                raise UsageError(f"{where}: {task_id!r} has no list of answers")
            found += [{"task_id": task_id, "completion": answer} for answer in answers]
        return found

    def export(self, samples: Iterable[tuple[str, str, str]]) -> dict[str, str]:
        """The file that the official evaluate_generations.py reads."""
        found: dict[str, list[str]] = {}
        for task_id, completion, _ in samples:
            found.setdefault(task_id, []).append(completion)
        return {"generations.json": json.dumps(found) + "\n"}


def _compared(text: str) -> str | None:
    """The right side of `assert f(...) == right side`, if that is all the text says. (Python takes
    what follows a comma as the assertion's message.)
    """
    tree = parse(text)
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Assert):
        return None
    test = tree.body[0].test
    if not (isinstance(test, ast.Compare) and [type(op) for op in test.ops] == [ast.Eq]):
        return None
    call = test.left
    is_call = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "f"
    return ast.get_source_segment(text, test.comparators[0]) if is_call else None


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by id. Raises UsageError."""
    rows: dict[str, dict[str, Any]] = {}
    for where, row in read_task_rows(path, FIELDS, "id"):
        try:
            encode(ast.literal_eval(row["output"]))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise UsageError(f"{where}: output {row['output'][:60]!r} is no literal") from None
        rows[row["id"]] = {name: row[name] for name in FIELDS}
    return rows
