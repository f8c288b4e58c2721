"""What an evaluation needs of whatever makes samples: a model here, a server, or a file."""

from __future__ import annotations

import collections.abc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from apr.eval.benchmarks.task import Benchmark, Prompt, PromptStyle, Task
from apr.sandbox import Job

if TYPE_CHECKING:
    from apr.eval.run.eval_settings import EvalSettings

PROMPT_TOO_LONG = "prompt_too_long"  # finish_reason of a task that the model could not be asked


@dataclass(frozen=True)
class Ask:
    """One prompt and the numbers of the samples wanted of it. seed: of the task's samples."""

    task_id: str
    prompt: Prompt
    samples: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Answer:
    """One generated sample, whatever made it. mean_logprob: natural, of its tokens under the
    model's own distribution; None where unknown.
    """

    task_id: str
    sample: int
    text: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    seconds: float
    mean_logprob: float | None = None


@dataclass(frozen=True)
class Submission:
    """A sample as it is judged. sample: its number among those of its task. completion: its
    official form; None where only the whole program is known. answer: what the model said, without
    its thoughts; None where only the program is known. finish_reason, mean_logprob: see Answer.
    """

    task_id: str
    sample: int
    program: str
    completion: str | None = None
    mean_logprob: float | None = None
    answer: str | None = None
    finish_reason: str = ""

    @property
    def place(self) -> tuple[str, int]:
        return self.task_id, self.sample

    def job(self, benchmark: Benchmark, reference_seconds: float = 0.0) -> Job:
        """For the sandbox; see `Benchmark.job`."""
        task, job_id = benchmark.tasks[self.task_id], f"{self.task_id}#{self.sample}"
        return benchmark.job(task, self.program, job_id, reference_seconds)


class Generator(Protocol):
    """Makes samples: asks in, answers out in any order."""

    @property
    def description(self) -> Mapping[str, Any]:
        """How the model runs (dtype, device, kernels), for the records."""
        ...

    def __call__(self, asks: Iterable[Ask]) -> Iterator[Answer]: ...


@dataclass(frozen=True)
class Model:
    """What identifies a model in a run, and how to get its generator (which loads it).

    fim_orders: the fill-in-the-middle prompts it was trained on ("psm", "spm"). remote: a server
    has it, with a chat template, dtype and device that only the server knows. takes_system: its
    chat template shows system messages. thinks: its chat template begins a thought.
    """

    name: str
    fingerprint: str
    chat_template: str | None
    load: Callable[[Benchmark, PromptStyle, EvalSettings], Generator]
    fim_orders: tuple[str, ...] = ()
    remote: bool = False
    takes_system: bool = True
    thinks: bool = False


Submissions = collections.abc.Generator[Submission, None, None]


class Source(ABC):
    """Samples to be scored, and what a result says of where they are from.

    name: the model, or the file. identity: what decides the samples. tasks: those the samples are
    of, in the order they are counted. total: how many samples there are in all; ready: how many of
    them before any is made, None where none is made.
    """

    name: str
    identity: Mapping[str, Any]
    tasks: Sequence[Task]
    total: int
    ready: int | None
    chat_hint: str = ""  # what to do about chat answers that were taken for programs

    @abstractmethod
    def samples(self, made: Callable[[int], None]) -> Submissions:
        """All of them, as they come. made: told of each new one, with its number of tokens."""

    @abstractmethod
    def generation(self, counted: Sequence[Submission]) -> Mapping[str, Any]:
        """How these samples came to be; asked for once all have come."""

    def description(self) -> Mapping[str, Any]:
        """How the model ran, as far as that is known; nothing where none did."""
        return {}

    def notes(self) -> Sequence[str]:
        """To be told with the score."""
        return ()

    def recorded(self) -> Mapping[tuple[str, int], Mapping[str, bool]]:
        """Verdicts of another scorer, as `recorded_of` gives them; nothing where there are none."""
        return {}
