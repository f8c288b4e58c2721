"""BigCodeBench (Zhuo et al. 2024, arXiv:2406.15877): functions that use libraries, judged by
unittest classes. 1140 tasks, 148 of them "hard".

Data: bigcode/bigcodebench and bigcode/bigcodebench-hard on the Hugging Face Hub (Apache-2.0).
Prompts, programs and verdicts follow bigcode-project/bigcodebench at commit 47eff25, "calibrated":
what is tested is the task's imports and def line with an empty body, then the solution.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from apr.common.errors import UsageError
from apr.common.record import sha256_of
from apr.common.rows import read_task_rows
from apr.eval.benchmarks.humaneval import QUESTION, asked, continued
from apr.eval.benchmarks.task import Benchmark, Newline, Prompt, PromptStyle, Task
from apr.eval.code.extraction import chat_code, cut_at, is_body
from apr.eval.code.prefixes import longest_prefix, parse
from apr.eval.code.statements import definitions
from apr.hub.data_files import find_data
from apr.sandbox import Job

Split = Literal["complete", "instruct"]
INSTRUCT_QUESTION = (
    "Please provide a self-contained Python script that solves the following problem"
    " in a markdown code block:\n{prompt}\n"
)
BASE_STOP = (
    *("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint("),
    *("\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert "),
)
# Officially 240 s by the clock, or what the reference took if that is more. References take
# seconds (processor time), so this is as generous to programs that work and waits less for others.
TIME_LIMIT = 30.0
REFERENCE_FACTOR = 20.0
MEMORY = 8 << 30  # bytes of address space, which libraries with thread pools reserve a lot of
OUTPUT = 256 << 20
PROCESSES = 256
HARD_TASKS = 148
# Imported once and not per program, where installed. The rest of what tasks use is imported by few.
PRELOAD = (
    *("hashlib", "random", "unittest", "unittest.mock"),
    *("numpy", "numpy.testing", "pandas", "pandas.testing", "matplotlib.pyplot", "seaborn"),
    *("scipy.stats", "sklearn"),
)
FIELDS = (
    *("task_id", "complete_prompt", "instruct_prompt", "code_prompt", "canonical_solution"),
    *("test", "entry_point"),
)


class BigCodeBench(Benchmark):
    """name: bigcodebench or bigcodebench-hard. A sample's
    completion follows the complete prompt, whichever prompt the model saw, so the official tools
    score it the same.

    split: which prompt: "complete" continues imports, def line and docstring; "instruct" asks in
    words (chat only).
    """

    newline: Newline = "keep"
    preload = PRELOAD
    libraries = None
    max_tokens = 1280
    references = True

    def __init__(
        self,
        data: Path | None = None,
        name: str = "bigcodebench",
        split: str | None = None,
    ) -> None:
        if split not in (None, *get_args(Split)):
            raise UsageError(f"--split {split} is unknown", f"one of {', '.join(get_args(Split))}")
        self.name = name
        self.split = split or "complete"
        self.version = f"{name}-{self.split}-2"
        path = find_data(name, data)
        self._rows = _read_rows(path, hard_only=name == "bigcodebench-hard")
        self.data_sha256 = sha256_of(path)
        self.tasks: Mapping[str, Task] = {
            row["task_id"]: Task(
                task_id=row["task_id"],
                prompt=row["complete_prompt"],
                entry_point=row["entry_point"],
                test=row["test"],
                canonical_solution=_gap(row["complete_prompt"]) + row["canonical_solution"],
            )
            for row in self._rows.values()
        }

    def prompt(self, task: Task, style: PromptStyle) -> Prompt:
        if style.mode == "base":
            if self.split == "instruct":
                raise UsageError(
                    "--split instruct asks in words, which a base model does not continue",
                    "--mode chat, or --split complete",
                )
            return Prompt(style.ended(task.prompt), messages=None, prefill="", stop=BASE_STOP)
        if self.split == "instruct":
            words = self._rows[task.task_id]["instruct_prompt"]
            return asked(INSTRUCT_QUESTION.format(prompt=words.strip()), style.prefill)
        return asked(QUESTION.format(prompt=task.prompt.strip()), style.prefill)

    def exemplar_question(self, prompt: str) -> str:
        if self.split == "instruct":
            prompt = (
                "Write the function that is described below.\n"
                f"You should write self-contained code starting with:\n```\n{prompt.strip()}\n```"
            )
            return INSTRUCT_QUESTION.format(prompt=prompt)
        return QUESTION.format(prompt=prompt.strip())

    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        """The body of the function; or, behind an empty one, imports and definitions."""
        gap = _gap(task.prompt)
        if style.mode == "base":
            body = continued(task, cut_at(text, BASE_STOP), style)
            whole = longest_prefix(task.prompt + body)
            if len(_statements(whole)) <= len(_statements(f"{task.prompt}{gap}    pass\n")):
                return whole[len(task.prompt) :] if whole.startswith(task.prompt) else body
            code = definitions(whole, task.entry_point)
        else:
            code = chat_code(text, task.entry_point, fenced=style.prefill)
            if is_body(code, task.entry_point):
                return gap + code
        return f"{gap}    pass\n\n{code}"

    def program(self, task: Task, row: Mapping[str, Any]) -> str:
        code = self._rows[task.task_id]["code_prompt"]
        return f"{code}\n    pass\n{super().program(task, row)}"

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float = 0.0) -> Job:
        return Job(
            job_id=job_id,
            program=program,
            test=task.test,
            entry_point=task.entry_point,
            judge="unittest",
            time_limit=max(TIME_LIMIT, REFERENCE_FACTOR * reference_seconds),
            memory_bytes=MEMORY,
            output_bytes=OUTPUT,
            processes=PROCESSES,
        )


def _gap(prompt: str) -> str:
    """What has to be between a prompt and the next line of code."""
    return "" if prompt.endswith("\n") else "\n"


def _statements(code: str) -> list[Any]:
    tree = parse(code)
    return [] if tree is None else tree.body


def _read_rows(path: Path, hard_only: bool) -> dict[str, dict[str, Any]]:
    """Rows by task id. hard_only: where a field `subset_hard` says so; a file without it is taken
    for the hard subset itself, if it is not larger. Raises UsageError.
    """
    rows = {row["task_id"]: row for _, row in read_task_rows(path, FIELDS)}
    if hard_only and any("subset_hard" in row for row in rows.values()):
        rows = {name: row for name, row in rows.items() if row.get("subset_hard")}
    elif hard_only and len(rows) > HARD_TASKS:
        raise UsageError(
            f"{path} has {len(rows)} tasks and no field 'subset_hard': which are the hard ones?",
            "apr data pull bigcodebench-hard fetches these",
        )
    return rows
