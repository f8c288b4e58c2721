"""A model whose whole forward step is one compiled call on the CPU, in bf16.

Weights are packed once into the panels of `apr.kernels.cpu`; the residual stream, norms, rotary
embedding, softmax and all sums are fp32. Results of a row never depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from apr.common.errors import AprError
from apr.engine.runners.runner import StepBatch
from apr.engine.runners.step_inputs import RopeTables, step_inputs
from apr.kernels.cpu import network
from apr.kernels.cpu.attention import TILE_ROWS
from apr.kernels.cpu.packing import aligned_zeros, pack_panels, padded
from apr.kernels.cpu.sparse import SHUFFLES, WIDE, gains, without_zeros
from apr.kernels.cpu.threads import Team, default_threads
from apr.model.config import ModelConfig

PANEL = 64
# Part of a matrix that must be zero for it to be kept without zeros, and the step between rows that
# are looked at first.
LEAST_ZEROS = 0.3
_SAMPLED_ROWS = 64
BLOCK_SIZE = PANEL  # positions per cache block: one panel of keys


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

    sparse: leave zeros out where enough of a matrix is zero; None where this machine gains by it.
    Results are the same, bit by bit.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Iterable[tuple[str, torch.Tensor]],
        sparse: bool | None = None,
    ) -> None:
        reason = unsupported(config)
        if reason is not None:
            raise AprError(f"compiled CPU kernels do not support {reason}", "use APR_KERNELS=torch")
        self.config, self._sparse = config, sparse
        layers, hidden, dim = config.num_layers, config.hidden_size, config.head_dim
        kv = config.num_kv_heads * dim
        self._q_rows, self._kv_rows = config.num_heads * dim, kv
        qkv, k = padded(self._q_rows + 2 * kv), padded(hidden)
        attended, ffn = padded(self._q_rows), padded(config.intermediate_size)
        self.qkv = aligned_zeros((layers, qkv // PANEL, k // 2, PANEL, 2), np.uint16)
        self.output = aligned_zeros((layers, k // PANEL, attended // 2, PANEL, 2), np.uint16)
        self.gate_up = aligned_zeros((layers, ffn // PANEL, 2, k // 2, PANEL, 2), np.uint16)
        self.down = aligned_zeros((layers, k // PANEL, ffn // 2, PANEL, 2), np.uint16)
        vocab = padded(config.vocab_size)
        self.head = aligned_zeros((vocab // PANEL, k // 2, PANEL, 2), np.uint16)
        self.norms = np.zeros((layers, 4, hidden), np.float32)
        self.qk_norms = np.zeros((layers, 2, dim), np.float32)
        self.bias = np.zeros((layers, qkv), np.float32)
        self.final_norm = np.zeros(hidden, np.float32)
        self.embedding = np.zeros((1, 1), np.uint16)
        # What stands in place of a matrix: it without its zeros.
        self.thin: dict[tuple[int, int], np.ndarray] = {}
        # q, k and v meet in one matrix; they arrive one by one and wait here for the others.
        self._parts: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
        for name, tensor in tensors:
            self._place(name, tensor)
        if self._parts:
            layer, kind = next(iter(self._parts))
            raise AprError(f"layer {layer} lacks a part of its {kind} weights")

    @property
    def nbytes(self) -> int:
        """Bytes read from memory for one decoding step (packed matrices, output layer included)."""
        dense = sum(
            array[layer].nbytes
            for which, array in enumerate(self._matrices())
            for layer in range(self.config.num_layers)
            if (layer, which) not in self.thin
        )
        return dense + sum(array.nbytes for array in self.thin.values()) + self.head.nbytes

    def _matrices(self) -> tuple[np.ndarray, ...]:
        """In the order of their numbers in `network`."""
        return self.qkv, self.output, self.gate_up, self.down

    def _place(self, name: str, tensor: torch.Tensor) -> None:
        if name == "model.embed_tokens.weight":
            if self.config.tie_embeddings:
                pack_panels(tensor, self.head)
            else:
                self.embedding = tensor.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
            return
        if name == "lm_head.weight":
            if not self.config.tie_embeddings:
                pack_panels(tensor, self.head)
            return
        if name == "model.norm.weight":
            self.final_norm[:] = self._norm(tensor)
            return
        _, _, index, rest = name.split(".", 3)
        self._place_layer(int(index), rest, tensor)

    def _norm(self, tensor: torch.Tensor) -> np.ndarray:
        return (tensor.float() + self.config.norm_offset).numpy()

    def _place_layer(self, layer: int, name: str, tensor: torch.Tensor) -> None:
        sandwich = self.config.sandwich_norms
        norm_rows = {
            "input_layernorm.weight": network.NORM_INPUT,
            "post_attention_layernorm.weight": (
                network.NORM_ATTENTION_OUT if sandwich else network.NORM_MLP
            ),
            "pre_feedforward_layernorm.weight": network.NORM_MLP,
            "post_feedforward_layernorm.weight": network.NORM_MLP_OUT,
        }
        module, _, kind = name.rpartition(".")
        if name in norm_rows:
            self.norms[layer, norm_rows[name]] = self._norm(tensor)
        elif module in ("self_attn.q_norm", "self_attn.k_norm"):
            self.qk_norms[layer, int(module.endswith("k_norm"))] = self._norm(tensor)
        elif module == "self_attn.o_proj":
            self._pack(layer, network.OUTPUT, tensor)
        elif module == "mlp.down_proj":
            self._pack(layer, network.DOWN, tensor)
        elif module == "self_attn.qkv_proj" and kind == "weight":
            self._pack(layer, network.QKV, tensor)
        elif module == "mlp.gate_up_proj":
            gate, up = tensor.chunk(2, dim=0)
            self._pack(layer, network.GATE_UP, gate, up)
        elif module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            parts = self._gather(layer, f"qkv {kind}", module[-6], tensor, 3)
            if parts and kind == "bias":
                joined = torch.cat([parts[p] for p in "qkv"]).float().numpy()
                self.bias[layer, : joined.shape[0]] = joined
            elif parts:
                self._pack(layer, network.QKV, torch.cat([parts[p] for p in "qkv"]))
        elif module in ("mlp.gate_proj", "mlp.up_proj"):
            parts = self._gather(layer, "mlp", module[4:-5], tensor, 2)
            if parts:
                self._pack(layer, network.GATE_UP, parts["gate"], parts["up"])
        else:
            raise AprError(f"tensor model.layers.{layer}.{name} has no place in a compiled model")

    def _gather(
        self, layer: int, kind: str, part: str, tensor: torch.Tensor, count: int
    ) -> dict[str, torch.Tensor] | None:
        parts = self._parts.setdefault((layer, kind), {})
        parts[part] = tensor
        return self._parts.pop((layer, kind)) if len(parts) == count else None

    def _pack(self, layer: int, which: int, *parts: torch.Tensor) -> None:
        """One matrix into its panels, or two whose panels alternate; without zeros if that gains.

        What is left out of the dense array is memory that is never touched, so never taken.
        """
        target = self._matrices()[which][layer]
        thin = self._worth_thinning(parts)
        room = aligned_zeros(target.shape, np.uint16) if thin else target
        if len(parts) == 1:
            pack_panels(parts[0], room)
        else:
            for place, part in enumerate(parts):
                room[:, place] = pack_panels(part)
        if thin:
            self.thin[layer, which] = without_zeros(room.reshape(-1, *room.shape[-3:]))

    def _worth_thinning(self, parts: tuple[torch.Tensor, ...]) -> bool:
        if self._sparse is False:
            return False
        # A few rows tell most models, which have hardly a zero.
        for step in (_SAMPLED_ROWS, 1):
            looked_at = [part[::step] for part in parts]
            zeros = sum(part.numel() - int(part.count_nonzero()) for part in looked_at)
            if zeros < LEAST_ZEROS * sum(part.numel() for part in looked_at):
                return False
            if self._sparse is None and not gains(default_threads()):
                return False
        return True

    def shape(self) -> network.Shape:
        c = self.config
        scale = c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale
        return network.Shape(
            layers=c.num_layers,
            hidden=c.hidden_size,
            heads=c.num_heads,
            kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            value_dim=padded(c.head_dim),
            qkv_panels=self.qkv.shape[1],
            hidden_panels=self.output.shape[1],
            ffn_panels=self.gate_up.shape[1],
            vocab_panels=self.head.shape[0],
            tied=int(c.tie_embeddings),
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
        matrices = np.array(
            [
                [self.thin.get((i, n), m[i]).ctypes.data for n, m in enumerate(self._matrices())]
                for i in range(c.num_layers)
            ],
            dtype=np.int64,
        )
        sparse = np.zeros_like(matrices)
        for place in self.thin:
            sparse[place] = 1
        sliding = c.sliding_layers or (False,) * c.num_layers
        windows = [(c.sliding_window or 0) if slides else 0 for slides in sliding]
        local = c.rope_local_theta is not None
        ropes = [int(local and slides) for slides in sliding]
        return network.Weights(
            matrices=matrices,
            sparse=sparse,
            shuffles=SHUFFLES,
            norms=self.norms,
            qk_norms=self.qk_norms,
            bias=self.bias,
            final_norm=self.final_norm,
            head=self.head,
            embedding=self.embedding,
            windows=np.array(windows, np.int64),
            ropes=np.array(ropes, np.int64),
        )


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
        s, threads, thin = self._shape, self._team.threads, bool(self._packed.thin)
        self._scratch = network.Scratch(
            stream=aligned_zeros((rows, s.hidden), np.float32),
            normed=aligned_zeros((rows, PANEL * s.hidden_panels), np.uint16),
            qkv=aligned_zeros((rows, PANEL * s.qkv_panels), np.float32),
            queries=aligned_zeros((rows * s.heads * s.head_dim,), np.uint16),
            attended=aligned_zeros((rows, padded(s.heads * s.head_dim)), np.uint16),
            inner=aligned_zeros((rows, PANEL * s.ffn_panels), np.uint16),
            update=aligned_zeros((rows, PANEL * s.hidden_panels), np.float32),
            logits=aligned_zeros((max(1, wanted), PANEL * s.vocab_panels), np.float32),
            gates=aligned_zeros((threads, 2, max(6, rows) if thin else 6, PANEL), np.float32),
            wide=aligned_zeros((threads, WIDE if thin else 0), np.uint16),
            scores=aligned_zeros((threads, TILE_ROWS, PANEL), np.float32),
            probabilities=aligned_zeros((threads, TILE_ROWS, PANEL), np.uint16),
            totals=aligned_zeros((threads, TILE_ROWS, s.value_dim), np.float32),
            tops=aligned_zeros((threads, TILE_ROWS, 1), np.float32),
            norms=aligned_zeros((threads, TILE_ROWS, 1), np.float32),
            sync=np.zeros(0, np.int64),  # one for each step
        )
        return self._scratch
