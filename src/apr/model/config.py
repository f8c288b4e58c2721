"""One frozen description of every decoder-only family `apr` knows: differences are fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    kind: "linear" (positions / factor), "llama3" (Llama 3.1: by wavelength band),
    "yarn" (Peng et al. 2023, arXiv:2309.00071), "longrope" (Ding et al. 2024: per-frequency
    factors, as in Phi-3/4). All but "linear" need `original_max_position`.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float = 1.0
    original_max_position: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    # None: what the method prescribes for `factor` (see `apr.model.rope`).
    attention_factor: float | None = None
    truncate: bool = True  # yarn: round the ends of the ramp to whole frequencies
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer, independent of the file format it came from.

    Shape letters used in the code base: B batch, T new tokens, S cached length, H query heads,
    K key/value heads, D head dimension, C hidden size, F feed-forward size, V vocabulary.
    """

    family: str  # "llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    # Gemma 3 rotates its sliding-window layers with another base and without scaling.
    rope_local_theta: float | None = None
    rotary_dim: int | None = None  # partial rotary (Phi-4-mini); None: the whole head
    activation: Literal["silu", "gelu_tanh"] = "silu"
    tie_embeddings: bool = False
    qkv_bias: bool = False
    fused_projections: bool = False  # Phi-3: one qkv_proj and one gate_up_proj
    qk_norm: bool = False
    norm_offset: float = 0.0  # Gemma multiplies by (1 + weight)
    sandwich_norms: bool = False  # Gemma: a norm after attention and after the MLP as well
    embedding_scale: float = 1.0  # Gemma: sqrt(hidden_size)
    attention_scale: float | None = None  # None: head_dim ** -0.5
    sliding_window: int | None = None
    # One entry a layer, True where a query sees `sliding_window` positions, itself included.
    sliding_layers: tuple[bool, ...] | None = None
    logit_softcap: float | None = None
    attention_softcap: float | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
