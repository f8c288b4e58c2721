"""A runner without a network: its logits are a hash of the whole history in its paged cache.
With it, requests to make up and what each of their samples must be.

Any mistake with block tables, shared blocks, copies or positions changes the tokens.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from hypothesis import strategies as st

from apr.engine import sampling
from apr.engine.request import Request, Sampling
from apr.engine.runners.runner import StepBatch
from apr.model.config import ModelConfig

VOCABULARY = 50
CONFIG = ModelConfig(
    family="llama", vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_layers=1,
    num_heads=1, num_kv_heads=1, head_dim=8, max_position=200,
)  # fmt: skip


def history_logits(history: list[int]) -> np.ndarray:
    return _logits(tuple(history)).copy()


@lru_cache(maxsize=100_000)
def _logits(history: tuple[int, ...]) -> np.ndarray:
    digest = hashlib.sha256(bytes(str(list(history)), "ascii")).digest()
    seed = int.from_bytes(digest[:8], "little")
    return np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32) * 3


class HashRunner:
    """The `Runner` protocol; counts the tokens it read and checks who writes where."""

    config = CONFIG
    device = torch.device("cpu")

    def __init__(self, num_blocks: int, block_size: int = 4) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.cache = np.full((num_blocks, block_size), -1, np.int64)
        self.tokens_read = 0
        self.largest_step = 0
        self.copies = 0

    def forward(self, batch: StepBatch) -> torch.Tensor:
        self.tokens_read += len(batch.token_ids)
        self.largest_step = max(self.largest_step, len(batch.token_ids))
        written: set[tuple[int, int]] = set()
        for i, cached in enumerate(batch.context_lens):
            first, last = batch.query_starts[i], batch.query_starts[i + 1]
            for offset, token in enumerate(batch.token_ids[first:last]):
                block, lane = divmod(int(cached) + offset, self.block_size)
                place = (int(batch.block_tables[i, block]), lane)
                assert place not in written, "two sequences write the same place"
                written.add(place)
                self.cache[place] = token
        rows = []
        for row in batch.logit_rows:
            i = int(np.searchsorted(batch.query_starts, row, side="right")) - 1
            length = int(batch.context_lens[i] + row - batch.query_starts[i] + 1)
            blocks = batch.block_tables[i, : -(-length // self.block_size)]
            rows.append(history_logits(self.cache[blocks].reshape(-1)[:length].tolist()))
        return torch.from_numpy(np.array(rows, np.float32).reshape(-1, VOCABULARY))

    def copy_block(self, source: int, target: int) -> None:
        self.copies += 1
        self.cache[target] = self.cache[source]


def plain(request: Request, index: int, context: int = 200) -> tuple[list[int], str]:
    """What a sample must be: its own loop, nothing shared."""
    tokens = list(request.prompt_ids)
    limit = min(request.max_tokens, context - len(tokens))
    for step in range(limit):
        logits = torch.from_numpy(history_logits(tokens))[None]
        if request.sampling.repetition_penalty != 1:
            logits = sampling.penalize(logits[0], tokens, request.sampling.repetition_penalty)[None]
        if request.sampling.greedy:
            token = int(logits[0].argmax())
        else:
            number = sampling.uniform(request.seed, index, step)
            token = sampling.draw(logits, request.sampling, [number])[0]
        if token in request.stop_ids:
            return tokens[len(request.prompt_ids) :], "stop"
        tokens.append(token)
    return tokens[len(request.prompt_ids) :], "length"


REQUESTS = st.builds(
    Request,
    # Few distinct tokens and a common beginning make shared prefixes likely.
    prompt_ids=st.tuples(st.integers(0, 2), st.lists(st.integers(0, 1), max_size=30)).map(
        lambda pair: (7,) * (5 * pair[0] + 1) + tuple(pair[1])
    ),
    n=st.integers(1, 4),
    first_sample=st.integers(0, 2),
    max_tokens=st.integers(1, 20),
    sampling=st.sampled_from(
        [
            Sampling(),
            Sampling(temperature=1.0),
            Sampling(temperature=0.7, top_k=5),
            Sampling(temperature=1.3, top_p=0.8),
            Sampling(temperature=1.0, min_p=0.1, repetition_penalty=1.3),
        ]
    ),
    stop_ids=st.sampled_from([frozenset(), frozenset({3, 4, 5, 6, 7, 8})]),
    seed=st.integers(0, 3),
)
