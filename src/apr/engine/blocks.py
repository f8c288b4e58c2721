"""Cache blocks: who owns them, and which already hold a known prefix. Pure integers, no tensors.

A full block is known by the chain of tokens that leads to it (Kwon et al. 2023, section 4.4).
Chains are numbered by (number of the chain before, tokens of this block), compared by value, so
equal numbers mean equal prefixes and nothing rests on hashes. Unreferenced known blocks stay until
their room is needed, the longest unused first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


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
