"""Runs requests: plan a step, run it, draw tokens, tell what has happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch

from apr.common.errors import AprError, UsageError
from apr.engine import sampling
from apr.engine.request import (
    Completion,
    Event,
    FinishedEvent,
    FinishReason,
    Request,
    Sampling,
    TokenEvent,
)
from apr.engine.runners.runner import Runner, StepBatch
from apr.engine.scheduler import BlockPool, Sample, Scheduler

# Guesses of the tokens that follow each of these decoding samples' own, as many as it likes.
Drafter = Callable[[Sequence[Sample]], Sequence[Sequence[int]]]
# Given samples with their drafts and logits (R, V), 1 + len(drafts) rows of each sample one after
# another (row i: what follows its tokens and i drafts): how many of each sample's drafts are
# accepted, and the token after those.
Verifier = Callable[[Sequence[Sample], torch.Tensor], Sequence[tuple[int, int]]]


class Engine:
    """Continuous batching over one runner: `add` requests, `step`, read the events.

    max_concurrency: samples decoded side by side. max_step_tokens: tokens read in one step, which
    bounds how long decoding samples wait for a long prompt. context: positions a sample may reach.
    draft, verify: guess several tokens of a sample, read them in one step, keep what is accepted.
    failure_hint, too_long_hint: what to do where the model's logits are not finite, where a prompt
    does not fit.

    Several callers may have requests under way, each with an `Inbox` of its own, in one thread.
    """

    def __init__(
        self,
        runner: Runner,
        context: int | None = None,
        max_concurrency: int = 32,
        max_step_tokens: int = 512,
        *,
        draft: Drafter | None = None,
        verify: Verifier | None = None,
        failure_hint: str = "",
        too_long_hint: str = "",
    ) -> None:
        self.runner = runner
        self.context = context or runner.config.max_position
        pool = BlockPool(runner.num_blocks, runner.block_size)
        self.scheduler = Scheduler(
            pool, self.context, max_concurrency, max_step_tokens, too_long_hint
        )
        width = -(-self.context // runner.block_size)
        self._tables = np.zeros((max_concurrency, width), np.int32)
        self._draft, self._verify = draft, verify or by_own_draws
        self._failure_hint = failure_hint
        self._next_ticket = 0
        self._inboxes: dict[int, Inbox] = {}
        self._stepping = False
        self._cancelled: set[int] = set()  # while a step is under way

    def add(self, request: Request) -> int:
        """Queue a request; the ticket that its events bear.

        Raises UsageError if it can never run here.
        """
        self._check_known(request.prompt_ids)
        ticket = self._next_ticket
        self.scheduler.add(ticket, request)
        self._next_ticket += 1
        return ticket

    def cancel(self, ticket: int) -> None:
        """Drop what is left of a request, whatever it is at; no event of it follows."""
        if self._stepping:  # a token's callback asks for it
            self._cancelled.add(ticket)
            return
        self.scheduler.cancel(ticket)
        self._inboxes.pop(ticket, None)

    def step(self) -> list[Event]:
        """One forward step and what came of it, also put into the inboxes; [] when idle.

        Raises AprError where the model's logits are not finite.
        """
        self._stepping = True
        try:
            events = self._step()
        finally:
            self._stepping = False
            cancelled, self._cancelled = self._cancelled, set()
            for ticket in cancelled:
                self.cancel(ticket)
        if cancelled:
            events = [event for event in events if event.ticket not in cancelled]
        if self._inboxes:
            for event in events:
                if (inbox := self._inboxes.get(event.ticket)) is not None:
                    inbox.put(event)
        return events

    def inbox(self) -> Inbox:
        """A new one, for a caller that shares this engine with others."""
        return Inbox(self, self._inboxes)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions as they finish. Requests are taken from the iterable as room appears."""
        source, more = iter(requests), True
        with closing(self.inbox()) as inbox:
            while True:
                while more and self.scheduler.wants_more:
                    request = next(source, None)
                    more = request is not None
                    if request is not None:
                        inbox.add(request)
                if not (more or inbox.awaits):
                    return
                for event in inbox.take():
                    if isinstance(event, FinishedEvent):
                        yield event.completion

    def _step(self) -> list[Event]:
        if self._draft is not None:
            decoding = [sample for sample in self.scheduler.running if sample.decoding]
            for sample, guesses in zip(decoding, self._draft(decoding), strict=True):
                sample.drafts = list(guesses)
                self._check_known(sample.drafts)
        steps = self.scheduler.plan()
        if not steps:
            return []
        logits = self.runner.forward(self._batch(steps))
        ready: list[Sample] = []
        rows: list[int] = []  # of the logits: 1 + len(drafts) for each that is ready
        row = 0
        for sample, count in steps:
            if not self.scheduler.advance(sample, count - len(sample.drafts)):
                continue
            ready.append(sample)
            rows += range(row, row + 1 + len(sample.drafts))
            for sibling, copy in self.scheduler.fork(sample):
                if copy is not None:
                    self.runner.copy_block(*copy)
                ready.append(sibling)
                rows.append(row)
            row += 1 + len(sample.drafts)
        if len(rows) > row:  # siblings start from one row
            logits = logits[rows]
        return self._take_all(ready, logits) if ready else []

    def _check_known(self, tokens: Sequence[int]) -> None:
        """A runner reads rows of the embedding unchecked."""
        vocabulary = self.runner.config.vocab_size
        for token in (min(tokens, default=0), max(tokens, default=0)):
            if not 0 <= token < vocabulary:
                raise UsageError(f"token {token} is none of the model's {vocabulary}")

    def _batch(self, steps: list[tuple[Sample, int]]) -> StepBatch:
        tokens: list[int] = []
        starts, contexts, slots = [0], [], []
        wanted: list[int] = []
        for sample, count in steps:
            first, drafts = sample.computed, len(sample.drafts)
            tokens += sample.tokens[first : first + count]
            tokens += sample.drafts
            starts.append(len(tokens))
            contexts.append(first)
            slots.append(sample.slot)
            if first + count - drafts == len(sample.tokens):
                wanted += range(len(tokens) - 1 - drafts, len(tokens))
            self._tables[sample.slot, : len(sample.blocks)] = sample.blocks
        width = max(len(sample.blocks) for sample, _ in steps)
        return StepBatch(
            token_ids=np.array(tokens, np.int32),
            query_starts=np.array(starts, np.int32),
            context_lens=np.array(contexts, np.int32),
            block_tables=self._tables[slots, :width],
            logit_rows=np.array(wanted, np.int32),
        )

    def _take_all(self, samples: list[Sample], logits: torch.Tensor) -> list[Event]:
        """Give each sample its accepted drafts and a token; logits as a `Verifier` gets them."""
        try:
            verified = self._verify(samples, logits)
        except sampling.NotFinite as error:
            after = [len(s.tokens) + ahead for s in samples for ahead in range(1 + len(s.drafts))]
            raise AprError(
                f"the model's logits after {after[error.row]} tokens are not finite numbers",
                self._failure_hint,
            ) from None
        drawn = [
            [*sample.drafts[:accepted], token]
            for sample, (accepted, token) in zip(samples, verified, strict=True)
        ]
        asked: list[tuple[int, int]] = []  # row, token
        if any(sample.request.logprobs for sample in samples):
            row = 0
            for sample, tokens in zip(samples, drawn, strict=True):
                if sample.request.logprobs:
                    asked += enumerate(tokens, row)
                row += 1 + len(sample.drafts)
        values: Iterator[float] = iter(())
        if asked:
            found = [row for row, _ in asked]
            values = iter(sampling.chosen_logprobs(logits[found], [token for _, token in asked]))
        events: list[Event] = []
        for sample, tokens in zip(samples, drawn, strict=True):
            logprobs = [next(values) for _ in tokens] if sample.request.logprobs else None
            self._take(sample, tokens, logprobs, events)
        return events

    def _take(
        self, sample: Sample, tokens: list[int], logprobs: list[float] | None, events: list[Event]
    ) -> None:
        """Add tokens to a sample, drafts and one more, until one of them ends it."""
        request, before = sample.request, len(sample.tokens)
        reason: FinishReason | None = None
        for i, token in enumerate(tokens):
            if token in request.stop_ids:
                reason = "stop"
                break
            sample.tokens.append(token)
            logprob = None
            if logprobs is not None:
                logprob = logprobs[i]
                sample.logprobs.append(logprob)
            events.append(TokenEvent(sample.ticket, sample.index, token, logprob))
            if request.on_token is not None and request.on_token(sample.index, token):
                reason = "stop_string"
                break
            if sample.generated >= sample.max_tokens:
                reason = "length"
                break
        if sample.drafts:
            self.scheduler.accept(sample, min(len(sample.tokens) - before, len(tokens) - 1))
        if reason is not None:
            events.append(FinishedEvent(sample.ticket, self._finish(sample, reason)))

    def _finish(self, sample: Sample, reason: FinishReason) -> Completion:
        self.scheduler.retire(sample)
        request = sample.request
        return Completion(
            request_id=request.request_id,
            sample_index=sample.index,
            token_ids=tuple(sample.tokens[sample.prompt_length :]),
            finish_reason=reason,
            prompt_tokens=sample.prompt_length,
            cached_tokens=sample.cached_tokens,
            seconds=time.perf_counter() - sample.started,
            logprobs=tuple(sample.logprobs) if request.logprobs else None,
        )


