"""The scheduler without a model: who reads what when, and who may write where."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from apr.engine.request import Request
from apr.engine.scheduler import BlockPool, Sample, Scheduler

SIZE = 4
CONTEXT = 120


class Drive:
    """Runs a scheduler to its end with made-up tokens, and checks every step."""

    def __init__(self, blocks: int, concurrency: int, step_tokens: int, seed: int = 0) -> None:
        self.pool = BlockPool(blocks, SIZE)
        self.scheduler = Scheduler(self.pool, CONTEXT, concurrency, step_tokens)
        self.limit = max(step_tokens, concurrency)
        self.random = random.Random(seed)
        self.lanes: dict[tuple[int, int], int] = {}  # what the cache holds
        self.read: list[tuple[int, ...]] = []  # prefix that ends with each token read
        self.finished: list[Sample] = []

    def run(self, requests: Sequence[Request]) -> None:
        waiting = list(enumerate(requests))
        while waiting or self.scheduler.busy:
            while waiting and self.scheduler.wants_more:
                self.scheduler.add(*waiting.pop(0))
            self.step()
        assert self.pool.available == self.pool.num_blocks, "blocks are still held"

    def step(self) -> None:
        steps = self.scheduler.plan()
        assert steps, "nothing to do although something is waiting"
        assert sum(count for _, count in steps) <= self.limit
        running = self.scheduler.running
        assert len(running) <= self.scheduler.max_concurrency
        assert len({sample.slot for sample in running}) == len(running)
        for sample, count in steps:
            self.write(sample, count)
        for sample, count in steps:
            if self.scheduler.advance(sample, count):
                ready = [sample]
                for sibling, copy in self.scheduler.fork(sample):
                    if copy is not None:
                        for lane in range(SIZE):
                            self.lanes[copy[1], lane] = self.lanes.get((copy[0], lane), -1)
                    ready.append(sibling)
                for each in ready:
                    self.draw(each)

    def write(self, sample: Sample, count: int) -> None:
        holders = {b for s in self.scheduler.running if s is not sample for b in s.blocks}
        for position in range(sample.computed, sample.computed + count):
            block = sample.blocks[position // SIZE]
            assert block not in holders, "a block that another sample holds is written"
            self.lanes[block, position % SIZE] = sample.tokens[position]
            self.read.append(tuple(sample.tokens[: position + 1]))

    def draw(self, sample: Sample) -> None:
        held = [self.lanes[sample.blocks[p // SIZE], p % SIZE] for p in range(sample.computed)]
        assert held == sample.tokens, "the cache does not hold this sample's history"
        sample.tokens.append(self.random.randrange(3))
        if sample.generated >= sample.max_tokens or self.random.random() < 0.1:
            self.scheduler.retire(sample)
            self.finished.append(sample)


PROMPTS = st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), max_size=20)).map(
    lambda pair: (7,) * (4 * pair[0] + 1) + tuple(pair[1])
)
REQUESTS = st.lists(
    st.builds(Request, prompt_ids=PROMPTS, n=st.integers(1, 5), max_tokens=st.integers(1, 25)),
    min_size=1,
    max_size=10,
)


@given(
    requests=REQUESTS,
    blocks=st.integers(16, 50),
    concurrency=st.integers(1, 6),
    step_tokens=st.integers(1, 30),
    seed=st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_capacity_ownership_and_history_hold_at_every_step(
    requests: list[Request], blocks: int, concurrency: int, step_tokens: int, seed: int
) -> None:
    drive = Drive(blocks, concurrency, step_tokens, seed)
    drive.run(requests)
    assert len(drive.finished) == sum(request.n for request in requests)


@given(requests=REQUESTS, step_tokens=st.integers(1, 30), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_one_after_another_shares_the_longest_known_prefix(
    requests: list[Request], step_tokens: int, seed: int
) -> None:
    drive = Drive(1000, 1, step_tokens, seed)
    drive.run(requests)
    cached: list[tuple[int, ...]] = []  # what earlier samples left, whole blocks
    for sample in drive.finished:
        most = (sample.prompt_length - 1) // SIZE * SIZE  # the last token is read anew
        shared = [n for n in range(0, most + 1, SIZE) if any(c[:n] == tuple(sample.tokens[:n])
                  for c in cached if len(c) >= n) or n == 0]  # fmt: skip
        assert sample.cached_tokens == max(shared)
        # The last token drawn is never read: it is not in the cache.
        cached.append(tuple(sample.tokens[: (len(sample.tokens) - 1) // SIZE * SIZE]))


@given(
    prompts=st.lists(PROMPTS, min_size=1, max_size=8),
    n=st.integers(1, 4),
    step_tokens=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_prompts_that_arrive_together_are_read_once(
    prompts: list[tuple[int, ...]], n: int, step_tokens: int
) -> None:
    """With room for all, no whole block of the prompts is read a second time."""
    requests = [Request((*p, 100 + i), n=n, max_tokens=1) for i, p in enumerate(prompts)]
    drive = Drive(1000, 64, step_tokens)
    drive.run(requests)
    blocks = [prefix for prefix in drive.read if len(prefix) % SIZE == 0]
    assert len(blocks) == len(set(blocks))
    tails = sum(len(r.prompt_ids) % SIZE for r in requests)
    assert len(drive.read) == SIZE * len(blocks) + tails
