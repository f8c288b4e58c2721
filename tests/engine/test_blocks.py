"""The block pool against a model that keeps everything: references, contents, order of use."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apr.engine.scheduler import BlockPool

BLOCKS, SIZE = 6, 2
TOKENS = st.tuples(st.integers(0, 1), st.integers(0, 1))
PICK = st.integers(0, 10**6)


class PoolMachine(RuleBasedStateMachine):
    """Blocks are handed out, filled, learnt, shared and released in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, SIZE)
        self.references = dict.fromkeys(range(BLOCKS), 0)
        self.unlearnt: set[int] = set()  # in use, and never given to `learn`
        self.idle: list[int] = []  # known and unreferenced, longest unused first
        self.known: dict[int, tuple[int, ...]] = {}  # block -> the whole prefix it ends
        self.prefix_of_chain: dict[int, tuple[int, ...]] = {0: ()}

    def used(self) -> list[int]:
        return [block for block, count in self.references.items() if count]

    @precondition(lambda self: self.pool.available)
    @rule()
    def allocate(self) -> None:
        never_known = BLOCKS - len(self.used()) - len(self.idle)
        block = self.pool.allocate()
        assert self.references[block] == 0, "a block in use was handed out"
        if never_known == 0:
            assert block == self.idle.pop(0), "not the longest unused"
            del self.known[block]
        else:
            assert block not in self.known, "a known prefix was forgotten without need"
        self.references[block] = 1
        self.unlearnt.add(block)

    @precondition(lambda self: self.unlearnt)
    @rule(pick=PICK, chain=PICK, tokens=TOKENS)
    def learn(self, pick: int, chain: int, tokens: tuple[int, int]) -> None:
        block = sorted(self.unlearnt)[pick % len(self.unlearnt)]
        chain = sorted(self.prefix_of_chain)[chain % len(self.prefix_of_chain)]
        self.unlearnt.discard(block)
        before = self.pool.find(chain, tokens)
        number = self.pool.learn(block, chain, tokens)
        prefix = self.prefix_of_chain[chain] + tokens
        assert self.prefix_of_chain.setdefault(number, prefix) == prefix
        if before is None:
            self.known[block] = prefix
        assert self.pool.find(chain, tokens) == (before or (block, number))

    @precondition(lambda self: self.known)
    @rule(pick=PICK)
    def share(self, pick: int) -> None:
        block = sorted(self.known)[pick % len(self.known)]
        self.pool.share(block)
        if self.references[block] == 0:
            self.idle.remove(block)
        self.references[block] += 1

    @precondition(lambda self: self.used())
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        block = self.used()[pick % len(self.used())]
        self.pool.release(block)
        self.references[block] -= 1
        if self.references[block] == 0:
            self.unlearnt.discard(block)
            if block in self.known:
                self.idle.append(block)

    @rule(chain=PICK, tokens=TOKENS)
    def find(self, chain: int, tokens: tuple[int, int]) -> None:
        chain = sorted(self.prefix_of_chain)[chain % len(self.prefix_of_chain)]
        found = self.pool.find(chain, tokens)
        if found is not None:
            block, number = found
            prefix = self.prefix_of_chain[chain] + tokens
            assert self.known[block] == prefix == self.prefix_of_chain[number]

    @invariant()
    def every_block_is_used_or_available(self) -> None:
        assert self.pool.available == BLOCKS - len(self.used())


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
