"""What the engine asks of a model that runs: one step over ragged rows and a paged cache.

Two implementations exist: `torch_runner` (any device torch knows, any dtype) and `compiled_runner`
(CPU kernels compiled by LLVM). Both keep keys and values in blocks of `block_size` positions; a
sequence is a list of block numbers (its block table), so sequences that share a prefix share
blocks. The runner never allocates blocks: the engine's scheduler does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from apr.model.config import ModelConfig


@dataclass(frozen=True)
class StepBatch:
    """One forward step over N sequences with T new tokens in all (prefill and decode may mix).

    token_ids: int32 (T,), the new tokens of all sequences, one after another.
    query_starts: int32 (N + 1,), sequence i owns token_ids[query_starts[i]:query_starts[i + 1]].
    context_lens: int32 (N,), positions already in the cache; the first new token of sequence i
        stands at position context_lens[i].
    block_tables: int32 (N, W), block numbers in position order, padded with 0 beyond use. They
        must cover context_lens[i] + new tokens of every sequence.
    logit_rows: int32 (R,), indices into token_ids whose logits are wanted (often the last of each
        sequence; empty while a long prompt is still being read).
    """

    token_ids: np.ndarray
    query_starts: np.ndarray
    context_lens: np.ndarray
    block_tables: np.ndarray
    logit_rows: np.ndarray


class Runner(Protocol):
    """A loaded model with its cache."""

    config: ModelConfig
    block_size: int
    num_blocks: int
    device: torch.device

    def forward(self, batch: StepBatch) -> torch.Tensor:
        """Write the new keys and values to the cache and return fp32 logits (R, V)."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy one cache block (all layers): copy-on-write for samples that part ways."""
        ...
