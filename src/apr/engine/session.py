"""Text in, text out: a tokenizer, a runner and the engine joined. What run, chat and eval use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from apr import __version__
from apr.common.errors import AprError, UsageError
from apr.common.memory import available_memory
from apr.engine.engine import Engine
from apr.engine.request import (
    Completion,
    FinishedEvent,
    Message,
    Request,
    Sampling,
    TextCompletion,
    TextRequest,
)
from apr.engine.runners.runtime import Runtime, load_runtime
from apr.model.opened import OpenedModel
from apr.model.rope import short_context
from apr.text import (
    FimFormat,
    StopMatcher,
    StreamDecoder,
    fim_format,
)

__all__ = ["Sampling", "Session", "TextCompletion", "TextRequest"]

# The rest is for activations, logits and whatever else the machine is doing.
CACHE_FRACTION = 0.5


@dataclass(frozen=True)
class Budget:
    """num_blocks cache blocks of block_size positions; bytes they take and that were free."""

    num_blocks: int
    block_size: int
    bytes: int
    free: int

    def __str__(self) -> str:
        return (
            f"cache: {self.num_blocks} blocks of {self.block_size} positions,"
            f" {self.bytes / 2**30:.2f} GiB at most, of {self.free / 2**30:.1f} GiB free"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return available_memory()


def plan_cache(
    device: torch.device, block_bytes: int, block_size: int, context: int, max_concurrency: int
) -> Budget:
    """As many blocks as max_concurrency full contexts need, within half of the free memory.

    Raises AprError when not even one block per sample fits.
    """
    free = free_memory(device)
    wanted = max_concurrency * -(-context // block_size)
    possible = int(free * CACHE_FRACTION) // block_bytes
    if possible < max_concurrency:
        raise AprError(
            f"{free / 2**30:.2f} GiB are free on {device}, and a cache for {max_concurrency}"
            f" samples needs at least {max_concurrency * block_bytes / CACHE_FRACTION / 2**30:.2f}",
            "free memory or lower the concurrency",
        )
    blocks = min(wanted, possible)
    return Budget(blocks, block_size, blocks * block_bytes, free)


def _failure_hint(opened: OpenedModel, dtype: torch.dtype) -> str:
    """What to do about a model whose logits are not finite."""
    hint = f"apr check {opened.ref} finds damaged weights"
    if dtype == torch.float16:
        return f"float16 ends at 65504: try `dtype` bfloat16 or float32; {hint}"
    return hint


def _too_long_hint(runtime: Runtime) -> str:
    """What to do about a prompt that does not fit; "" for nothing."""
    most = runtime.config.max_position
    if runtime.context == most:
        return ""
    if runtime.context == short_context(runtime.config):
        return f"`max_context` up to {most} takes its long rotary factors, for short texts too"
    return f"a `max_context` of up to {most} is possible"


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
        opened: OpenedModel,
        runtime: Runtime,
        *,
        max_concurrency: int = 32,
        fim_tokens: Sequence[str] = (),
    ) -> None:
        self.opened, self.runtime, self.fim_tokens = opened, runtime, tuple(fim_tokens)
        self.tokenizer = opened.tokenizer
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
            failure_hint=_failure_hint(opened, runtime.dtype),
            too_long_hint=_too_long_hint(runtime),
        )

    @classmethod
    def load(
        cls,
        opened: OpenedModel,
        dtype: str = "auto",
        device: str = "auto",
        context: int | None = None,
        max_concurrency: int = 32,
        infill: bool = False,
        fim_tokens: Sequence[str] = (),
    ) -> Session:
        """Read the weights of a model that `open_model` has found, and plan the cache.

        context: as in `load_runtime`.
        infill: refuse a model that cannot fill in the middle before its weights are read.
        fim_tokens: for prefix, suffix and middle, where not those of its family.
        """
        if infill or fim_tokens:
            fim_format(opened.tokenizer, fim_tokens)
        runtime = load_runtime(opened.checkpoint, dtype, device, context)
        return cls(opened, runtime, max_concurrency=max_concurrency, fim_tokens=fim_tokens)

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
        """The prompt of a request in token ids. Raises UsageError for one beyond the embedding."""
        ids = self._encode(request)
        rows = self.runtime.config.vocab_size
        if (highest := max(ids, default=0)) >= rows:
            raise UsageError(
                f"the prompt holds {self.tokenizer.id_to_token(highest)!r}, token {highest}, and"
                f" the embedding of {self.opened.name} has {rows} rows",
                "the tokenizer belongs to another model, or the embedding was not enlarged for it",
            )
        return ids

    def _encode(self, request: TextRequest) -> tuple[int, ...]:
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
        texts, shown = _Texts(self, request), 0
        with closing(self.engine.inbox()) as inbox:
            inbox.add(texts.engine_request(request.request_id))
            while True:
                ended = [e for e in inbox.take() if isinstance(e, FinishedEvent)]
                if ended:
                    done = texts.finish(ended[0].completion)
                    yield done.text[shown:]
                    yield done
                    return
                new = texts.so_far(request.sample_offset)[shown:]
                shown += len(new)
                yield new


@dataclass
class Conversation:
    """Turns so far. settings: everything of a request but its messages."""

    session: Session
    settings: TextRequest
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    forgotten: int = 0  # turns dropped by the last question to stay within the context

    def ask(self, question: str) -> Iterator[str]:
        """The answer piece by piece; kept as a turn also when the caller stops listening.

        Raises UsageError, with the conversation as it was, when the question alone is too long.
        """
        kept = list(self.turns)
        self.turns.append({"role": "user", "content": question})
        try:
            request = self._fitting_request()
            self.session.check(request)
        except UsageError:
            self.turns = kept
            raise
        answer = ""
        try:
            for piece in self.session.stream(request):
                if not isinstance(piece, TextCompletion):
                    answer += piece
                    yield piece
        finally:
            self.turns.append({"role": "assistant", "content": answer})

    def reset(self) -> None:
        self.turns.clear()

    def _fitting_request(self) -> TextRequest:
        """The request, without the oldest turns if prompt and answer would not fit otherwise."""
        self.forgotten = 0
        context = self.session.engine.context
        while True:
            system = [{"role": "system", "content": self.system}] if self.system else []
            request = replace(self.settings, messages=[*system, *self.turns])
            length = len(self.session.encode(request))
            if length + min(self.settings.max_tokens, context // 2) <= context:
                return request
            if len(self.turns) < 3:
                return request  # if even this is too long, the check names both lengths
            del self.turns[:2]
            self.forgotten += 2
