"""Models that apr runs itself: the one place where evaluation meets the engine."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any

from apr.common.errors import AprError, UsageError
from apr.engine.request import PromptTooLong, TextRequest
from apr.eval.benchmarks.task import Benchmark, PromptStyle
from apr.eval.code.thoughts import thought_begun
from apr.eval.generators import PROMPT_TOO_LONG, Answer, Ask, Generator, Model
from apr.eval.run.eval_settings import EvalSettings

if TYPE_CHECKING:
    from apr.engine.session import Session
    from apr.model.opened import OpenedModel
    from apr.text import Tokenizer


def find_model(settings: EvalSettings) -> Model:
    """The model that `settings` names, here or behind a server; not loaded yet. Raises AprError."""
    if settings.endpoint is None:
        return local_model(settings)
    if settings.adapter is not None:
        raise UsageError("--adapter does not go with --endpoint", "the server has its weights")
    from apr.eval.generators.endpoint import endpoint_model

    return endpoint_model(settings)


def local_model(settings: EvalSettings) -> Model:
    """The model `settings.model` names; its weights are loaded when samples are first missing."""
    from apr.model.opened import open_model
    from apr.text import fim_format, fim_format_for

    opened = open_model(settings.model, settings.adapter, offline=settings.offline)
    tokenizer = opened.tokenizer
    named = settings.fim_tokens
    fim = fim_format(tokenizer, named) if named else fim_format_for(tokenizer)

    @cache
    def session() -> Session:
        return load_session(opened, settings)

    def load(benchmark: Benchmark, style: PromptStyle, settings: EvalSettings) -> Generator:
        return SessionGenerator(session(), benchmark, style, settings)

    return Model(
        name=opened.name,
        fingerprint=opened.fingerprint,
        chat_template=tokenizer.chat_template,
        load=load,
        fim_orders=() if fim is None else fim.orders,
        takes_system=_takes_system(tokenizer),
        thinks=_thought_begun(tokenizer, [{"role": "user", "content": "Hello"}]) != "",
    )


def _takes_system(tokenizer: Tokenizer) -> bool:
    """Whether a system message gets through its chat template; true where there is none."""
    if tokenizer.chat_template is None:
        return True
    text = "apr asks whether this is shown"
    messages = [{"role": "system", "content": text}, {"role": "user", "content": "Hello"}]
    try:
        return text in tokenizer.render_chat(messages)
    except AprError:  # many templates refuse
        return False


def _thought_begun(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> str:
    """The beginning of a thought that the chat template puts before an answer; mostly none."""
    if tokenizer.chat_template is None:
        return ""
    try:
        return thought_begun(tokenizer.render_chat(messages))
    except AprError:  # asked again, and told, when the prompts are made
        return ""


def load_session(opened: OpenedModel, settings: EvalSettings) -> Session:
    """Load the weights, and say how the model runs."""
    from apr.engine.session import Session

    session = Session.load(
        opened,
        dtype=settings.dtype,
        device=settings.device,
        context=settings.max_context,
        max_concurrency=settings.max_concurrency,
        fim_tokens=settings.fim_tokens,
    )
    if settings.progress:
        facts = session.describe()
        how = f"{facts['dtype']} on {facts['device']}, {facts['kernels']} kernels"
        print(f"apr: {how}; {facts['cache']}", file=sys.stderr)
        if facts["kernels_note"]:
            print(f"apr: compiled kernels not used: {facts['kernels_note']}", file=sys.stderr)
        for note in session.opened.notes:
            print(f"apr: {note}", file=sys.stderr)
    return session


class SessionGenerator:
    """Samples of a loaded model; see `Generator`."""

    def __init__(
        self, session: Session, benchmark: Benchmark, style: PromptStyle, settings: EvalSettings
    ) -> None:
        self._session, self._benchmark = session, benchmark
        self._style, self._settings = style, settings
        self.description = session.describe()
        self._begun: dict[str, str] = {}  # task -> the thought that its prompt begins

    def __call__(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        refused: list[Answer] = []
        for done in self._session.generate(self._fitting(asks, refused)):
            yield Answer(
                task_id=done.request_id,
                sample=done.sample_index,
                text=self._begun.get(done.request_id, "") + done.text,
                finish_reason=done.finish_reason,
                prompt_tokens=done.prompt_tokens,
                tokens=done.tokens_generated,
                seconds=done.seconds,
                mean_logprob=fmean(done.logprobs) if done.logprobs else None,
            )
        yield from refused

    def _fitting(self, asks: Iterable[Ask], refused: list[Answer]) -> Iterator[TextRequest]:
        """The requests whose prompts fit the context; the others as empty answers in `refused`."""
        for request in self._requests(asks):
            task, first = request.request_id, request.sample_offset
            try:
                self._session.check(request)
            except PromptTooLong as error:
                refused += [
                    Answer(task, sample, "", PROMPT_TOO_LONG, error.tokens, 0, 0.0)
                    for sample in range(first, first + request.n)
                ]
            except UsageError as error:
                raise UsageError(f"task {task}: {error.message}", error.hint) from None
            else:
                yield request

    def _requests(self, asks: Iterable[Ask]) -> Iterator[TextRequest]:
        settings = self._settings
        tokenizer = self._session.tokenizer
        for ask in asks:
            if ask.prompt.messages is not None and not ask.prompt.prefill:
                self._begun[ask.task_id] = _thought_begun(tokenizer, ask.prompt.messages)
            for first, count in _runs(ask.samples):
                yield TextRequest(
                    request_id=ask.task_id,
                    prompt=ask.prompt.text,
                    suffix=ask.prompt.suffix,
                    order="spm" if self._style.mode == "spm" else "psm",
                    messages=ask.prompt.messages,
                    prefill=ask.prompt.prefill,
                    n=count,
                    sample_offset=first,
                    max_tokens=settings.max_tokens or self._benchmark.max_tokens,
                    sampling=settings.sampling,
                    stop=ask.prompt.stop,
                    seed=ask.seed,
                    logprobs=settings.n_samples > 1,
                )


def _runs(samples: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring numbers as (first, count)."""
    for _, group in groupby(enumerate(sorted(samples)), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in group]
        yield numbers[0], len(numbers)
