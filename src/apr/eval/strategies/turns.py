"""Strategies that ask more than once: a generator around a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from apr.eval.benchmarks.task import Benchmark, Prompt, PromptStyle, Task
from apr.eval.code.thoughts import without_thoughts
from apr.eval.generators import PROMPT_TOO_LONG, Answer, Ask, Generator
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.scoring import open_sandbox
from apr.eval.strategies.checks import failures, visible_check, without_examples
from apr.eval.strategies.strategy import Strategy
from apr.sandbox import Sandbox

TOGETHER = 64  # tasks begun at a time: a kill loses no more than these and what follows on them


@dataclass(frozen=True)
class Turn:
    """An ask for one sample and its answer. number: of turns before it."""

    ask: Ask
    answer: Answer
    number: int = 0


# The prompts that follow on some turns, each with its turn's number in the list; the answers of
# the others are final.
Following = Callable[[Sequence[Turn]], Mapping[int, Prompt]]


@contextmanager
def with_turns(
    generator: Generator,
    settings: EvalSettings,
    benchmark: Benchmark,
    style: PromptStyle,
) -> Iterator[Generator]:
    """The generator as the strategy uses it."""
    strategy = settings.strategy
    if strategy.name == "scot-two-step":
        yield InTurns(generator, lambda turns: after_plans(strategy, benchmark, style, turns))
    elif strategy.name == "reflexion":
        # The evaluation's own sandbox is busy judging.
        with open_sandbox(benchmark, settings) as (sandbox, _):
            yield InTurns(
                generator,
                lambda turns: after_failures(strategy, benchmark, style, sandbox, turns),
                keeps=True,
            )
    else:
        yield generator


def prompts_of_task(
    strategy: Strategy, benchmark: Benchmark, task: Task, style: PromptStyle
) -> list[Prompt]:
    """All that is asked of a task, in order, with <words> where it depends on an answer."""
    first = strategy.prompt(benchmark, task, style)
    if strategy.name == "scot-two-step":
        return [first, strategy.prompt(benchmark, task, style, plan="<the plan>")]
    if strategy.name == "reflexion":
        return [first, repair(strategy, first, "<the answer>", ["<an example that fails>"])]
    return [first]


def notes_on(strategy: Strategy, benchmark: Benchmark, tasks: Sequence[Task]) -> list[str]:
    """What is to be told with a score."""
    if strategy.name != "reflexion":
        return []
    blind = without_examples(benchmark, tasks, PromptStyle("chat", prefill=False))
    return [f"reflexion: {blind} of {len(tasks)} tasks show no example to check answers by"]


@dataclass(frozen=True)
class InTurns:
    """Goes on with answers. All that can be asked at a time is asked together, what follows along
    with new tasks, so that the model is never busy with the last few only.

    A sample's tokens and seconds are those of all its turns; seeds differ between turns. keeps:
    an answer stands if what follows on it is too long to be asked.
    """

    generator: Generator
    following: Following
    keeps: bool = False

    @property
    def description(self) -> Mapping[str, Any]:
        return self.generator.description

    def __call__(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        new = iter(asks)
        before: dict[tuple[str, int], Turn] = {}
        while True:
            group = [turn.ask for turn in before.values()] + list(islice(new, TOGETHER))
            if not group:
                return
            asked = {(ask.task_id, sample): ask for ask in group for sample in ask.samples}
            turns = []
            for answer in self.generator(group):
                place = answer.task_id, answer.sample
                turn = _added(before.get(place), replace(asked[place], samples=place[1:]), answer)
                if answer.finish_reason != PROMPT_TOO_LONG:
                    turns.append(turn)
                else:
                    yield before[place].answer if self.keeps and place in before else turn.answer
            follow = self.following(turns)
            yield from (t.answer for number, t in enumerate(turns) if number not in follow)
            before = {_place(turns[n]): _next(turns[n], prompt) for n, prompt in follow.items()}


def after_plans(
    strategy: Strategy, benchmark: Benchmark, style: PromptStyle, turns: Sequence[Turn]
) -> dict[int, Prompt]:
    """A plan first, then the program from it (SCoT, Li et al. 2025, arXiv:2305.06599)."""
    return {
        number: strategy.prompt(
            benchmark,
            benchmark.tasks[turn.answer.task_id],
            style,
            plan=without_thoughts(turn.answer.text).text,
        )
        for number, turn in enumerate(turns)
        if turn.number == 0
    }


def after_failures(
    strategy: Strategy,
    benchmark: Benchmark,
    style: PromptStyle,
    sandbox: Sandbox,
    turns: Sequence[Turn],
) -> dict[int, Prompt]:
    """Answers are run on the examples their task shows, and mended where these fail, up to so
    many rounds (Shinn et al. 2023, arXiv:2303.11366, with visible examples as the tests).
    """
    checks = []
    for number, turn in enumerate(turns):
        if turn.number < strategy.rounds:
            task = benchmark.tasks[turn.answer.task_id]
            said = without_thoughts(turn.answer.text).text
            completion = benchmark.completion(task, said, style)
            program = benchmark.program(task, {"completion": completion})
            check = visible_check(benchmark, task, style, program, str(number))
            checks += [] if check is None else [check]
    found = failures(sandbox, checks)
    return {
        (n := int(name)): repair(strategy, turns[n].ask.prompt, turns[n].answer.text, lines)
        for name, lines in found.items()
        if lines
    }


def repair(strategy: Strategy, prompt: Prompt, said: str, lines: Sequence[str]) -> Prompt:
    """The prompt that an answer and what is wrong with it are added to."""
    assert prompt.messages is not None
    told = strategy.templates[0].render(failures=lines)
    answer = {"role": "assistant", "content": without_thoughts(said).text.rstrip()}
    question = {"role": "user", "content": told}
    return replace(prompt, messages=[*prompt.messages, answer, question])


def _place(turn: Turn) -> tuple[str, int]:
    return turn.answer.task_id, turn.answer.sample


def _added(before: Turn | None, ask: Ask, answer: Answer) -> Turn:
    """The turn after another, if there was one: its answer counts what both took."""
    if before is None:
        return Turn(ask, answer)
    first = before.answer
    whole = replace(
        answer,
        prompt_tokens=first.prompt_tokens + answer.prompt_tokens,
        tokens=first.tokens + answer.tokens,
        seconds=first.seconds + answer.seconds,
    )
    return Turn(ask, whole, before.number)


def _next(turn: Turn, prompt: Prompt) -> Turn:
    """What is asked after a turn, and what it has to go on with."""
    ask = replace(turn.ask, prompt=prompt, seed=turn.ask.seed + (1 << 48))
    return Turn(ask, turn.answer, turn.number + 1)
