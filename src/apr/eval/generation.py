"""The one place where evaluation meets the engine."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby

from apr.engine.session import Sampling, Session, TextRequest
from apr.eval.evaluate import Answer, EvalSettings, Generator, sample_seed
from apr.eval.task import Benchmark, PromptStyle, Task


def session_generator(
    benchmark: Benchmark, style: PromptStyle, settings: EvalSettings
) -> Generator:
    """Load the model and return what answers tasks with it."""
    session = Session.load(
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        max_concurrency=settings.max_concurrency,
        offline=settings.offline,
    )
    if settings.progress:
        facts = session.describe()
        print(f"apr: {facts['dtype']} on {facts['device']}, {facts['kernels']} kernels;"
              f" {facts['cache']}", file=sys.stderr)  # fmt: skip
        if facts["kernels_note"]:
            print(f"apr: compiled kernels not used: {facts['kernels_note']}", file=sys.stderr)
    sampling = Sampling(**asdict(settings.sampling))

    def requests(wanted: Iterable[tuple[Task, list[int]]]) -> Iterator[TextRequest]:
        for task, samples in wanted:
            prompt = benchmark.prompt(task, style)
            for first, count in _runs(samples):
                yield TextRequest(
                    request_id=task.task_id,
                    prompt=prompt.text,
                    messages=prompt.messages,
                    prefill=prompt.prefill,
                    n=count,
                    sample_offset=first,
                    max_tokens=settings.max_tokens,
                    sampling=sampling,
                    stop=prompt.stop,
                    seed=sample_seed(settings.seed, task.task_id),
                )

    def generate(wanted: Iterable[tuple[Task, list[int]]]) -> Iterator[Answer]:
        for done in session.generate(requests(wanted)):
            yield Answer(
                task_id=done.request_id,
                sample=done.sample_index,
                text=done.text,
                finish_reason=done.finish_reason,
                prompt_tokens=done.prompt_tokens,
                tokens=done.tokens_generated,
                seconds=done.seconds,
            )

    return generate


def _runs(samples: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring numbers as (first, count)."""
    for _, group in groupby(enumerate(sorted(samples)), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in group]
        yield numbers[0], len(numbers)
