"""What a benchmark is to the rest of `apr`: tasks, what a model is asked, what is judged.

A benchmark is one file in `benchmarks/` with a function `load(data) -> Benchmark`. Nothing here
imports torch or knows a model: scoring works without either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from apr.eval.sandbox import Job

Mode = Literal["base", "chat"]
Newline = Literal["strip", "keep", "add"]
MODES: tuple[Mode, ...] = ("base", "chat")
NEWLINES: tuple[Newline, ...] = ("strip", "keep", "add")


@dataclass(frozen=True)
class Task:
    """One problem.

    prompt: as in the benchmark's data. reference: the canonical solution, which follows the
    prompt. test: trusted code that judges the function `entry_point`.
    """

    task_id: str
    prompt: str
    entry_point: str
    reference: str
    test: str


@dataclass(frozen=True)
class PromptStyle:
    """The choices between a task and what a model reads; recorded with every result.

    mode: "base", the prompt as raw text to go on with; "chat", an instruction. newline: what
    stands at the end of a raw prompt (strip: no white space; keep: as in the data; add: one
    newline more). prefill: begin the assistant's answer up to the opening fence (chat only).
    """

    mode: Mode
    newline: Newline = "strip"
    prefill: bool = True


@dataclass(frozen=True)
class ModelInput:
    """A raw prompt or chat messages, the beginning of the answer, and where generation stops."""

    prompt: str | None
    messages: tuple[Mapping[str, str], ...] | None
    prefill: str
    stop: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data, for checksums and records."""
        return {
            "prompt": self.prompt,
            "messages": None if self.messages is None else [dict(m) for m in self.messages],
            "prefill": self.prefill,
            "stop": list(self.stop),
        }


@dataclass(frozen=True)
class Answer:
    """The program that is judged, and the same in the benchmark's official sample format.

    row holds either "completion" (the program is the task's prompt followed by it) or "solution"
    (the whole program).
    """

    program: str
    row: Mapping[str, str]


class Benchmark(Protocol):
    """What `benchmarks/<name>.py` gives."""

    @property
    def name(self) -> str: ...

    @property
    def data_source(self) -> str:
        """Where the tasks come from, for people."""
        ...

    @property
    def data_sha256(self) -> str: ...

    @property
    def tasks(self) -> Mapping[str, Task]:
        """By task_id, in the order of the data."""
        ...

    def model_input(self, task: Task, style: PromptStyle) -> ModelInput:
        """What a model is asked."""
        ...

    def answer(self, task: Task, style: PromptStyle, text: str) -> Answer:
        """What is judged of a generated text."""
        ...

    def answer_of_row(self, task: Task, row: Mapping[str, str]) -> Answer:
        """What is judged of a row of an official samples file."""
        ...

    def job(self, task: Task, program: str, job_id: str, reference_seconds: float) -> Job:
        """The judgement of a program. reference_seconds: CPU time of the reference solution."""
        ...
