"""What an evaluation needs of a model: to be asked, and to be told from others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from apr.common.errors import AprError, UsageError
from apr.eval.benchmarks.task import Benchmark, Prompt, PromptStyle
from apr.eval.run.settings import EvalSettings

if TYPE_CHECKING:
    from apr.engine.session import Session
    from apr.text import Tokenizer

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
    chat template shows system messages.
    """

    name: str
    fingerprint: str
    chat_template: str | None
    load: Callable[[Benchmark, PromptStyle, EvalSettings], Generator]
    fim_orders: tuple[str, ...] = ()
    remote: bool = False
    takes_system: bool = True


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
        from apr.eval.generators.generation import load_session

        return load_session(settings)

    def load(benchmark: Benchmark, style: PromptStyle, settings: EvalSettings) -> Generator:
        from apr.eval.generators.generation import SessionGenerator

        return SessionGenerator(session(), benchmark, style, settings)

    return Model(
        name=opened.name,
        fingerprint=opened.fingerprint,
        chat_template=tokenizer.chat_template,
        load=load,
        fim_orders=() if fim is None else fim.orders,
        takes_system=_takes_system(tokenizer),
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
