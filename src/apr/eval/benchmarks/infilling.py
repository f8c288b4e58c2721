"""HumanEval-Infilling (Bavarian et al. 2022, arXiv:2207.14255): a gap in a HumanEval solution.

Data: openai/human-eval-infilling (MIT). Program and verdict follow its `execution.py`: prompt +
completion + suffix, then the test, then check(entry_point), 3 seconds (here of processor time).
The middle is judged as the model ended it, by an end token or at --max-tokens: nothing is cut off,
also not what repeats the suffix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from apr.common.record import sha256_of
from apr.common.rows import read_task_rows
from apr.eval.benchmarks.humaneval import BASE_STOP, REFERENCE_FACTOR, TIME_LIMIT
from apr.eval.benchmarks.task import Benchmark, Mode, Prompt, PromptStyle, Task
from apr.eval.code.extraction import cut_at
from apr.hub.data_files import find_data
from apr.sandbox import Job

FIELDS = ("task_id", "prompt", "suffix", "entry_point", "test", "canonical_solution")


@dataclass(frozen=True)
class Gap(Task):
    """prompt: what is before the gap; canonical_solution: what was in it."""

    suffix: str


class Infilling(Benchmark):
    """name: infilling-single-line, -multi-line, -random-span or
    -random-span-light.
    """

    modes: tuple[Mode, ...] = ("psm", "spm", "prefix")

    def __init__(self, name: str, data: Path | None = None) -> None:
        self.name = name
        self.version = f"{name}-1"
        path = find_data(name, data)
        self._gaps = _read_gaps(path)
        self.tasks: Mapping[str, Task] = self._gaps
        self.data_sha256 = sha256_of(path)

    def prompt(self, task: Task, style: PromptStyle) -> Prompt:
        """The two sides of the gap, which the model's own format joins; or, as a baseline, the
        prefix alone.
        """
        if style.mode == "prefix":
            return Prompt(text=task.prompt, messages=None, prefill="", stop=self._stops)
        suffix = self._gaps[task.task_id].suffix
        return Prompt(text=task.prompt, messages=None, prefill="", stop=(), suffix=suffix)

    @property
    def _stops(self) -> tuple[str, ...]:
        """Of the baseline, which cannot know where the gap ends: a line, or HumanEval's."""
        return ("\n",) if self.name == "infilling-single-line" else BASE_STOP

    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        if style.mode != "prefix":
            return text
        text = cut_at(text, self._stops)
        # Except in a random span, the suffix begins on a line of its own.
        whole_lines = "-line" in self.name and not text.endswith("\n")
        return text + "\n" if whole_lines else text

    def whole(self, task: Task, completion: str) -> str:
        return task.prompt + completion + self._gaps[task.task_id].suffix

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float = 0.0) -> Job:
        # Some tests call helpers that HumanEval's prompts define. A prefix may end anywhere and
        # need not parse; the solved problem does, and is as trusted.
        solved = self.whole(task, task.canonical_solution)
        return Job(
            job_id=job_id,
            program=program,
            test=task.test,
            entry_point=task.entry_point,
            trusted_prefix=solved,
            time_limit=max(TIME_LIMIT, REFERENCE_FACTOR * reference_seconds),
        )

    def measure(self, samples: Iterable[tuple[str, str]]) -> dict[str, float]:
        """exact_match: the share of samples that are the canonical middle, white space at both
        ends aside (as bigcode-evaluation-harness compares; human-eval-infilling only executes).
        """
        found = [exact_match(self.tasks[task_id], text) for task_id, text in samples]
        return {"exact_match": sum(found) / len(found)} if found else {}


def exact_match(task: Task, completion: str) -> bool:
    """Whether a completion is the canonical middle, white space at both ends aside."""
    return completion.strip() == task.canonical_solution.strip()


def _read_gaps(path: Path) -> dict[str, Gap]:
    rows = (row for _, row in read_task_rows(path, FIELDS))
    return {row["task_id"]: Gap(**{field: row[field] for field in FIELDS}) for row in rows}
