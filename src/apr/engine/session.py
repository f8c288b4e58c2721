"""Text in, text out: a tokenizer, a runner and the engine joined. What run, chat and eval use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr import __version__
from apr.common.errors import UsageError
from apr.engine.budget import Budget, plan_cache
from apr.engine.engine import Engine
from apr.engine.request import Completion, FinishReason, Request, Sampling
from apr.engine.runners.runtime import Runtime, load_runtime
from apr.model.opened import OpenedModel, open_model
from apr.text import (
    FimFormat,
    FimOrder,
    StopMatcher,
    StreamDecoder,
    Tokenizer,
    fim_format,
)

Message = dict[str, Any]

__all__ = ["Sampling", "Session", "TextCompletion", "TextRequest"]


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


class _Text:
    """The text of one sample as its tokens come: decoded, cut at the first stop string."""

    def __init__(self, decoder: StreamDecoder, stop: tuple[str, ...]) -> None:
        self._decoder = decoder
        self._stops = StopMatcher(stop) if stop else None
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> bool:
        """Add a token; True when a stop string has been met."""
        self._add(self._decoder.push(token))
        return self.stopped

    def flush(self) -> None:
        self._add(self._decoder.flush())
        if self._stops is not None and not self.stopped:
            self.text += self._stops.flush()

    def _add(self, piece: str) -> None:
        if self._stops is None:
            self.text += piece
        elif not self.stopped:
            self.text += self._stops.push(piece)
            self.stopped = self._stops.matched is not None


class _Texts:
    """The samples of one text request on their way through the engine."""

    def __init__(self, session: Session, request: TextRequest) -> None:
        self.request, self._tokenizer = request, session.tokenizer
        self._prompt_ids = session.encode(request)
        self._stop_ids = session.stop_ids(request)
        self._texts: dict[int, _Text] = {}
        self.left = request.n

    def engine_request(self, request_id: str) -> Request:
        request = self.request
        return Request(
            prompt_ids=self._prompt_ids,
            n=request.n,
            first_sample=request.sample_offset,
            max_tokens=request.max_tokens,
            sampling=request.sampling,
            stop_ids=self._stop_ids,
            seed=request.seed,
            logprobs=request.logprobs,
            request_id=request_id,
            on_token=lambda index, token: self._text(index).push(token),
        )

    def so_far(self, index: int) -> str:
        return self._text(index).text

    def finish(self, completion: Completion) -> TextCompletion:
        text = self._text(completion.sample_index)
        text.flush()
        del self._texts[completion.sample_index]
        self.left -= 1
        return TextCompletion(
            request_id=self.request.request_id,
            sample_index=completion.sample_index,
            text=text.text,
            token_ids=completion.token_ids,
            finish_reason="stop_string" if text.stopped else completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            cached_tokens=completion.cached_tokens,
            seconds=completion.seconds,
            logprobs=completion.logprobs,
        )

    def _text(self, index: int) -> _Text:
        text = self._texts.get(index)
        if text is None:
            # A raw completion goes on in the prompt's text; a chat answer starts its own.
            context = self._prompt_ids if self.request.prompt is not None else ()
            decoder = self._tokenizer.stream(context=context)
            text = self._texts[index] = _Text(decoder, self.request.stop)
        return text


class Session:
    """A loaded model that answers text requests."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        runtime: Runtime,
        *,
        opened: OpenedModel,
        max_concurrency: int = 32,
        fim_tokens: Sequence[str] = (),
    ) -> None:
        self.tokenizer, self.runtime, self.fim_tokens = tokenizer, runtime, tuple(fim_tokens)
        self.opened = opened
        self.budget: Budget = plan_cache(
            runtime.device,
            runtime.block_bytes,
            runtime.block_size,
            runtime.context,
            max_concurrency,
        )
        runner = runtime.make(self.budget.num_blocks)
        self.engine = Engine(
            runner,
            context=runtime.context,
            max_concurrency=max_concurrency,
            max_step_tokens=512 if runtime.device.type == "cpu" else 4096,
        )

    @classmethod
    def load(
        cls,
        ref: str,
        dtype: str = "auto",
        device: str = "auto",
        max_concurrency: int = 32,
        offline: bool = False,
        infill: bool = False,
        fim_tokens: Sequence[str] = (),
        adapter: str | Path | None = None,
    ) -> Session:
        """Resolve a model reference, read its tokenizer and weights, and plan the cache.

        infill: refuse a model that cannot fill in the middle before its weights are read.
        fim_tokens: for prefix, suffix and middle, where not those of its family. adapter: see
        `open_model`.
        """
        opened = open_model(ref, adapter, offline=offline)
        tokenizer = opened.tokenizer
        if infill or fim_tokens:
            fim_format(tokenizer, fim_tokens)
        runtime = load_runtime(opened.checkpoint, dtype, device)
        return cls(
            tokenizer,
            runtime,
            opened=opened,
            max_concurrency=max_concurrency,
            fim_tokens=fim_tokens,
        )

    def describe(self) -> dict[str, Any]:
        """What a manifest should say about how this model runs."""
        return {
            **self.opened.describe(),
            "family": self.runtime.config.family,
            "dtype": str(self.runtime.dtype).removeprefix("torch."),
            "device": str(self.runtime.device),
            "kernels": self.runtime.kernels,
            "kernels_note": self.runtime.note,
            "cache": str(self.budget),
            "apr": __version__,
        }

    def encode(self, request: TextRequest) -> tuple[int, ...]:
        """The prompt of a request in token ids."""
        if request.prompt is not None and request.suffix is not None:
            return tuple(
                self._fim().encode(self.tokenizer, request.prompt, request.suffix, request.order)
            )
        if request.prompt is not None:
            return tuple(self.tokenizer.encode(request.prompt))
        assert request.messages is not None
        if not request.prefill:
            return tuple(self.tokenizer.encode_chat(request.messages))
        messages = [*request.messages, {"role": "assistant", "content": request.prefill}]
        return tuple(
            self.tokenizer.encode_chat(
                messages, add_generation_prompt=False, continue_final_message=True
            )
        )

    def stop_ids(self, request: TextRequest) -> frozenset[int]:
        """The tokens that end a sample of a request."""
        if request.suffix is None:
            return self.tokenizer.eos_ids
        return self._fim().stop_ids(self.tokenizer)

    def _fim(self) -> FimFormat:
        return fim_format(self.tokenizer, self.fim_tokens)

    def check(self, request: TextRequest) -> None:
        """Raises UsageError if the request can never run here: an empty or too long prompt."""
        prompt_ids = _Texts(self, request).engine_request(request.request_id).prompt_ids
        self.engine.scheduler.check(len(prompt_ids), request.max_tokens)

    def generate(self, requests: Iterable[TextRequest]) -> Iterator[TextCompletion]:
        """Completions as they finish; requests are taken as there is room for them."""
        under_way: dict[str, _Texts] = {}

        def to_engine() -> Iterator[Request]:
            for number, request in enumerate(requests):
                texts = under_way[str(number)] = _Texts(self, request)
                yield texts.engine_request(str(number))

        for completion in self.engine.generate(to_engine()):
            texts = under_way[completion.request_id]
            yield texts.finish(completion)
            if texts.left == 0:
                del under_way[completion.request_id]

    def stream(self, request: TextRequest) -> Iterator[str | TextCompletion]:
        """The text of a single sample piece by piece; last, the completion itself."""
        texts, engine = _Texts(self, request), self.engine
        engine.scheduler.add(texts.engine_request(request.request_id))
        shown = 0
        try:
            while engine.scheduler.busy:
                finished = engine.step()
                if finished:
                    done = texts.finish(finished[0])
                    yield done.text[shown:]
                    yield done
                else:
                    new = texts.so_far(request.sample_offset)[shown:]
                    shown += len(new)
                    yield new
        finally:
            engine.cancel()
