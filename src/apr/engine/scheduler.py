"""Which tokens of which samples go into the next step. Pure integers, no tensors.

Continuous batching (Yu et al. 2022, Orca): samples join and leave between steps. A sample is
admitted when its worst case (prompt plus max_tokens) fits the blocks not yet promised to others,
so nothing is ever preempted or recomputed. Long prompts are read in chunks beside the samples that
already decode. Samples of one request fork from its first one when the prompt has been read, and
prompts that begin alike share the blocks of what they have in common, also when they come together.

A step may carry guesses (drafts) of a decoding sample's next tokens behind its last one. Those that
are accepted become its tokens; the rest is rolled back by not counting it: later steps write over
its positions. Only blocks full of accepted tokens become known prefixes.

A full block of the cache is known by the chain of tokens that leads to it (Kwon et al. 2023,
section 4.4). Chains are numbered by (number of the chain before, tokens of this block), compared
by value, so equal numbers mean equal prefixes and nothing rests on hashes. Unreferenced known
blocks stay until their room is needed, the longest unused first.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from apr.common.errors import UsageError
from apr.engine.request import PromptTooLong, Request


class BlockPool:
    """`num_blocks` blocks with reference counts and a prefix cache."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # known, unreferenced, oldest first
        # (chain before, tokens of the block) -> (block that holds it, number of the chain)
        self._known: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
        self._key_of: dict[int, tuple[int, tuple[int, ...]]] = {}  # block -> its key
        self._next_chain = 1  # 0 is the empty prefix

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give out."""
        return len(self._free) + len(self._idle)

    def allocate(self) -> int:
        """A block with one reference; forgets the longest unused known prefix if it must."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            # Chains that went on from it keep a number nobody can reach any more: they are not
            # found again, and leave in their turn.
            del self._known[self._key_of.pop(block)]
        else:
            raise AssertionError("no free cache block: the scheduler admitted too much")
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more reference to a block in use or known."""
        if self._references[block] == 0:
            del self._idle[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        """One reference less; a known block without references stays until room is needed."""
        self._references[block] -= 1
        assert self._references[block] >= 0, "cache block released twice"
        if self._references[block]:
            return
        if block in self._key_of:
            self._idle[block] = None
        else:
            self._free.append(block)

    def find(self, chain: int, tokens: Sequence[int]) -> tuple[int, int] | None:
        """(block, chain) that holds `tokens` after prefix `chain`, or None."""
        return self._known.get((chain, tuple(tokens)))

    def learn(self, block: int, chain: int, tokens: Sequence[int]) -> int:
        """`block` is full and holds `tokens` after prefix `chain`; the number of the longer chain.

        When another block holds the same already, that one stays the known one.
        """
        key = (chain, tuple(tokens))
        found = self._known.get(key)
        if found is not None:
            return found[1]
        number = self._next_chain
        self._next_chain += 1
        self._known[key] = (block, number)
        self._key_of[block] = key
        return number


@dataclass(eq=False)
class Sample:
    """One sample on its way: its tokens so far, its blocks, how much of it is in the cache.

    drafts: guesses of the tokens after `tokens`, read in the coming step.
    """

    ticket: int  # of its request
    request: Request
    index: int
    tokens: list[int]
    promised: int  # blocks its worst case needs
    max_tokens: int
    slot: int = -1
    blocks: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    computed: int = 0  # positions in the cache
    chain: int = 0  # prefix number of the full blocks learnt so far
    learnt: int = 0  # how many full blocks `chain` covers
    cached_tokens: int = 0
    logprobs: list[float] = field(default_factory=list)
    started: float = 0.0

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def decoding(self) -> bool:
        """Whether only its last token, a drawn one, is not in the cache."""
        return self.computed == len(self.tokens) - 1 >= self.prompt_length


class Scheduler:
    """Admits, plans, forks and retires samples over one `BlockPool`."""

    def __init__(
        self,
        pool: BlockPool,
        context: int,
        max_concurrency: int,
        max_step_tokens: int,
        too_long_hint: str = "",
    ) -> None:
        self._too_long_hint = too_long_hint
        self.pool, self.context = pool, context
        self.max_concurrency, self.max_step_tokens = max_concurrency, max_step_tokens
        self.waiting: deque[Sample] = deque()
        self.running: list[Sample] = []
        self._promised = 0
        self._slots = list(range(max_concurrency - 1, -1, -1))

    def check(self, length: int, max_tokens: int) -> tuple[int, int]:
        """(new tokens there is room for, cache blocks promised) of a prompt of `length` tokens.

        Raises UsageError if it can never run here: PromptTooLong, or a cache that is too small.
        """
        if length >= self.context:
            raise PromptTooLong(length, self.context, self._too_long_hint)
        room = min(max_tokens, self.context - length)
        promised = self._blocks_for(length + room)
        if promised > self.pool.num_blocks:
            raise UsageError(
                f"{length} prompt tokens and {room} new ones need {promised} cache blocks"
                f" of {self.pool.block_size} positions, and the cache has {self.pool.num_blocks}",
                "lower max_tokens or free memory",
            )
        return room, promised

    def add(self, ticket: int, request: Request) -> None:
        """Queue the samples of a request. Raises UsageError if it can never run here."""
        room, promised = self.check(len(request.prompt_ids), request.max_tokens)
        for index in range(request.first_sample, request.first_sample + request.n):
            tokens = list(request.prompt_ids)
            self.waiting.append(Sample(ticket, request, index, tokens, promised, room))

    def cancel(self, ticket: int) -> None:
        """Drop the samples of a request, queued or running."""
        self.waiting = deque(s for s in self.waiting if s.ticket != ticket)
        for sample in [s for s in self.running if s.ticket == ticket]:
            self.retire(sample)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def reading_prompts(self) -> bool:
        """Whether some prompt has not been read to its end."""
        unread = any(s.computed < s.prompt_length for s in self.running)
        return bool(self.waiting) or unread

    @property
    def wants_more(self) -> bool:
        """Whether another request could be of use now (keeps lazy sources lazy)."""
        return len(self.waiting) + len(self.running) < self.max_concurrency

    def plan(self) -> list[tuple[Sample, int]]:
        """The next step: samples and how many tokens of them to read, blocks allocated.

        A sample's count includes its drafts, which are cut to what the step and its max_tokens
        leave room for.
        """
        self._admit()
        budget = max(self.max_step_tokens, len(self.running))
        spare = budget - len(self.running)  # what drafts may take: one token stays for each sample
        steps = []
        # Decoding samples first: one token each, they are what people wait for.
        for sample in sorted(self.running, key=lambda s: len(s.tokens) - s.computed > 1):
            if sample.drafts:
                del sample.drafts[min(spare, sample.max_tokens - sample.generated - 1) :]
                spare -= len(sample.drafts)
            count = min(len(sample.tokens) + len(sample.drafts) - sample.computed, budget)
            if count > 0:
                budget -= count
                self._extend(sample, sample.computed + count)
                steps.append((sample, count))
        return steps

    def advance(self, sample: Sample, count: int) -> bool:
        """`count` more of its tokens are in the cache; True if the next can now be drawn."""
        sample.computed += count
        self._learn(sample)
        return sample.computed == len(sample.tokens)

    def accept(self, sample: Sample, count: int) -> None:
        """The first `count` drafts of the last step have become tokens; the rest is rolled back."""
        sample.computed += count
        sample.drafts = []
        self._learn(sample)

    def fork(self, sample: Sample) -> Iterator[tuple[Sample, tuple[int, int] | None]]:
        """Waiting siblings that start from `sample`'s prompt, which has just been read.

        Yields each with the block to copy (source, target), or None if the prompt ends with a
        full block.
        """
        if sample.computed != sample.prompt_length:
            return
        for sibling in [s for s in self.waiting if s.ticket == sample.ticket]:
            if not self._fits(sibling):
                return
            self.waiting.remove(sibling)
            self._start(sibling)
            full, partial = divmod(sample.computed, self.pool.block_size)
            for block in sample.blocks[:full]:
                self.pool.share(block)
            sibling.blocks = sample.blocks[:full]
            sibling.computed = sibling.cached_tokens = sample.computed
            sibling.chain, sibling.learnt = sample.chain, sample.learnt
            copy = None
            if partial:
                sibling.blocks.append(self.pool.allocate())
                copy = (sample.blocks[full], sibling.blocks[full])
            yield sibling, copy

    def retire(self, sample: Sample) -> None:
        """Give back what a finished sample holds."""
        self.running.remove(sample)
        self._slots.append(sample.slot)
        self._promised -= sample.promised
        for block in sample.blocks:
            self.pool.release(block)
        sample.blocks = []

    def _blocks_for(self, positions: int) -> int:
        return -(-positions // self.pool.block_size)

    def _fits(self, sample: Sample) -> bool:
        free_slot = len(self.running) < self.max_concurrency
        return free_slot and self._promised + sample.promised <= self.pool.num_blocks

    def _admit(self) -> None:
        for sample in list(self.waiting):
            if not self._fits(sample):
                return  # first come, first served: nobody overtakes a large request
            if self._prefix_under_way(sample):
                continue
            self.waiting.remove(sample)
            self._start(sample)
            self._take_known_prefix(sample)

    def _start(self, sample: Sample) -> None:
        sample.started = time.perf_counter()
        sample.slot = self._slots.pop()
        self._promised += sample.promised
        self.running.append(sample)

    def _prefix_under_way(self, sample: Sample) -> bool:
        """A running sample is reading a block that this one could share, or is its sibling."""
        size = self.pool.block_size
        for other in self.running:
            if other.computed >= other.prompt_length:
                continue
            if other.ticket == sample.ticket:
                return True
            # The next block the other will complete: shared if the prompts agree to its end.
            end = (other.computed // size + 1) * size
            shareable = end < sample.prompt_length and end <= other.prompt_length
            if shareable and other.tokens[:end] == sample.tokens[:end]:
                return True
        return False

    def _take_known_prefix(self, sample: Sample) -> None:
        size = self.pool.block_size
        # The last prompt token is always read anew: its logits are what sampling starts from.
        for start in range(0, sample.prompt_length - size, size):
            found = self.pool.find(sample.chain, sample.tokens[start : start + size])
            if found is None:
                break
            block, sample.chain = found
            self.pool.share(block)
            sample.blocks.append(block)
            sample.learnt += 1
        sample.computed = sample.cached_tokens = sample.learnt * size

    def _extend(self, sample: Sample, positions: int) -> None:
        while len(sample.blocks) < self._blocks_for(positions):
            sample.blocks.append(self.pool.allocate())

    def _learn(self, sample: Sample) -> None:
        size = self.pool.block_size
        while (sample.learnt + 1) * size <= sample.computed:
            start = sample.learnt * size
            tokens = sample.tokens[start : start + size]
            sample.chain = self.pool.learn(sample.blocks[sample.learnt], sample.chain, tokens)
            sample.learnt += 1
