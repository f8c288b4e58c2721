"""What goes wrong when a program is run on the examples its task shows, in words for a model.

Hidden tests have no part in it: examples are read from the text the model was shown, or are those
that a benchmark's data calls public (its method `visible_job`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from apr.eval.benchmarks.task import Benchmark, PromptStyle, Task
from apr.eval.rerank.behaviour import is_as_shown
from apr.eval.rerank.visible import UNKNOWN, Example, Question, Truth, visible_examples
from apr.sandbox import Job, Outcome, Sandbox
from apr.sandbox.codec import BadData, NotPlain
from apr.sandbox.judging.calls import Returned, encode, read_answer, short

LIMIT = 3.0  # CPU seconds of an example
MEMORY = 8 << 30  # bytes of address space, of which libraries reserve a lot
SHOWN = 3  # failures the model is told of


@dataclass(frozen=True)
class Check:
    """A run of one program. examples: what its calls should give, where these are ours."""

    job: Job
    examples: tuple[Example, ...] = ()


def visible_check(
    benchmark: Benchmark, task: Task, style: PromptStyle, program: str, job_id: str
) -> Check | None:
    """How a program is run on the examples its task shows; None if it shows none."""
    own = benchmark.visible_job(task, program, job_id)
    if own is not None:
        return Check(own)
    examples = shown_examples(benchmark, task, style)
    if not examples:
        return None
    cases = [(encode(example.arguments), None, LIMIT) for example in examples]
    job = Job(
        job_id=job_id,
        program=program,
        entry_point=task.entry_point,
        judge="calls",
        cases=lambda: cases,
        time_limit=LIMIT,
        memory_bytes=MEMORY,
    )
    return Check(job, tuple(examples))


def shown_examples(benchmark: Benchmark, task: Task, style: PromptStyle) -> list[Example]:
    """Examples with an answer in the question as the model gets it."""
    if not task.entry_point:
        return []
    prompt = benchmark.prompt(task, style)
    text = prompt.messages[-1]["content"] if prompt.messages else prompt.text or ""
    found = visible_examples(Question(task.task_id, text, task.entry_point))
    return [e for e in found if e.expected is not UNKNOWN and _is_plain(e)]


def without_examples(benchmark: Benchmark, tasks: Iterable[Task], style: PromptStyle) -> int:
    """How many tasks show no example, so that no answer to them can be checked."""
    return sum(visible_check(benchmark, task, style, "", "none") is None for task in tasks)


def failures(sandbox: Sandbox, checks: Iterable[Check]) -> dict[str, list[str]]:
    """Job id -> what goes wrong, a line each; empty if nothing does."""
    known = {check.job.job_id: check for check in checks}
    return {
        outcome.job_id: _in_words(outcome, known[outcome.job_id])[:SHOWN]
        for outcome in sandbox.run_many(check.job for check in known.values())
    }


def _in_words(outcome: Outcome, check: Check) -> list[str]:
    if outcome.verdict == "timeout":
        return ["It does not come to an end."]
    if not outcome.passed:
        what = outcome.detail.removeprefix("failed: ")
        return [f"It does not run: {what}" if check.examples else f"It fails: {what}"]
    try:
        answers = [read_answer(*answer) for answer in outcome.answers]
    except BadData:
        return ["It returns what cannot be read."]
    return [
        _sentence(answer, example, check.job.entry_point)
        for answer, example in zip(answers, check.examples, strict=False)
        if answer.error is not None or not is_as_shown(answer.value, example.expected)
    ]


def _sentence(answer: Returned, example: Example, name: str) -> str:
    call = f"{name}({', '.join(map(short, example.arguments))})"
    expected = example.expected
    wanted = f"something {str(expected.value).lower()}" if isinstance(expected, Truth) else None
    gave = f"raises {answer.error}" if answer.error is not None else f"gives {short(answer.value)}"
    return f"{call} {gave}, but should give {wanted or short(expected)}."


def _is_plain(example: Example) -> bool:
    try:
        return bool(encode(example.arguments))
    except NotPlain:
        return False
