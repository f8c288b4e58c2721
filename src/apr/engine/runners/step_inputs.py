"""Turn a `StepBatch` into the arrays a compiled step reads: positions, rotary tables, tiles."""

from __future__ import annotations

import numpy as np

from apr.engine.runners.runner import StepBatch
from apr.kernels.cpu.attention import TILE_ROWS
from apr.kernels.cpu.network import Inputs
from apr.model.config import ModelConfig
from apr.model.rope import inverse_frequencies

# Tiles of a prompt longer than this are rows enough to keep the micro-kernel full.
TILE_TARGET = 24


class RopeTables:
    """cos and sin of every position so far asked for, in fp32.

    One table, or two where sliding-window layers rotate with frequencies of their own (Gemma 3):
    the full-attention layers' first.
    """

    def __init__(self, config: ModelConfig) -> None:
        frequencies, factor = inverse_frequencies(config)
        self._frequencies, self._factors = [frequencies.numpy()], [factor]
        if config.rope_local_theta is not None:
            local, local_factor = inverse_frequencies(config, local=True)
            self._frequencies.append(local.numpy())
            self._factors.append(local_factor)
        self._grow(1024)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """cos, sin: fp32 (tables, T, rotary / 2) of int32 positions (T,)."""
        longest = int(positions.max())
        if longest >= self._cos.shape[1]:
            self._grow(max(longest + 1, 2 * self._cos.shape[1]))
        return self._cos[:, positions], self._sin[:, positions]

    def _grow(self, length: int) -> None:
        angles = np.arange(length, dtype=np.float32)[None, :, None]
        angles = angles * np.stack(self._frequencies)[:, None, :]
        factors = np.array(self._factors, np.float32)[:, None, None]
        self._cos, self._sin = np.cos(angles) * factors, np.sin(angles) * factors


def step_inputs(batch: StepBatch, rope: RopeTables, config: ModelConfig) -> Inputs:
    """Expand per-sequence numbers to rows and cut each sequence's new tokens into tiles."""
    starts = batch.query_starts.astype(np.int64)
    counts = np.diff(starts)
    sequences = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    offsets = (batch.context_lens - starts[:-1]).astype(np.int32)
    positions = np.arange(len(batch.token_ids), dtype=np.int32) + offsets[sequences]
    cos, sin = rope.at(positions)
    return Inputs(
        token_ids=np.ascontiguousarray(batch.token_ids, np.int32),
        positions=positions,
        sequences=sequences,
        tables=np.ascontiguousarray(batch.block_tables, np.int32),
        tiles=_tiles(starts, counts, config.num_heads // config.num_kv_heads),
        cos=cos,
        sin=sin,
        logit_rows=np.ascontiguousarray(batch.logit_rows, np.int32),
    )


def _tiles(starts: np.ndarray, counts: np.ndarray, group: int) -> np.ndarray:
    """int32 (U, 3): sequence, first row, tokens; at most TILE_ROWS query rows each."""
    size = max(1, min(TILE_TARGET, TILE_ROWS) // group)
    per_sequence = -(-counts // size)
    sequence = np.repeat(np.arange(len(counts)), per_sequence)
    first_tile = np.cumsum(per_sequence) - per_sequence
    index = np.arange(len(sequence)) - first_tile[sequence]
    first = starts[sequence] + index * size
    tokens = np.minimum(size, starts[sequence + 1] - first)
    return np.stack([sequence, first, tokens], axis=1).astype(np.int32)
