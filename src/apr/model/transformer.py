"""The transformer: every family `ModelConfig` describes, in one file.

Shape letters: B batch, T tokens, S keys, H query heads, K key/value heads, D head dimension,
C hidden size, F feed-forward size, V vocabulary. `...` is (B,) in the dense form (whole sequences,
no cache: training, scoring, tests) and () in the ragged form (`TorchRunner`: the new tokens of
many sequences one after another). Both forms run the same layers and differ in `Attend` only.

Parameters have the names and shapes of Hugging Face checkpoints. Norms, rotary embedding, softmax
and logits are computed in fp32 whatever the dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import groupby, pairwise

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from apr.kernels import differentiable, ops, reference
from apr.model.config import ModelConfig
from apr.model.rope import inverse_frequencies, needs_long_factors
from apr.model.weights import Embedding, Linear, Nf4

# (layer, q (..., T, H, D), k (..., T, K, D), v (..., T, K, D)) -> (..., T, H, D)
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Tables = tuple[torch.Tensor, torch.Tensor]  # cos, sin: fp32 (..., T, R / 2)


class RMSNorm(nn.Module):
    """Root mean square norm; the weight's neutral value is 1 - offset."""

    def __init__(self, size: int, eps: float, offset: float) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return differentiable.rms_norm(x, self.weight, self.eps, self.offset)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) with rotary positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.fused = layer, config.head_dim, config.fused_projections
        self.q_size = config.num_heads * config.head_dim
        self.kv_size = config.num_kv_heads * config.head_dim
        hidden, bias = config.hidden_size, config.qkv_bias
        if self.fused:
            self.qkv_proj = Linear(hidden, self.q_size + 2 * self.kv_size, bias=bias)
        else:
            self.q_proj = Linear(hidden, self.q_size, bias=bias)
            self.k_proj = Linear(hidden, self.kv_size, bias=bias)
            self.v_proj = Linear(hidden, self.kv_size, bias=bias)
        self.o_proj = Linear(self.q_size, hidden, bias=False)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps, config.norm_offset)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps, config.norm_offset)

    def forward(self, x: torch.Tensor, tables: Tables, attend: Attend) -> torch.Tensor:
        return self.o_proj(self.heads(x, tables, attend))  # (..., T, C)

    def heads(self, x: torch.Tensor, tables: Tables, attend: Attend) -> torch.Tensor:
        """What the heads give, side by side, before o_proj joins them: (..., T, H * D)."""
        if self.fused:
            q, k, v = self.qkv_proj(x).split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))  # (..., T, H or K, D)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = differentiable.rotate(q, *tables), differentiable.rotate(k, *tables)
        return attend(self.layer, q, k, v).flatten(-2)


