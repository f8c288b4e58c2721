"""A model whose whole forward step is one compiled call on the CPU, in bf16.

Matrices are packed once into the panels of `apr.kernels.cpu`: floats as bf16, quantized blocks of a
GGUF file as they are. The residual stream, norms, rotary embedding, softmax and all sums are fp32.
Results of a row never depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from apr.common.errors import AprError
from apr.engine.runners.runner import StepBatch
from apr.kernels.cpu import network
from apr.kernels.cpu.attention import TILE_ROWS
from apr.kernels.cpu.blocks import KINDS
from apr.kernels.cpu.matmul import WIDE
from apr.kernels.cpu.microkernel import PANEL
from apr.kernels.cpu.packing import Arena, aligned_zeros, pack_panels, padded
from apr.kernels.cpu.panels import Panels, block_panels, dense_panels, gains, joined, thin_panels
from apr.kernels.cpu.threads import Team, default_threads
from apr.model.config import ModelConfig
from apr.model.rope import inverse_frequencies
from apr.model.weights import Blocks, Dense

# Part of a matrix that must be zero for it to be kept without zeros, and the step between rows that
# are looked at first.
LEAST_ZEROS = 0.3
_SAMPLED_ROWS = 64
BLOCK_SIZE = PANEL  # positions per cache block: one panel of keys
# Tiles of a prompt longer than this are rows enough to keep the micro-kernel full.
TILE_TARGET = 24


def unsupported(config: ModelConfig) -> str | None:
    """Why this network cannot run compiled, or None. The torch runner has no such limits."""
    if config.logit_softcap is not None or config.attention_softcap is not None:
        return "soft-capped logits"
    if config.rope_scaling is not None and config.rope_scaling.kind == "longrope":
        return "longrope, whose frequencies change with the length of the sequence"
    if config.head_dim % 2 or config.num_heads // config.num_kv_heads > TILE_ROWS:
        return "its attention head shape"
    return None


def block_bytes(config: ModelConfig) -> int:
    """Bytes of one cache block: keys, and values padded to whole panels, in every layer."""
    per_position = config.num_layers * config.num_kv_heads
    return 2 * per_position * BLOCK_SIZE * (config.head_dim + padded(config.head_dim))


class PackedWeights:
    """The weights of one model in panels, shared by every runner made from it.

    read: a weight by its Hugging Face name. sparse: leave zeros out where enough of a matrix is
    zero; None where this machine gains by it. Results are the same, bit by bit. nbytes: read from
    memory for one decoding step (all matrices, output layer included).
    """

    def __init__(
        self,
        config: ModelConfig,
        read: Callable[[str], Dense | Blocks | torch.Tensor],
        sparse: bool | None = None,
    ) -> None:
        reason = unsupported(config)
        if reason is not None:
            raise AprError(f"compiled CPU kernels do not support {reason}", "use APR_KERNELS=torch")
        c, layers = config, range(config.num_layers)
        self.config, self._read, self._sparse = config, read, sparse
        self._arena = Arena()
        self.matrices = [matrix for index in layers for matrix in self._layer(index)]
        self.embedding = self.head = self._matrix("model.embed_tokens.weight")
        if not c.tie_embeddings:
            self.head = self._matrix("lm_head.weight")
        self.nbytes = sum(matrix.nbytes for matrix in (*self.matrices, self.head))
        self.norms = np.zeros((c.num_layers, 4, c.hidden_size), np.float32)
        self.qk_norms = np.zeros((c.num_layers, 2, c.head_dim), np.float32)
        self.bias = np.zeros((c.num_layers, PANEL * len(self.matrices[0].table)), np.float32)
        self.final_norm = self._norm("model.norm")
        for index in layers:
            self._place_vectors(index, f"model.layers.{index}.")
        del self._read, self._arena

    def _layer(self, index: int) -> tuple[Panels, Panels, Panels, Panels]:
        """In the order of `network.QKV` to `network.DOWN`."""
        attention, mlp = (f"model.layers.{index}.{part}." for part in ("self_attn", "mlp"))
        if self.config.fused_projections:
            qkv = self._matrix(f"{attention}qkv_proj.weight")
            both, size = self._get(f"{mlp}gate_up_proj.weight"), self.config.intermediate_size
            parts = [self._panels(both.rows(slice(i, i + size))) for i in (0, size)]
        else:
            qkv = self._matrix(*(f"{attention}{part}_proj.weight" for part in "qkv"))
            parts = [self._matrix(f"{mlp}{part}_proj.weight") for part in ("gate", "up")]
        output = self._matrix(f"{attention}o_proj.weight")
        down = self._matrix(f"{mlp}down_proj.weight")
        return qkv, output, joined(*parts, alternate=True), down

    def _place_vectors(self, index: int, prefix: str) -> None:
        c, norms = self.config, self.norms[index]
        norms[network.NORM_INPUT] = self._norm(f"{prefix}input_layernorm")
        behind = self._norm(f"{prefix}post_attention_layernorm")
        norms[network.NORM_ATTENTION_OUT if c.sandwich_norms else network.NORM_MLP] = behind
        if c.sandwich_norms:
            norms[network.NORM_MLP] = self._norm(f"{prefix}pre_feedforward_layernorm")
            norms[network.NORM_MLP_OUT] = self._norm(f"{prefix}post_feedforward_layernorm")
        attention = f"{prefix}self_attn."
        if c.qk_norm:
            for i, part in enumerate("qk"):
                self.qk_norms[index, i] = self._norm(f"{attention}{part}_norm")
        if c.qkv_bias:
            parts = [self._get(f"{attention}{part}_proj.bias") for part in "qkv"]
            bias = torch.cat([_floats(part) for part in parts]).float()
            self.bias[index, : len(bias)] = bias.numpy()

    def _norm(self, module: str) -> np.ndarray:
        weight = _floats(self._get(f"{module}.weight")).float()
        return (weight + self.config.norm_offset).numpy()

    def _get(self, name: str) -> Dense | Blocks:
        found = self._read(name)
        return Dense(found) if isinstance(found, torch.Tensor) else found

    def _matrix(self, *names: str) -> Panels:
        """Matrices below one another, each in its own form unless a panel would hold two."""
        parts = [self._get(name) for name in names]
        if all(part.shape[0] % PANEL == 0 for part in parts[:-1]):
            return joined(*map(self._panels, parts))
        return self._panels(Dense(torch.cat([_floats(part) for part in parts])))

    def _panels(self, matrix: Dense | Blocks) -> Panels:
        if isinstance(matrix, Blocks) and matrix.kind in KINDS:
            found = block_panels(matrix.data, matrix.kind, self._arena.zeros)
            if found is not None:
                return found
        numbers = _floats(matrix)
        if self._worth_thinning(numbers):
            return thin_panels(pack_panels(numbers), self._arena.zeros)
        return dense_panels(pack_panels(numbers, self._arena.zeros))

    def _worth_thinning(self, weight: torch.Tensor) -> bool:
        if self._sparse is False:
            return False
        # A few rows tell most models, which have hardly a zero.
        for step in (_SAMPLED_ROWS, 1):
            looked_at = weight[::step]
            zeros = looked_at.numel() - int(looked_at.count_nonzero())
            if zeros < LEAST_ZEROS * looked_at.numel():
                return False
            if self._sparse is None and not gains(default_threads()):
                return False
        return True

    def shape(self) -> network.Shape:
        c = self.config
        scale = c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale
        qkv, output, gate_up, _ = self.matrices[:4]
        return network.Shape(
            layers=c.num_layers,
            hidden=c.hidden_size,
            heads=c.num_heads,
            kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            value_dim=padded(c.head_dim),
            qkv_panels=len(qkv.table),
            hidden_panels=len(output.table),
            ffn_panels=len(gate_up.table) // 2,
            vocab_panels=len(self.head.table),
            biased=int(c.qkv_bias),
            qk_norm=int(c.qk_norm),
            sandwich=int(c.sandwich_norms),
            gelu=int(c.activation == "gelu_tanh"),
            eps=float(c.norm_eps),
            scale=float(scale),
            embedding_scale=float(c.embedding_scale),
        )

    def weights(self) -> network.Weights:
        c = self.config
        sliding = c.sliding_layers or (False,) * c.num_layers
        windows = [(c.sliding_window or 0) if slides else 0 for slides in sliding]
        local = c.rope_local_theta is not None
        tables = [matrix.table for matrix in (*self.matrices, self.embedding, self.head)]
        starts = np.cumsum([0, *(len(table) for table in tables)])
        return network.Weights(
            panels=np.concatenate(tables),
            matrices=starts[: 4 * c.num_layers].reshape(-1, 4),
            embedding=int(starts[-3]),
            head=int(starts[-2]),
            norms=self.norms,
            qk_norms=self.qk_norms,
            bias=self.bias,
            final_norm=self.final_norm,
            windows=np.array(windows, np.int64),
            ropes=np.array([int(local and slides) for slides in sliding], np.int64),
        )


def _floats(matrix: Dense | Blocks) -> torch.Tensor:
    """As the file has them, or in bf16 where it has blocks."""
    return matrix.tensor if isinstance(matrix, Dense) else matrix.numbers(torch.bfloat16)


class CompiledRunner:
    """Runs packed weights over a paged cache (the `Runner` protocol)."""

    block_size = BLOCK_SIZE
    device = torch.device("cpu")

    def __init__(self, packed: PackedWeights, num_blocks: int, threads: int | None = None) -> None:
        self.config = packed.config
        self.num_blocks = num_blocks
        self._packed = packed  # owns the memory behind the addresses in self._weights
        self._shape, self._weights = packed.shape(), packed.weights()
        self._rope = RopeTables(packed.config)
        self._team = Team(threads or default_threads())
        c, value_dim = self.config, self._shape.value_dim
        head_blocks = (c.num_layers, num_blocks, c.num_kv_heads)
        self._cache = network.Cache(
            keys=aligned_zeros((*head_blocks, c.head_dim // 2, PANEL, 2), np.uint16),
            values=aligned_zeros(
                (*head_blocks, value_dim // PANEL, PANEL // 2, PANEL, 2), np.uint16
            ),
        )
        self._scratch: network.Scratch | None = None

    def forward(self, batch: StepBatch) -> torch.Tensor:
        """Logits fp32 (R, V) of the wanted rows, valid until the next call; see `StepBatch`."""
        rows, wanted = len(batch.token_ids), len(batch.logit_rows)
        if not np.all(batch.logit_rows[1:] > batch.logit_rows[:-1]):
            raise ValueError("logit_rows must ascend")
        # Barriers of its own: should the wait for the step before have been interrupted, that one
        # still uses its own.
        sync = aligned_zeros((8 + 8 * self._shape.layers,), np.int64)
        scratch = self._room(rows, wanted)._replace(sync=sync)
        inputs = step_inputs(batch, self._rope, self.config)
        step = (self._shape, self._weights, inputs, self._cache, scratch)
        self._team.run(network.step, *step, keep=self._packed)
        return torch.from_numpy(scratch.logits[:wanted, : self.config.vocab_size])

    def copy_block(self, source: int, target: int) -> None:
        """Copy one cache block in all layers."""
        self._cache.keys[:, target] = self._cache.keys[:, source]
        self._cache.values[:, target] = self._cache.values[:, source]

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def _room(self, rows: int, wanted: int) -> network.Scratch:
        """Scratch for a step of `rows` tokens and `wanted` rows of logits, kept between steps."""
        have = self._scratch
        if have is not None and have.stream.shape[0] >= rows and have.logits.shape[0] >= wanted:
            return have
        if have is not None:
            rows, wanted = max(rows, have.stream.shape[0]), max(wanted, have.logits.shape[0])
        s, threads = self._shape, self._team.threads
        widened = bool(self._weights.panels[:, 1].any())
        self._scratch = network.Scratch(
            stream=aligned_zeros((rows, s.hidden), np.float32),
            normed=aligned_zeros((rows, PANEL * s.hidden_panels), np.uint16),
            qkv=aligned_zeros((rows, PANEL * s.qkv_panels), np.float32),
            queries=aligned_zeros((rows * s.heads * s.head_dim,), np.uint16),
            attended=aligned_zeros((rows, padded(s.heads * s.head_dim)), np.uint16),
            inner=aligned_zeros((rows, PANEL * s.ffn_panels), np.uint16),
            update=aligned_zeros((rows, PANEL * s.hidden_panels), np.float32),
            logits=aligned_zeros((max(1, wanted), PANEL * s.vocab_panels), np.float32),
            gates=aligned_zeros((threads, 2, max(6, rows) if widened else 6, PANEL), np.float32),
            wide=aligned_zeros((threads, WIDE), np.uint16),
            scores=aligned_zeros((threads, TILE_ROWS, PANEL), np.float32),
            probabilities=aligned_zeros((threads, TILE_ROWS, PANEL), np.uint16),
            totals=aligned_zeros((threads, TILE_ROWS, s.value_dim), np.float32),
            tops=aligned_zeros((threads, TILE_ROWS, 1), np.float32),
            norms=aligned_zeros((threads, TILE_ROWS, 1), np.float32),
            sync=np.zeros(0, np.int64),  # one for each step
        )
        return self._scratch


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


def step_inputs(batch: StepBatch, rope: RopeTables, config: ModelConfig) -> network.Inputs:
    """Expand per-sequence numbers to rows and cut each sequence's new tokens into tiles."""
    starts = batch.query_starts.astype(np.int64)
    counts = np.diff(starts)
    sequences = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    offsets = (batch.context_lens - starts[:-1]).astype(np.int32)
    positions = np.arange(len(batch.token_ids), dtype=np.int32) + offsets[sequences]
    cos, sin = rope.at(positions)
    return network.Inputs(
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
