"""The `Runner` on any device and dtype torch knows: clarity first, then speed.

A step runs all rows through the layers together and attention group by group: each prompt (or
piece of one) is a group of its own, single new tokens share a group with others whose contexts
take a similar number of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from apr.common.errors import AprError
from apr.engine.runners.runner import StepBatch
from apr.kernels import reference
from apr.model.config import ModelConfig
from apr.model.rope import needs_long_factors, short_context
from apr.model.transformer import Transformer


def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes one cache block takes: keys and values of `block_size` positions in every layer."""
    per_position = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_position * block_size * dtype.itemsize


class PagedCache:
    """Slot s of a layer is position s % block_size of block s // block_size.

    Kwon et al. 2023 (arXiv:2309.06180): a sequence owns blocks, not a stretch of memory, so
    sequences with a common prefix share its blocks.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        kv_heads, dim = config.num_kv_heads, config.head_dim
        shape = (config.num_layers, num_blocks, block_size, kv_heads, dim)
        # Zeros, not empty: masked positions are multiplied by 0, which a stray NaN survives.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store k and v (T, K, D) at `slots`, int64 (T,), of one layer."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, k)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, v)

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """k and v (N, S, K, D) at `slots`, int64 (N, S), of one layer."""
        keys, values = self.keys[layer].flatten(0, 1), self.values[layer].flatten(0, 1)
        return keys[slots], values[slots]

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers."""
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]


@dataclass(frozen=True)
class _Group:
    """N sequences with Q new tokens each that attend over S gathered cache slots.

    rows: int64 (N, Q), which rows of the step. slots: int64 (N, S). mask: bool (N, Q, S).
    """

    rows: torch.Tensor
    slots: torch.Tensor
    mask: torch.Tensor


class TorchRunner:
    """Runs a `Transformer` over a paged cache (the `Runner` protocol).

    max_context: the longest sequence this runner will see; it only matters to LongRoPE models
    (Phi-3/4), whose keys in the cache are rotated for either short or long contexts. Beyond the
    model's original context the long factors are used, for short sequences too. Default: the
    original context, which gives what the model gives without a cache. `context_length` says
    how long a sequence may be.
    """

    def __init__(
        self,
        transformer: Transformer,
        num_blocks: int,
        block_size: int = 64,
        max_context: int | None = None,
    ) -> None:
        self.config = transformer.config
        self.block_size, self.num_blocks = block_size, num_blocks
        self.device = transformer.device
        self._transformer = transformer
        self._long = max_context is not None and needs_long_factors(self.config, max_context)
        self.context_length = self.config.max_position if self._long else short_context(self.config)
        dtype = transformer.dtype
        self._cache = PagedCache(self.config, num_blocks, block_size, dtype, self.device)

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> torch.Tensor:
        """Logits fp32 (R, V) of the wanted rows; see `StepBatch`."""
        self._check(batch)
        positions, slots = _rows(batch, self.block_size)
        window = self.config.sliding_window if any(self._transformer.slides) else None
        full = [] if all(self._transformer.slides) else self._groups(batch, None)
        local = [] if window is None else self._groups(batch, window)
        new_slots = self._put(slots)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self._cache.write(layer, new_slots, k, v)
            out = torch.empty_like(q)  # (T, H, D)
            for group in local if self._transformer.slides[layer] else full:
                keys, values = self._cache.read(layer, group.slots)
                attended = self._transformer.attend(q[group.rows], keys, values, group.mask)
                out[group.rows] = attended
            return out

        ids = self._put(batch.token_ids.astype(np.int64))
        hidden = self._transformer.run(ids, self._put(positions), attend, self._long)  # (T, C)
        return self._transformer.logits(hidden[self._put(batch.logit_rows.astype(np.int64))])

    def copy_block(self, source: int, target: int) -> None:
        """Copy one cache block in all layers."""
        self._cache.copy_block(source, target)

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _check(self, batch: StepBatch) -> None:
        totals = batch.context_lens + np.diff(batch.query_starts)
        longest = int(totals.max())
        if longest > batch.block_tables.shape[1] * self.block_size:
            raise ValueError(f"block tables do not cover {longest} positions")
        if batch.block_tables.min() < 0 or batch.block_tables.max() >= self.num_blocks:
            raise ValueError(f"block tables name blocks beyond {self.num_blocks}")
        if not self._long and needs_long_factors(self.config, longest):
            raise AprError(
                f"a sequence of {longest} tokens is longer than the {self.context_length} of the "
                "model's original context",
                f"load it with a context of {longest} or more to use its long rotary factors",
            )

    def _groups(self, batch: StepBatch, window: int | None) -> list[_Group]:
        """Split the sequences of a step into groups, for layers that see `window` positions."""
        counts = np.diff(batch.query_starts).astype(np.int64)
        contexts = batch.context_lens.astype(np.int64)
        # The first block a sequence's oldest visible position lies in, and how many follow.
        oldest = np.zeros_like(contexts) if window is None else contexts - window + 1
        first = np.maximum(oldest, 0) // self.block_size
        spans = -(-(contexts + counts) // self.block_size) - first
        members: dict[tuple[int, int], list[int]] = {}
        for i, (count, span) in enumerate(zip(counts.tolist(), spans.tolist(), strict=True)):
            if count == 1:
                # A power of two that depends on the sequence alone: the shape of its products,
                # and so their rounding, does not change with the company it keeps.
                members.setdefault((-1, 1 << (span - 1).bit_length()), []).append(i)
            elif count > 1:
                members[(i, span)] = [i]
        return [
            self._group(batch, np.array(who), first[who], span, window)
            for (_, span), who in members.items()
        ]

    def _group(
        self,
        batch: StepBatch,
        who: np.ndarray,
        first: np.ndarray,
        span: int,
        window: int | None,
    ) -> _Group:
        starts = batch.query_starts.astype(np.int64)
        new = np.arange(starts[who[0] + 1] - starts[who[0]])  # (Q,)
        blocks = first[:, None] + np.arange(span)  # (N, span); past the table: masked below
        columns = np.minimum(blocks, batch.block_tables.shape[1] - 1)
        tables = self._put(batch.block_tables[who[:, None], columns])
        offsets = np.arange(span * self.block_size)
        key_positions = self._put(first[:, None] * self.block_size + offsets)
        query_positions = self._put(batch.context_lens[who, None].astype(np.int64) + new)
        return _Group(
            rows=self._put(starts[who][:, None] + new),
            slots=reference.paged_slots(tables, self.block_size),
            mask=reference.causal_mask(query_positions, key_positions, window),
        )


def _rows(batch: StepBatch, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Position and cache slot of every new token, int64 (T,) each."""
    starts = batch.query_starts.astype(np.int64)
    counts = np.diff(starts)
    sequence = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(starts[-1]) - starts[sequence] + batch.context_lens[sequence]
    blocks = batch.block_tables[sequence, positions // block_size].astype(np.int64)
    return positions, blocks * block_size + positions % block_size