class Inbox:
    """The events of one caller's requests, in an engine that others use at the same time.

    Whoever wants events first runs a step of the engine, for all; it brings everybody's. Closing
    drops what is left of these requests alone.
    """

    def __init__(self, engine: Engine, inboxes: dict[int, Inbox]) -> None:
        self._engine, self._inboxes = engine, inboxes
        self._events: list[Event] = []
        self._left: dict[int, int] = {}  # ticket -> samples that have not finished

    @property
    def awaits(self) -> bool:
        """Whether there are events here or to come."""
        return bool(self._events or self._left)

    def add(self, request: Request) -> int:
        """As `Engine.add`; the events come here."""
        ticket = self._engine.add(request)
        self._inboxes[ticket] = self
        self._left[ticket] = request.n
        return ticket

    def put(self, event: Event) -> None:
        self._events.append(event)
        if isinstance(event, FinishedEvent):
            self._left[event.ticket] -= 1
            if not self._left[event.ticket]:
                del self._left[event.ticket], self._inboxes[event.ticket]

    def take(self) -> list[Event]:
        """What has come since the last call; if nothing has, what one step brings (perhaps [])."""
        if not self._events:
            self._engine.step()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        for ticket in self._left:
            self._engine.cancel(ticket)
        self._left = {}
        self._events = []


