"""What is asked of the engine and what comes back: in token ids, and in text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from apr.common.errors import UsageError
from apr.common.settings import check, option

if TYPE_CHECKING:
    from apr.text import FimOrder

Message = dict[str, Any]  # role and content of one turn of a chat

# Called with (sample_index, token_id) for every token; True ends that sample.
TokenCallback = Callable[[int, int], bool]
LEAST_TEMPERATURE = 1e-30
MODEL, SAMPLING = "Model", "Sampling"  # headings of flags
TEMPERATURE_HELP = "How freely tokens are drawn; 0 takes the likeliest."
TOP_P_HELP = "Draw only from the likeliest tokens that together have this probability; 1 is off."
FinishReason = Literal["stop", "length", "stop_string"]


class PromptTooLong(UsageError):
    """The prompt has more tokens than the model's context has room for."""

    def __init__(self, tokens: int, context: int, hint: str = "") -> None:
        super().__init__(
            f"the prompt has {tokens} tokens and the model's context {context}",
            hint or "shorten the prompt",
        )
        self.tokens = tokens


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model is run, and how: what every verb that runs one is told."""

    model: str = option(
        ..., "Short name, hf://org/name, pypi://package, folder or .gguf.", argument=True
    )
    adapter: str | None = option(
        None, "A LoRA adapter to put on the model: PEFT's folder, or hf://org/name.", panel=MODEL
    )
    dtype: str = option(
        "auto", "Number type of the computation: bfloat16, float16 or float32.", panel=MODEL
    )
    device: str = option(
        "auto", "cpu, cuda or mps; auto takes a GPU where there is one.", panel=MODEL
    )
    max_context: int | None = option(
        None,
        "Most tokens of a prompt and its answer. Above its original context a LongRoPE model"
        " (Phi-3, Phi-4) turns to its long factors, for short texts too.",
        least=1,
        panel=MODEL,
    )
    offline: bool = option(False, "Download nothing: use only what is on this disk.", panel=MODEL)


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the logits, in Hugging Face's order and meaning.

    temperature 0 is greedy: the highest logit, the lowest id among equals; so is one below
    LEAST_TEMPERATURE, at which logits over temperature would leave fp32. top_k 0, top_p 1,
    min_p 0 and repetition_penalty 1 switch the filters off.
    """

    temperature: float = option(0.0, TEMPERATURE_HELP, panel=SAMPLING, least=0)
    top_k: int = option(
        0, "Draw only from so many of the likeliest tokens; 0 is off.", panel=SAMPLING, least=0
    )
    top_p: float = option(
        1.0,
        TOP_P_HELP,
        above=0,
        most=1,
        panel=SAMPLING,
    )
    min_p: float = option(
        0.0,
        "Draw only tokens at least this share as likely as the likeliest; 0 is off.",
        least=0,
        most=1,
        panel=SAMPLING,
    )
    repetition_penalty: float = option(
        1.0, "Make tokens that were there already less likely; 1 is off.", panel=SAMPLING, above=0
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def greedy(self) -> bool:
        return self.temperature < LEAST_TEMPERATURE


@dataclass(frozen=True)
class Request:
    """n samples of at most max_tokens tokens after prompt_ids, numbered from first_sample.

    stop_ids end a sample and are not part of it. seed fixes the random numbers of this request:
    sample i, step t draws the same number whatever else the engine is doing. on_token may end a
    sample early (stop strings live there, outside the engine).
    """

    prompt_ids: tuple[int, ...]
    n: int = 1
    first_sample: int = 0
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0
    logprobs: bool = False
    request_id: str = ""
    on_token: TokenCallback | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise UsageError(f"request {self.request_id!r} has an empty prompt", "give one token")
        for name, value in (("n", self.n), ("max_tokens", self.max_tokens)):
            if value < 1:
                raise UsageError(f"{name} is {value}", "it must be 1 or more")


@dataclass(frozen=True)
class Completion:
    """One finished sample.

    logprobs: natural log-probability of each token under the model's own distribution, before
    temperature and filters (None unless asked for). seconds: from the sample's first step to its
    last. cached_tokens: prompt tokens whose keys and values were already there.
    """

    request_id: str
    sample_index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    logprobs: tuple[float, ...] | None = None


class TokenEvent(NamedTuple):
    """A sample has one more token. ticket: of its request (`Engine.add`); logprob as above."""

    ticket: int
    sample_index: int
    token: int
    logprob: float | None


class FinishedEvent(NamedTuple):
    """A sample has ended; nothing more of it follows."""

    ticket: int
    completion: Completion


Event = TokenEvent | FinishedEvent


@dataclass(frozen=True)
class TextRequest:
    """n samples after a raw prompt, or after chat messages (exactly one of the two).

    suffix: what follows the gap that the sample fills, in the model's own format and `order`
    (prompt only). prefill: the beginning of the assistant's answer (messages only). stop:
    strings that end a sample and are cut off. sample_offset: index of the first sample, so that
    a run can be continued with the random numbers the missing samples would have had.
    """

    request_id: str = ""
    prompt: str | None = None
    suffix: str | None = None
    order: FimOrder = "psm"
    messages: list[Message] | None = None
    prefill: str = ""
    n: int = 1
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = False
    sample_offset: int = 0

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise UsageError(f"request {self.request_id!r} needs either a prompt or messages")
        if self.prefill and self.messages is None:
            raise UsageError(f"request {self.request_id!r} has a prefill without messages")
        if self.suffix is not None and self.prompt is None:
            raise UsageError(f"request {self.request_id!r} has a suffix without a prompt")
        for name, value in (("n", self.n), ("max_tokens", self.max_tokens)):
            if value < 1:  # the engine's rule, told before a model is loaded
                raise UsageError(f"{name} is {value}", "it must be 1 or more")


@dataclass(frozen=True)
class TextCompletion:
    """One finished sample as text; see `Completion` for the rest."""

    request_id: str
    sample_index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    logprobs: tuple[float, ...] | None

    @property
    def tokens_generated(self) -> int:
        return len(self.token_ids)

    @property
    def tok_per_sec(self) -> float:
        return self.tokens_generated / self.seconds if self.seconds > 0 else 0.0
