"""Runs requests: plan a step, run it, draw tokens, hand out what is finished."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from apr.engine import sampling
from apr.engine.blocks import BlockPool
from apr.engine.request import Completion, FinishReason, Request
from apr.engine.runners.runner import Runner, StepBatch
from apr.engine.scheduler import Sample, Scheduler


class Engine:
    """Continuous batching over one runner.

    max_concurrency: samples decoded side by side. max_step_tokens: tokens read in one step, which
    bounds how long decoding samples wait for a long prompt. context: positions a sample may reach.
    """

    def __init__(
        self,
        runner: Runner,
        context: int | None = None,
        max_concurrency: int = 32,
        max_step_tokens: int = 512,
    ) -> None:
        self.runner = runner
        self.context = context or runner.config.max_position
        pool = BlockPool(runner.num_blocks, runner.block_size)
        self.scheduler = Scheduler(pool, self.context, max_concurrency, max_step_tokens)
        width = -(-self.context // runner.block_size)
        self._tables = np.zeros((max_concurrency, width), np.int32)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions as they finish. Requests are taken from the iterable as room appears."""
        source, more = iter(requests), True
        try:
            while True:
                while more and self.scheduler.wants_more:
                    request = next(source, None)
                    more = request is not None
                    if request is not None:
                        self.scheduler.add(request)
                if not self.scheduler.busy:
                    return
                yield from self.step()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Drop everything queued or running."""
        self.scheduler.waiting.clear()
        for sample in list(self.scheduler.running):
            self.scheduler.retire(sample)

    def step(self) -> list[Completion]:
        """One forward step; the samples that finished with it."""
        steps = self.scheduler.plan()
        logits = self.runner.forward(self._batch(steps))
        ready: list[tuple[Sample, int]] = []  # sample, row of its logits
        row = 0
        for sample, count in steps:
            if not self.scheduler.advance(sample, count):
                continue
            ready.append((sample, row))
            for sibling, copy in self.scheduler.fork(sample):
                if copy is not None:
                    self.runner.copy_block(*copy)
                ready.append((sibling, row))
            row += 1
        if not ready:
            return []
        rows = [row for _, row in ready]
        if rows != list(range(len(logits))):
            logits = logits[rows]
        return self._append(ready, self._choose([s for s, _ in ready], logits), logits)

    def _batch(self, steps: list[tuple[Sample, int]]) -> StepBatch:
        tokens: list[int] = []
        starts, contexts, slots, wanted = [0], [], [], []
        for sample, count in steps:
            first = sample.computed
            tokens += sample.tokens[first : first + count]
            starts.append(len(tokens))
            contexts.append(first)
            slots.append(sample.slot)
            if first + count == len(sample.tokens):
                wanted.append(len(tokens) - 1)
            self._tables[sample.slot, : len(sample.blocks)] = sample.blocks
        width = max(len(sample.blocks) for sample, _ in steps)
        return StepBatch(
            token_ids=np.array(tokens, np.int32),
            query_starts=np.array(starts, np.int32),
            context_lens=np.array(contexts, np.int32),
            block_tables=self._tables[slots, :width],
            logit_rows=np.array(wanted, np.int32),
        )

    def _choose(self, samples: list[Sample], logits: torch.Tensor) -> list[int]:
        """A token for each sample; rows with equal settings are drawn together."""
        groups: dict[sampling.Sampling, list[int]] = {}
        for i, sample in enumerate(samples):
            groups.setdefault(sample.request.sampling, []).append(i)
        chosen = [0] * len(samples)
        for how, members in groups.items():
            part = logits if len(members) == len(samples) else logits[members]
            if how.repetition_penalty != 1:
                penalized = [
                    sampling.penalize(row, samples[i].tokens, how.repetition_penalty)
                    for i, row in zip(members, part, strict=True)
                ]
                part = torch.stack(penalized)
            if how.greedy:
                tokens = sampling.greedy(part)
            else:
                keys = [(samples[i].request.seed, samples[i].index, samples[i].generated)
                        for i in members]  # fmt: skip
                tokens = sampling.draw(part, how, [sampling.uniform(*key) for key in keys])
            for i, token in zip(members, tokens, strict=True):
                chosen[i] = token
        return chosen

    def _append(
        self, ready: list[tuple[Sample, int]], chosen: list[int], logits: torch.Tensor
    ) -> list[Completion]:
        asked = [i for i, (sample, _) in enumerate(ready) if sample.request.logprobs]
        if asked:
            values = sampling.token_logprobs(logits[asked], [chosen[i] for i in asked])
            for i, value in zip(asked, values, strict=True):
                ready[i][0].logprobs.append(value)
        finished = []
        for (sample, _), token in zip(ready, chosen, strict=True):
            reason = self._take(sample, token)
            if reason is not None:
                finished.append(self._finish(sample, reason))
        return finished

    def _take(self, sample: Sample, token: int) -> FinishReason | None:
        """Add one token to a sample; why it is finished, or None."""
        request = sample.request
        if token in request.stop_ids:
            if request.logprobs:
                sample.logprobs.pop()
            return "stop"
        sample.tokens.append(token)
        if request.on_token is not None and request.on_token(sample.index, token):
            return "stop_string"
        return "length" if sample.generated >= sample.max_tokens else None

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
