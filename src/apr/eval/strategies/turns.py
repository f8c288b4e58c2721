"""Strategies that ask more than once: generators around a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from apr.eval.model import Answer, Ask, Generator
from apr.eval.rerank.behaviour import is_as_shown
from apr.eval.rerank.visible import UNKNOWN, Example, Question, Truth, visible_examples
from apr.eval.sandbox import Job, Outcome, Sandbox
from apr.eval.sandbox.calls import Answer as CallAnswer
from apr.eval.sandbox.calls import encode, read_answer, short
from apr.eval.settings import EvalSettings
from apr.eval.strategies.strategy import Strategy
from apr.eval.task import Benchmark, PromptStyle

TOGETHER = 64  # prompts that go through all steps before others begin: a kill loses no more
LIMIT = 3.0  # CPU seconds of an example
SHOWN = 3  # failures the model is told of


@contextmanager
def with_turns(
    generator: Generator, settings: EvalSettings, benchmark: Benchmark, style: PromptStyle
) -> Iterator[Generator]:
    """The generator as the strategy uses it."""
    strategy = settings.strategy
    if strategy.name == "scot-two-step":
        prompts = {name: benchmark.prompt(task, style) for name, task in benchmark.tasks.items()}
        questions = {n: p.messages[-1]["content"] for n, p in prompts.items() if p.messages}
        yield TwoSteps(generator, strategy, questions)
    elif strategy.name == "reflexion":
        with Sandbox(1, settings.level, settings.allow_weak) as sandbox:
            yield Reflexion(generator, strategy, benchmark, style, sandbox)
    else:
        yield generator


@dataclass(frozen=True)
class TwoSteps:
    """A plan first, then the program from it (SCoT, Li et al. 2025, arXiv:2305.06599)."""

    generator: Generator
    strategy: Strategy
    questions: Mapping[str, str]  # task id -> the benchmark's own question

    @property
    def description(self) -> Mapping[str, Any]:
        return self.generator.description

    def __call__(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        for group in _groups(asks):
            plans = list(self.generator(group))
            yield from _again(self.generator, group, plans, self._next)

    def _next(self, ask: Ask, plan: Answer) -> Ask:
        assert ask.prompt.messages is not None
        question = self.questions[ask.task_id].rstrip()
        content = self.strategy.render(1, question=question, plan=plan.text.strip())
        messages = [*ask.prompt.messages[:-1], {"role": "user", "content": content}]
        return replace(ask, prompt=replace(ask.prompt, messages=messages), samples=(plan.sample,))


@dataclass(frozen=True)
class Reflexion:
    """Answers are run on the examples their prompt shows, and mended where these fail, up to so
    many rounds (Shinn et al. 2023, arXiv:2303.11366, with visible examples as the tests).
    """

    generator: Generator
    strategy: Strategy
    benchmark: Benchmark
    style: PromptStyle
    sandbox: Sandbox  # its own: the evaluation's is busy judging

    @property
    def description(self) -> Mapping[str, Any]:
        return self.generator.description

    def __call__(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        for group in _groups(asks):
            answers = list(self.generator(group))
            asked = {(ask.task_id, number): ask for ask in group for number in ask.samples}
            for _ in range(self.strategy.rounds):
                failures = self._failures(answers)
                yield from (a for a in answers if not failures[_place(a)])
                answers = [a for a in answers if failures[_place(a)]]
                if not answers:
                    break
                again = {
                    _place(a): self._repair(asked[_place(a)], a, failures[_place(a)])
                    for a in answers
                }
                mended = list(_again(self.generator, list(again.values()), answers, _as_it_is))
                asked |= again
                answers = mended
            yield from answers

    def _repair(self, ask: Ask, answer: Answer, failures: list[str]) -> Ask:
        assert ask.prompt.messages is not None
        said = ask.prompt.prefill + answer.text
        messages = [
            *ask.prompt.messages,
            {"role": "assistant", "content": said.rstrip()},
            {"role": "user", "content": self.strategy.render(0, failures=failures)},
        ]
        # The answer begins anew, without a beginning given.
        prompt = replace(ask.prompt, messages=messages, prefill="", stop=())
        return replace(ask, prompt=prompt, samples=(answer.sample,))

    def _failures(self, answers: list[Answer]) -> dict[tuple[str, int], list[str]]:
        """(task id, sample) -> what goes wrong with the examples, in words; empty if nothing."""
        found: dict[tuple[str, int], list[str]] = {_place(answer): [] for answer in answers}
        jobs, places = [], {}
        for number, answer in enumerate(answers):
            task = self.benchmark.tasks[answer.task_id]
            shown = visible_examples(Question(task.task_id, task.prompt, task.entry_point))
            examples = [e for e in shown if e.expected is not UNKNOWN]
            if examples and answer.text:
                completion = self.benchmark.completion(task, answer.text, self.style)
                program = self.benchmark.program(task, {"completion": completion})
                places[str(number)] = _place(answer), examples, task.entry_point
                jobs.append(_job(str(number), program, task.entry_point, examples))
        for outcome in self.sandbox.run_many(jobs):
            place, examples, name = places[outcome.job_id]
            found[place] = _in_words(outcome, examples, name)[:SHOWN]
        return found


def _groups(asks: Iterable[Ask]) -> Iterator[list[Ask]]:
    source = iter(asks)
    while group := list(islice(source, TOGETHER)):
        yield group


def _place(answer: Answer) -> tuple[str, int]:
    return answer.task_id, answer.sample


def _as_it_is(ask: Ask, answer: Answer) -> Ask:
    return ask


def _again(
    generator: Generator,
    asks: list[Ask],
    answers: list[Answer],
    following: Callable[[Ask, Answer], Ask],
) -> Iterator[Answer]:
    """The answers to what follows each answer; their tokens and seconds on top of its own."""
    asked = {(ask.task_id, number): ask for ask in asks for number in ask.samples}
    before = {_place(answer): answer for answer in answers}
    refused = [a for a in answers if not a.tokens and a.finish_reason not in ("stop", "length")]
    yield from refused  # what could not be asked the first time
    left = [a for a in answers if a not in refused]
    for answer in generator(following(asked[_place(a)], a) for a in left):
        first = before[_place(answer)]
        yield replace(
            answer,
            prompt_tokens=first.prompt_tokens + answer.prompt_tokens,
            tokens=first.tokens + answer.tokens,
            seconds=first.seconds + answer.seconds,
        )


def _job(name: str, program: str, entry_point: str, examples: list[Example]) -> Job:
    cases = [(encode(example.arguments), None, LIMIT) for example in examples]
    return Job(
        job_id=name,
        program=program,
        entry_point=entry_point,
        judge="calls",
        cases=lambda: cases,
        time_limit=LIMIT,
    )


def _in_words(outcome: Outcome, examples: list[Example], name: str) -> list[str]:
    """What goes wrong, a line each."""
    if outcome.verdict == "timeout":
        return ["It does not come to an end."]
    if not outcome.passed:
        return [f"It does not run: {outcome.detail.removeprefix('failed: ')}"]
    answers = [read_answer(*answer) for answer in outcome.answers]
    return [
        _sentence(answer, example, name)
        for answer, example in zip(answers, examples, strict=True)
        if answer.error is not None or not is_as_shown(answer.value, example.expected)
    ]


def _sentence(answer: CallAnswer, example: Example, name: str) -> str:
    call = f"{name}({', '.join(map(short, example.arguments))})"
    expected = example.expected
    wanted = f"something {str(expected.value).lower()}" if isinstance(expected, Truth) else None
    gave = f"raises {answer.error}" if answer.error is not None else f"gives {short(answer.value)}"
    return f"{call} {gave}, but should give {wanted or short(expected)}."
