"""What a benchmark is made of. A benchmark is one file in `benchmarks/` that fills these in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

from apr.common.errors import UsageError
from apr.common.settings import option
from apr.sandbox import DEFAULT_PRELOAD, Job, Sandbox
from apr.sandbox.interpreter import Interpreter

Mode = Literal["base", "chat", "psm", "spm", "prefix"]
Newline = Literal["strip", "keep", "add"]
TASKS = "Benchmark"  # the heading of their flags


def _day(text: str) -> datetime | None:
    """The day of YYYY-MM-DD; None for an empty text. Raises UsageError."""
    try:
        return datetime.strptime(text, "%Y-%m-%d") if text else None
    except ValueError:
        raise UsageError("is not a day", "as 2024-02-17") from None


@dataclass(frozen=True)
class Dates:
    """Which of the problems with a contest's date count, both ends included. cutoff: last day of
    the model's training data.
    """

    first: datetime | None = option(
        None,
        "Use only problems of contests on or after this day (YYYY-MM-DD).",
        flag="start-date",
        parse=_day,
        panel=TASKS,
    )
    last: datetime | None = option(
        None,
        "Use only problems of contests on or before this day.",
        flag="end-date",
        parse=_day,
        panel=TASKS,
    )
    cutoff: datetime | None = option(
        None,
        "Last day of the model's training data: the score of the newer problems is shown apart.",
        parse=_day,
        panel=TASKS,
    )

    def __post_init__(self) -> None:
        if self.first and self.last and self.first > self.last:
            raise UsageError(f"`first` {self.first:%Y-%m-%d} is after `last` {self.last:%Y-%m-%d}")

    def holds(self, date: datetime) -> bool:
        return (self.first is None or self.first <= date) and (
            self.last is None or date <= self.last
        )

    def __str__(self) -> str:
        ends = [f"{end:%Y-%m-%d}" if end else "" for end in (self.first, self.last)]
        return f"{ends[0] or 'the beginning'} to {ends[1] or 'the end'}"


ROW_FILES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")  # of a benchmark of the user's own


@dataclass(frozen=True)
class Task:
    """One problem. prompt: what the model continues; test: trusted code that judges."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str


@dataclass(frozen=True)
class PromptStyle:
    """How tasks are put to a model; part of a run's identity and of its results.

    mode: "base" continues the prompt, "chat" asks in the model's chat template; "psm" and "spm"
    fill the gap in the middle in the model's own format, prefix or suffix first, and "prefix" is
    their baseline, a left-to-right continuation that never sees the suffix. newline (base):
    the end of the prompt as in the data ("keep"), without trailing white space ("strip"), or
    without it but with one newline ("add"). prefill (chat): begin the assistant's answer.
    merge_system (chat): a system text begins the user's turn, for templates without such a role.
    """

    mode: Mode
    newline: Newline = "strip"
    prefill: bool = True
    merge_system: bool = False

    def ended(self, text: str) -> str:
        """A base prompt with the end that the model is to see."""
        if self.newline == "keep":
            return text
        return text.rstrip() + ("\n" if self.newline == "add" else "")

    def describe(self) -> str:
        """In words, for results and to tell runs apart."""
        if self.mode == "base":
            return f"base, newline {self.newline}"
        if self.mode == "prefix":
            return "left to right, without the suffix"
        if self.mode != "chat":
            return f"fill in the middle, {self.mode.upper()}"
        where = ", system text in the user's turn" if self.merge_system else ""
        return f"chat, {'with' if self.prefill else 'without'} prefill{where}"


@dataclass(frozen=True)
class Prompt:
    """Either raw text, or chat messages with the beginning of the answer; and where to stop.

    suffix: what follows the gap after the raw text.
    """

    text: str | None
    messages: list[dict[str, Any]] | None
    prefill: str
    stop: tuple[str, ...]
    suffix: str | None = None


class Benchmark(ABC):
    """What an evaluation knows of a benchmark. A new one states the first four attributes and the
    abstract methods; the rest is as most benchmarks have it.

    name: as on the command line. version: names prompt and extraction rules.
    modes: the modes its tasks can be put in, the usual one first; where that is base and there is
    chat, chat is the usual one of a model with a chat template. newline: the usual end of base
    prompts. prefill: whether there is a beginning of the answer to give. max_tokens: of a sample,
    by default. base_examples: whether base prompts show solved problems already. writes_code:
    whether a sample is a program of the model's, which strategies ask for.
    one_object: whether a samples file may be a single JSON object, which is then the one row.
    preload: modules that programs find imported. libraries: those that programs may import besides
    the standard library where `--python` names no interpreter; None: all that lie beside apr.
    references: whether the reference solutions are
    run before anything counts, because what is installed decides which tests can pass.
    parts: of the tests, whose score alone is told as well (Job.parts). groups: task id -> groups
    that get a score of their own. notes: to be told with every score.
    """

    name: str
    version: str
    data_sha256: str
    tasks: Mapping[str, Task]

    modes: tuple[Mode, ...] = ("base", "chat")
    newline: Newline = "strip"
    prefill: bool = True
    max_tokens: int = 512
    base_examples: bool = False
    writes_code: bool = True
    one_object: bool = False
    preload: tuple[str, ...] = DEFAULT_PRELOAD
    libraries: tuple[str, ...] | None = ("numpy",)  # as in EvalPlus' environment
    references: bool = False
    parts: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    notes: tuple[str, ...] = ()

    @abstractmethod
    def prompt(self, task: Task, style: PromptStyle) -> Prompt:
        """What the model is asked."""

    @abstractmethod
    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        """The official `completion` of a sample: what follows the task's prompt in a program."""

    @abstractmethod
    def job(self, task: Task, program: str, job_id: str, reference_seconds: float = 0.0) -> Job:
        """How the sandbox judges a program.

        reference_seconds: standard seconds of the canonical solution, where they were measured;
        a slow one lengthens the time limit.
        """

    def program(self, task: Task, row: Mapping[str, Any]) -> str:
        """The whole program of an official sample row (`completion` or `solution`)."""
        completion = row.get("completion")
        return self.whole(task, completion) if isinstance(completion, str) else row["solution"]

    def whole(self, task: Task, completion: str) -> str:
        """The program that a completion makes: here it follows the task's prompt."""
        return task.prompt + completion

    def exemplar_question(self, prompt: str) -> str | None:
        """How the model is asked about another problem, in chat; None: as `prompt` does with a
        task that has this prompt.
        """
        return None

    def visible_job(self, task: Task, program: str, job_id: str) -> Job | None:
        """How a program is judged by the examples that the model is shown; None: by those that
        are found in the prompt's text.
        """
        return None

    def prepare(
        self, sandbox: Sandbox, interpreter: Interpreter, tasks: Sequence[Task], progress: bool
    ) -> None:
        """Find out what is needed to judge these tasks; here nothing is."""
        return None

    def read_row(self, row: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
        """The samples (`task_id`, `completion` or `solution`) of a row of a samples file. where:
        the place of the row, for UsageError.
        """
        return [row]

    def judge_beside(self, task_id: str, beside: bool = True) -> bool:
        """Judge a task beside its program from now on, or outside again; False where there is no
        choice. Outside, only plain data comes back: a test that compares a date or a printed text
        fails there, whatever the program does.
        """
        return False

    def measure(self, samples: Iterable[tuple[str, str]]) -> dict[str, float]:
        """Scores of (task id, completion) pairs that need no execution; here there are none."""
        return {}

    def export(self, samples: Iterable[tuple[str, str, str]]) -> dict[str, str]:
        """Further files of a run, name -> text, from (task id, completion, text) of each sample."""
        return {}