def draw(samples: Sequence[Sample], logits: torch.Tensor) -> list[int]:
    """A token for each row of logits (R, V), laid out as a `Verifier` gets them.

    Rows with equal settings are drawn together. Random numbers belong to (seed, sample, position),
    so a row draws what it would have drawn in a step of its own. Raises `sampling.NotFinite`.
    """
    groups: dict[Sampling, list[int]] = {}
    rows: list[tuple[Sample, int]] = []  # whose it is, and after how many drafts
    for sample in samples:
        members = groups.setdefault(sample.request.sampling, [])
        for ahead in range(1 + len(sample.drafts)):
            members.append(len(rows))
            rows.append((sample, ahead))
    drawn = [0] * len(rows)
    for how, members in groups.items():
        part = logits if len(members) == len(rows) else logits[members]
        if how.repetition_penalty != 1:
            penalized = []
            for i, row in zip(members, part, strict=True):
                sample, ahead = rows[i]
                seen = sample.tokens + sample.drafts[:ahead]
                penalized.append(sampling.penalize(row, seen, how.repetition_penalty))
            part = torch.stack(penalized)
        numbers = []
        if not how.greedy:
            for sample, ahead in (rows[i] for i in members):
                step = sample.generated + ahead
                numbers.append(sampling.uniform(sample.request.seed, sample.index, step))
        try:
            tokens = sampling.greedy(part) if how.greedy else sampling.draw(part, how, numbers)
        except sampling.NotFinite as error:
            raise sampling.NotFinite(members[error.row]) from None
        for i, token in zip(members, tokens, strict=True):
            drawn[i] = token
    return drawn


def by_own_draws(samples: Sequence[Sample], logits: torch.Tensor) -> list[tuple[int, int]]:
    """A `Verifier`: a draft is accepted when the model draws the same token in its place.

    The tokens are those of steps without drafts, greedy or sampled.
    """
    drawn = draw(samples, logits)
    if len(drawn) == len(samples):
        return [(0, token) for token in drawn]
    found, row = [], 0
    for sample in samples:
        accepted = 0
        while accepted < len(sample.drafts) and drawn[row + accepted] == sample.drafts[accepted]:
            accepted += 1
        found.append((accepted, drawn[row + accepted]))
        row += 1 + len(sample.drafts)
    return found
