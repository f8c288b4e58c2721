"""Models behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, OpenAI and others."""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from queue import SimpleQueue
from statistics import fmean
from threading import Event, Thread
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from apr.common.errors import AprError, UsageError
from apr.engine.request import Sampling
from apr.eval.benchmarks.task import Benchmark, PromptStyle
from apr.eval.code.extraction import cut_at
from apr.eval.code.thoughts import with_reasoning
from apr.eval.generators import PROMPT_TOO_LONG, Answer, Ask, Generator, Model
from apr.eval.generators.endpoint_client import Client, Refused, normal_url
from apr.eval.run.eval_settings import EvalSettings

_CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
_OFF = Sampling()
_FILTERS = ("top_p", "top_k", "min_p", "repetition_penalty")
_TOO_LONG = re.compile(r"context (length|size|window)|maximum prompt length", re.IGNORECASE)
_CONTEXT = re.compile(r"context length is (?:only )?(\d+)")


@dataclass(frozen=True)
class Dialect:
    """What a kind of server understands beyond the common part of the protocol.

    off: what switches off each filter of `Sampling`, in the server's own words; it is always sent,
    since these servers otherwise filter by their own or the model's defaults. None: not known, so
    only what is on is sent. stops: how many stop strings it takes. prefill: the fields that make
    it go on with a last message of the assistant; None: it cannot. limit: what chat calls
    max_tokens.
    """

    name: str
    off: Mapping[str, tuple[str, float]] | None = None
    stops: int | None = None
    prefill: Mapping[str, Any] | None = field(default_factory=dict)
    limit: str = "max_tokens"


def _filters(top_k: int, penalty: str) -> dict[str, tuple[str, float]]:
    return {
        "top_p": ("top_p", 1.0),
        "top_k": ("top_k", top_k),
        "min_p": ("min_p", 0.0),
        "repetition_penalty": (penalty, 1.0),
    }


# By the `owned_by` of their /v1/models.
DIALECTS = {
    "vllm": Dialect("vLLM", _filters(-1, "repetition_penalty"), prefill=_CONTINUE),
    "sglang": Dialect("SGLang", _filters(-1, "repetition_penalty"), prefill=_CONTINUE),
    "llamacpp": Dialect("llama.cpp", _filters(0, "repeat_penalty")),
    "me": Dialect("llama-cpp-python", _filters(0, "repeat_penalty"), prefill=None),
}
OPENAI = Dialect("OpenAI", stops=4, prefill=None, limit="max_completion_tokens")
OTHER = Dialect("OpenAI-compatible", stops=4, prefill=_CONTINUE)


def endpoint_model(settings: EvalSettings) -> Model:
    """The model `settings.model` of the server at `settings.endpoint`, which is asked for nothing
    before samples are missing. Raises UsageError.
    """
    assert settings.endpoint is not None
    for flag, value in (("dtype", settings.dtype), ("device", settings.device)):
        if value != "auto":
            raise UsageError(f"--{flag} with --endpoint", "the server decides how the model runs")
    if settings.offline:
        raise UsageError("--offline with --endpoint", "leave one of them out")
    if settings.request_timeout <= 0:
        raise UsageError(f"--request-timeout is {settings.request_timeout:g}", "above 0")
    url = normal_url(settings.endpoint)

    def load(benchmark: Benchmark, style: PromptStyle, settings: EvalSettings) -> Generator:
        return EndpointGenerator(url, benchmark, style, settings)

    parts = urlsplit(url)
    return Model(
        name=settings.model,
        fingerprint=f"{parts.netloc}{parts.path} {settings.model}",
        chat_template=None,
        load=load,
        remote=True,
    )


@dataclass(frozen=True)
class _Request:
    """Some samples of one ask; max_tokens: what there is room for, None for what was asked."""

    ask: Ask
    samples: tuple[int, ...]
    max_tokens: int | None = None


