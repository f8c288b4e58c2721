"""What a benchmark is made of. A benchmark is one file in `benchmarks/` that fills these in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from apr.eval.sandbox import Job

Mode = Literal["base", "chat"]
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

    mode: "base" continues the prompt, "chat" asks in the model's chat template. newline (base):
    the end of the prompt as in the data ("keep"), without trailing white space ("strip"), or
    without it but with one newline ("add"). prefill (chat): begin the assistant's answer.
    """

    mode: Mode
    newline: Newline = "strip"
    prefill: bool = True

    def describe(self) -> str:
        """In words, for results and to tell runs apart."""
        if self.mode == "base":
            return f"base, newline {self.newline}"
        return f"chat, {'with' if self.prefill else 'without'} prefill"


@dataclass(frozen=True)
class Prompt:
    """Either raw text, or chat messages with the beginning of the answer; and where to stop."""

    text: str | None
    messages: list[dict[str, Any]] | None
    prefill: str
    stop: tuple[str, ...]


class Benchmark(Protocol):
    """name: as on the command line. version: names prompt and extraction rules."""

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