class MLP(nn.Module):
    """Gated feed-forward (Shazeer 2020, arXiv:2002.05202): down(act(gate x) * up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.activation, self.fused = config.activation, config.fused_projections
        if self.fused:
            self.gate_up_proj = Linear(hidden, 2 * inner, bias=False)
        else:
            self.gate_proj = Linear(hidden, inner, bias=False)
            self.up_proj = Linear(hidden, inner, bias=False)
        self.down_proj = Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.inner(x))  # (..., T, C)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """The channels between the projections: (..., T, F)."""
        if self.fused:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return differentiable.gated(gate, up, self.activation)


class Layer(nn.Module):
    """One block. With sandwich norms (Gemma), attention's and the MLP's outputs are normed too."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.norm_eps, config.norm_offset)

        self.sandwich = config.sandwich_norms
        self.self_attn = Attention(config, index)
        self.mlp = MLP(config)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        if self.sandwich:
            self.pre_feedforward_layernorm = norm()
            self.post_feedforward_layernorm = norm()

    def forward(self, x: torch.Tensor, tables: Tables, attend: Attend) -> torch.Tensor:
        x = self.add_attention(x, self.self_attn(self.input_layernorm(x), tables, attend))
        return self.add_mlp(x, self.mlp(self.mlp_input(x)))

    def add_attention(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The residual stream behind attention: x and attended are (..., T, C)."""
        return x + (self.post_attention_layernorm(attended) if self.sandwich else attended)

    def mlp_input(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream behind attention, normed for the MLP."""
        norm = self.pre_feedforward_layernorm if self.sandwich else self.post_attention_layernorm
        return norm(x)

    def add_mlp(self, x: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
        """The residual stream behind the MLP."""
        return x + (self.post_feedforward_layernorm(fed) if self.sandwich else fed)


class Decoder(nn.Module):
    """Embedding, layers and the last norm (the `model.` part of the parameter names)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, config.norm_offset)


class Transformer(nn.Module):
    """A decoder-only language model.

    Build it under `torch.device("meta")` and fill it with `apr.model.load`, or as it is for random
    weights. With tied embeddings there is no `lm_head` parameter.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None
        if not config.tie_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.slides = config.sliding_layers or (False,) * config.num_layers
        self.attention_scale = config.attention_scale or config.head_dim**-0.5

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.dtype

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.matrix.device

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits fp32 (B, T, V) of whole sequences, without a cache.

        input_ids: integers (B, T). attention_mask: (B, T), nonzero where a token is real, or
        (B, T, T), nonzero where a query may see a key (packed documents); the causal and window
        masks apply on top, and a token always sees itself. position_ids: integers (B, T),
        default 0 .. T - 1.
        """
        return self.logits(self.hidden_states(input_ids, attention_mask, position_ids))

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What `forward` computes before the output layer: (B, T, C) in the weights' dtype."""
        index = torch.arange(input_ids.shape[1], device=input_ids.device)
        positions = index.expand_as(input_ids) if position_ids is None else position_ids
        full = _dense_mask(index, attention_mask, None)
        window = self.config.sliding_window if any(self.slides) else None
        # A sequence no longer than the window sees all of itself.
        fits = window is None or input_ids.shape[1] <= window
        local = full if fits else _dense_mask(index, attention_mask, window)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return self.attend(q, k, v, local if self.slides[layer] else full)

        longest = int(positions.max()) + 1 if self.config.rope_scaling else 0
        return self.run(input_ids, positions, attend, needs_long_factors(self.config, longest))

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, T, H, D) from q (B, T, H, D), k and v (B, S, K, D), mask (B or 1, T, S) or None."""
        if self.config.attention_softcap is None:
            return reference.fused_attention(q, k, v, mask, self.attention_scale)
        if mask is None:
            index = torch.arange(q.shape[1], device=q.device)
            mask = reference.causal_mask(index, index)[None]
        cap = self.config.attention_softcap
        return reference.attention(q, k, v, mask, self.attention_scale, cap)

    def run(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        long: bool = False,
        recompute: bool = False,
    ) -> torch.Tensor:
        """All layers over tokens (..., T) at `positions` (..., T); returns (..., T, C) normed.

        attend: what attention means for these rows. long: LongRoPE's long factors. recompute: keep
        only layers' inputs for a backward pass, which runs each layer again.
        """
        x = self.embed(input_ids)
        tables = self.rotary(positions, long)
        for layer, local in zip(self.model.layers, self.slides, strict=True):
            if recompute:
                x = checkpoint(layer, x, tables[local], attend, use_reentrant=False)
            else:
                x = layer(x, tables[local], attend)
        return self.model.norm(x)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The first layer's input: (..., T, C) of ids (..., T)."""
        x = self.model.embed_tokens(input_ids)
        if self.config.embedding_scale != 1.0:
            # Rounded to the weights' dtype: that is the factor the model was trained with.
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        return x

    def rotary(self, positions: torch.Tensor, long: bool = False) -> dict[bool, Tables]:
        """Rotary tables at `positions` (..., T) of layers that slide (True) and others (False)."""
        return {
            local: reference.rotary_tables(
                positions, *_frequencies(self.config, local, long, positions.device)
            )
            for local in set(self.slides)
        }

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 (..., V) from normed hidden states (..., C)."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        matrix = head.matrix
        assert not isinstance(matrix, Nf4)
        scores = ops.linear_fp32(hidden, matrix)
        return reference.soft_cap(scores, self.config.logit_softcap)


def _dense_mask(
    index: torch.Tensor, attention_mask: torch.Tensor | None, window: int | None
) -> torch.Tensor | None:
    """bool (B or 1, T, T), or None where plain causal attention is meant."""
    if attention_mask is None and window is None:
        return None
    allowed = reference.causal_mask(index, index, window)[None]  # (1, T, T)
    if attention_mask is None:
        return allowed
    seen = attention_mask.bool()
    seen = seen[:, None, :] if seen.dim() == 2 else seen
    # Padding sees itself, so that no row of the softmax is empty.
    itself = torch.eye(len(index), dtype=torch.bool, device=index.device)
    return (allowed & seen) | itself


@lru_cache(maxsize=32)
def _frequencies(
    config: ModelConfig, local: bool, long: bool, device: torch.device
) -> tuple[torch.Tensor, float]:
    # Kept across calls: must not be an inference tensor, or training after a run would fail.
    with torch.inference_mode(False):
        frequencies, factor = inverse_frequencies(config, local=local, long=long)
        return frequencies.to(device), factor


def document_attention(model: Transformer, starts: tuple[int, ...]) -> Attend:
    """Causal attention inside each document (and window, where a layer has one).

    starts: where documents begin, and the number of all tokens.
    """
    capped = model.config.attention_softcap is not None  # then all scores exist at once
    spans = _runs(starts, together=not capped)

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        window = model.config.sliding_window if model.slides[layer] else None
        if not capped and differentiable.fits_document_attention(q, k):
            scale = model.attention_scale
            return differentiable.document_attention(q, k, v, starts, window, scale)
        dtype = q.dtype
        if ops.widens(q):
            q, k, v = q.float(), k.float(), v.float()
        parts = []
        # Not slice by slice: each would get a gradient of the whole's size.
        sizes = [end - start for start, end, _ in spans]
        pieces = zip(spans, *(t.split(sizes) for t in (q, k, v)), strict=True)
        for (start, end, count), *rows in pieces:
            length = (end - start) // count
            mask = None
            if window is not None and length > window:
                index = torch.arange(length, device=q.device)
                mask = reference.causal_mask(index, index, window)[None]
            query, key, value = (t.unflatten(0, (count, length)) for t in rows)
            parts.append(model.attend(query, key, value, mask).flatten(0, 1))
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).to(dtype)

    return attend


def _runs(starts: tuple[int, ...], together: bool) -> list[tuple[int, int, int]]:
    """(begin, end, how many) of neighbours that are equally long, or of each document alone."""
    if not together:
        return [(begin, end, 1) for begin, end in pairwise(starts)]
    pairs = groupby(pairwise(starts), key=lambda span: span[1] - span[0])
    spans = [list(run) for _, run in pairs]
    return [(run[0][0], run[-1][1], len(run)) for run in spans]