class EndpointGenerator:
    """Samples from a server; see `apr.eval.generators.Generator`.

    At most `max_concurrency` samples are under way at a time. A task's samples are asked for in
    one request; where the server gives fewer, the others follow one by one. Raises AprError for
    what a server answers, UsageError for a model it does not have.
    """

    def __init__(
        self, url: str, benchmark: Benchmark, style: PromptStyle, settings: EvalSettings
    ) -> None:
        self._client = Client(url, settings.request_timeout)
        self._settings, self._style = settings, style
        self._path = "/chat/completions" if style.mode == "chat" else "/completions"
        self._max_tokens = settings.max_tokens or benchmark.max_tokens
        found = self._find_model()
        self._dialect = _dialect(url, found)
        if style.mode == "chat" and style.prefill and self._dialect.prefill is None:
            raise UsageError(
                f"--prefill: {self._dialect.name} does not go on with a begun answer",
                "leave it out",
            )
        self._one_by_one = False
        self._facts: dict[str, Any] = {
            "endpoint": url,
            "server": self._dialect.name,
            **{name: found[name] for name in ("root", "max_model_len") if found.get(name)},
        }
        if self._dialect.off is None:
            sampling = settings.sampling
            left = [name for name in _FILTERS if getattr(sampling, name) == getattr(_OFF, name)]
            self._facts["left_to_the_server"] = ", ".join(left)

    @property
    def description(self) -> Mapping[str, Any]:
        """What is known of the server, more of it after the first answer."""
        return self._facts

    def __call__(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        waiting: deque[_Request] = deque()
        source = iter(asks)
        done: SimpleQueue[tuple[_Request, Any]] = SimpleQueue()
        stop = Event()
        flying, failure = 0, None
        try:
            while True:
                while failure is None:
                    ask = None if waiting else next(source, None)
                    if ask is not None:
                        waiting.append(_Request(ask, ask.samples))
                    if not waiting:
                        break
                    size = 1 if self._one_by_one else self._settings.max_concurrency
                    request, rest = _parted(waiting[0], size)
                    if flying and flying + len(request.samples) > self._settings.max_concurrency:
                        break
                    waiting.popleft()
                    waiting.extendleft(rest)
                    flying += len(request.samples)
                    # Daemons, so that Ctrl-C does not wait for answers that may take minutes.
                    Thread(target=self._run, args=(request, done, stop), daemon=True).start()
                if not flying:
                    break
                request, found = done.get()
                flying -= len(request.samples)
                if isinstance(found, BaseException):
                    failure = failure or found
                    stop.set()  # what is on its way comes to its end; nothing is tried again
                    continue
                answers, rest = found
                waiting.extend(rest)
                yield from answers
        finally:
            stop.set()
        if failure is not None:
            raise failure

    def _run(self, request: _Request, done: SimpleQueue, stop: Event) -> None:
        try:
            done.put((request, self._answers(request, stop)))
        except BaseException as error:  # raised where the answers are waited for
            if isinstance(error, AprError):
                error.message = f"task {request.ask.task_id}: {error.message}"
            done.put((request, error))

    def _answers(self, request: _Request, stop: Event) -> tuple[list[Answer], list[_Request]]:
        """What the server gives, and what is still to be asked for."""
        ask, start = request.ask, perf_counter()
        try:
            found = self._client.post(self._path, self._body(request), stop)
        except Refused as refused:
            return self._after(request, refused, stop)
        choices = found.get("choices")
        if not (isinstance(choices, list) and choices):
            url = f"{self._client.url}{self._path}"
            raise AprError(f"{url} answered without choices", "check --endpoint")
        given = [self._read(choice, ask) for choice in choices[: len(request.samples)]]
        for name in ("model", "system_fingerprint"):
            if found.get(name):
                self._facts[f"reported_{name}"] = found[name]
        usage = found.get("usage")
        prompt_tokens, tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        seconds = perf_counter() - start
        answers = [
            Answer(
                task_id=ask.task_id,
                sample=sample,
                text=text,
                finish_reason=reason,
                prompt_tokens=prompt_tokens,
                # The server counts all samples together.
                tokens=tokens // len(given) + (number < tokens % len(given)),
                seconds=seconds,
                mean_logprob=logprob,
            )
            for number, (sample, (text, reason, logprob)) in enumerate(
                zip(request.samples, given, strict=False)
            )
        ]
        rest = request.samples[len(given) :]
        if rest:
            self._ask_one_by_one()
        return answers, [replace(request, samples=rest)] if rest else []

    def _after(
        self, request: _Request, refused: Refused, stop: Event
    ) -> tuple[list[Answer], list[_Request]]:
        """What there is to do about a no, if anything."""
        if _TOO_LONG.search(refused.message):
            room = self._room(request, refused.message, stop)
            if 0 < room < (request.max_tokens or self._max_tokens):
                return [], [replace(request, max_tokens=room)]
            return [
                Answer(request.ask.task_id, sample, "", PROMPT_TOO_LONG, 0, 0, 0.0)
                for sample in request.samples
            ], []
        if len(request.samples) > 1 and refused.status in (400, 422):
            self._ask_one_by_one()  # if it was not about n, the next one fails the same way
            return [], [request]
        raise refused

    def _room(self, request: _Request, message: str, stop: Event) -> int:
        """How many tokens there is room for; 0 where that is none or cannot be known.

        The numbers of tokens in messages may be bounds (vLLM stops counting at its limit), so the
        server is made to count the prompt.
        """
        context = _CONTEXT.search(message)
        if context is None or request.max_tokens is not None:
            return 0
        one = replace(request, samples=request.samples[:1], max_tokens=1)
        try:
            usage = self._client.post(self._path, self._body(one), stop).get("usage")
        except Refused:
            return 0
        return int(context[1]) - _count(usage, "prompt_tokens")

    def _ask_one_by_one(self) -> None:
        self._one_by_one = True
        self._facts["samples_a_request"] = 1

    def _body(self, request: _Request) -> dict[str, Any]:
        """The JSON object of a request."""
        settings, dialect, prompt = self._settings, self._dialect, request.ask.prompt
        limit = request.max_tokens or self._max_tokens
        body: dict[str, Any] = {
            "model": settings.model,
            "temperature": 0.0 if settings.sampling.greedy else settings.sampling.temperature,
            **_filter_fields(settings.sampling, dialect),
        }
        if self._style.mode == "chat":
            body |= {"messages": list(prompt.messages or ()), dialect.limit: limit}
            if prompt.prefill:
                body["messages"].append({"role": "assistant", "content": prompt.prefill})
                body |= dialect.prefill or {}
        else:
            body |= {"prompt": prompt.text, "max_tokens": limit}
        if prompt.stop:
            # Special tokens last: where there is room for few, servers end at these by themselves.
            body["stop"] = sorted(prompt.stop, key=lambda text: text.startswith("<"))
            body["stop"] = body["stop"][: dialect.stops]
            if len(body["stop"]) < len(prompt.stop):
                sent = f"{len(body['stop'])} of {len(prompt.stop)}, cut at the others here"
                self._facts["stop_strings_sent"] = sent
        if not settings.sampling.greedy:
            text = f"{request.ask.seed} {request.samples[0]}"
            body["seed"] = zlib.crc32(text.encode()) >> 1  # servers take 31 bits
        if len(request.samples) > 1:
            body["n"] = len(request.samples)
        if "logprob" in settings.rerank:
            body["logprobs"] = True if self._style.mode == "chat" else 1
        return body

    def _read(self, choice: Any, ask: Ask) -> tuple[str, str, float | None]:
        """Text, why it ended, and the mean log-probability of its tokens where it is given."""
        chat = self._style.mode == "chat"
        holder = choice.get("message") if chat and isinstance(choice, dict) else choice
        if not isinstance(holder, dict):
            raise AprError(f"{self._client.url} answered with a choice that is none of this API")
        text = holder.get("content" if chat else "text")
        if text is None:
            text = ""  # a refusal, or nothing but thoughts
        if not isinstance(text, str):
            raise AprError(f"{self._client.url} answered with a choice whose text is no text")
        # Some servers repeat the beginning they were given. Half characters are no text.
        text = text.encode(errors="replace").decode().removeprefix(ask.prompt.prefill)
        kept = cut_at(text, ask.prompt.stop)
        reason = "stop" if len(kept) < len(text) else str(choice.get("finish_reason") or "stop")
        if chat:
            reasoning = holder.get("reasoning_content") or holder.get("reasoning")
            kept = with_reasoning(reasoning, kept, reason)
        return kept, reason, _mean_logprob(choice.get("logprobs"))

    def _find_model(self) -> dict[str, Any]:
        """The server's entry of the model; empty where it has no list of models."""
        try:
            found = self._client.get("/models").get("data")
        except Refused as refused:
            if refused.status in (404, 405, 501):
                return {}
            raise
        entries = [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []
        named = {str(entry.get("id")): entry for entry in entries}
        wanted = self._settings.model
        for name in (wanted, f"{wanted}:latest"):  # the second as Ollama has it
            if name in named or not named:
                return named.get(name, {})
        near = get_close_matches(wanted, named, 5, 0.3) or list(named)[:5]
        more = f" and {len(named) - len(near)} more" if len(named) > len(near) else ""
        raise UsageError(
            f"{self._client.url} has no model {wanted}", f"it has {', '.join(near)}{more}"
        )


def _parted(request: _Request, size: int) -> tuple[_Request, list[_Request]]:
    """The first samples of a request, and a request of the others if there are any."""
    first, rest = request.samples[:size], request.samples[size:]
    return replace(request, samples=first), [replace(request, samples=rest)] if rest else []


def _dialect(url: str, entry: Mapping[str, Any]) -> Dialect:
    """url: of the server. entry: of the model in its list."""
    if urlsplit(url).hostname == "api.openai.com":
        return OPENAI
    return DIALECTS.get(str(entry.get("owned_by")), OTHER)


def _filter_fields(sampling: Sampling, dialect: Dialect) -> dict[str, float]:
    fields = {}
    for name in _FILTERS:
        value = getattr(sampling, name)
        word, off = (dialect.off or {}).get(name, (name, None))
        if value != getattr(_OFF, name):
            fields[word] = value
        elif off is not None:
            fields[word] = off
    return fields


def _count(usage: Any, name: str) -> int:
    """A number of tokens; 0 where the server does not count."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0


def _mean_logprob(found: Any) -> float | None:
    """Of the `logprobs` of a choice, in the form of chat or of completions."""
    if not isinstance(found, dict):
        return None
    entries = found.get("content") or found.get("token_logprobs")
    if not isinstance(entries, list):
        return None
    values = [e.get("logprob") if isinstance(e, dict) else e for e in entries]
    numbers = [value for value in values if isinstance(value, int | float)]
    return fmean(numbers) if numbers and len(numbers) == len(values) else None
