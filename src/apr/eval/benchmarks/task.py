"""What a benchmark is made of. A benchmark is one file in `benchmarks/` that fills these in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from apr.sandbox import DEFAULT_PRELOAD, Job, Sandbox
from apr.sandbox.interpreter import Interpreter

Mode = Literal["base", "chat", "psm", "spm", "prefix"]
Newline = Literal["strip", "keep", "add"]


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


@dataclass(frozen=True)
class Window:
    """Contest dates that count, both ends included. cutoff: of the model's training data."""

    first: datetime | None = None
    last: datetime | None = None
    cutoff: datetime | None = None

    def holds(self, date: datetime) -> bool:
        return (self.first is None or self.first <= date) and (
            self.last is None or date <= self.last
        )

    def __str__(self) -> str:
        ends = [f"{end:%Y-%m-%d}" if end else "" for end in (self.first, self.last)]
        return f"{ends[0] or 'the beginning'} to {ends[1] or 'the end'}"


def _one_sample(row: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    return [row]


@dataclass(frozen=True)
class Traits:
    """Where benchmarks may differ from what most do.

    groups: task id -> groups that get a score of their own. notes: to be told with every score.
    preload: modules that programs find imported. max_tokens: of a sample, by default. prefill:
    whether there is a beginning of the answer to give. read_row: the samples (`task_id`,
    `completion` or `solution`) of a row of a samples file; told where it is, for its UsageError.
    one_object: whether a samples file may be a single JSON object, which is then the one row.
    references: whether the reference solutions are run before anything counts, because what is
    installed decides which tests can pass (references.py).
    parts: of the tests, whose score alone is told as well (Job.parts).
    base_examples: whether base prompts show solved problems already.
    writes_code: whether a sample is a program of the model's, which strategies ask for.
    export: further files of a run, name -> text, from (task id, completion, text) of each sample.
    """

    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    preload: tuple[str, ...] = DEFAULT_PRELOAD
    max_tokens: int = 512
    prefill: bool = True
    references: bool = False
    one_object: bool = False
    read_row: Callable[[Mapping[str, Any], str], list[Mapping[str, Any]]] = _one_sample
    parts: tuple[str, ...] = ()
    base_examples: bool = False
    writes_code: bool = True
    export: Callable[[Iterable[tuple[str, str, str]]], dict[str, str]] = lambda rows: {}


class Benchmark(Protocol):
    """name: as on the command line. version: names prompt and extraction rules.

    A benchmark may also have
    modes: the modes its tasks can be put in, the usual one first. Default: base and chat, chat
        being the usual one of a model with a chat template.
    newline: the usual end of its base prompts. Default: "strip".
    prepare(sandbox, interpreter, tasks, progress): what has to be found out before any of these
        tasks is judged.
    exemplar_question(prompt): how it asks the model about another problem, in chat. Default: as
        `prompt` does with a task that has this prompt.
    visible_job(task, program, job_id): how a program is judged by the examples that the model is
        shown. Default: by those found in the prompt's text.
    measure(samples): scores of (task id, completion) pairs that need no execution.
    traits: see there.
    """

    name: str
    version: str
    data_sha256: str
    tasks: Mapping[str, Task]

    def prompt(self, task: Task, style: PromptStyle) -> Prompt:
        """What the model is asked."""
        ...

    def completion(self, task: Task, text: str, style: PromptStyle) -> str:
        """The official `completion` of a sample: what follows the task's prompt in a program."""
        ...

    def program(self, task: Task, row: Mapping[str, Any]) -> str:
        """The whole program of an official sample row (`completion` or `solution`)."""
        ...

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float = 0.0) -> Job:
        """How the sandbox judges a program.

        reference_seconds: CPU time of the canonical solution here, where it was measured; a
        slow one lengthens the time limit.
        """
        ...


def measured(benchmark: Benchmark, samples: Iterable[tuple[str, str]]) -> dict[str, float]:
    """What a benchmark says of (task id, completion) pairs without running them, if anything."""
    measure = getattr(benchmark, "measure", None)
    return {} if measure is None else measure(samples)


def prepare(
    benchmark: Benchmark,
    sandbox: Sandbox,
    interpreter: Interpreter,
    tasks: Sequence[Task],
    progress: bool,
) -> None:
    """Have a benchmark find out what it needs to judge these tasks, if anything."""
    own = getattr(benchmark, "prepare", None)
    if own is not None:
        own(sandbox, interpreter, tasks, progress)


def traits_of(benchmark: Benchmark) -> Traits:
    """Its traits, those of most if it states none."""
    return getattr(benchmark, "traits", Traits())
