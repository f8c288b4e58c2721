"""Turn a `StepBatch` into the arrays a compiled step reads: positions, rotary tables, tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apr.kernels.cpu.attention import TILE_ROWS
from apr.kernels.cpu.network import Inputs
from apr.model.config import ModelConfig
from apr.model.rope import inverse_frequencies
from apr.model.runner import StepBatch

# Tiles of a prompt longer than this are rows enough to keep the micro-kernel full.
TILE_TARGET = 24


@dataclass(frozen=True)
class RopeTables:
    """Rotary frequencies (fp32, rotary/2) of the full-attention and the sliding-window layers,
    and the factor that multiplies cos and sin (YaRN, eq. 22).
    """

    global_frequencies: np.ndarray
    local_frequencies: np.ndarray
    attention_factor: float = 1.0

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """cos, sin: fp32 (2, T, rotary/2), the full-attention layers' first."""
        both = np.stack([self.global_frequencies, self.local_frequencies])
        angles = positions.astype(np.float32)[None, :, None] * both[:, None, :]
        factor = np.array([self.attention_factor, 1.0], np.float32)[:, None, None]
        return np.cos(angles) * factor, np.sin(angles) * factor


def rope_tables(config: ModelConfig) -> RopeTables:
    """The model's frequencies (see `apr.model.rope`)."""
    everywhere, factor = inverse_frequencies(config)
    local, _ = inverse_frequencies(config, local=True)
    return RopeTables(everywhere.numpy(), local.numpy(), factor)


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
