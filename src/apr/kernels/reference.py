"""The operations of a transformer in plain torch: what every faster kernel is compared with.

Shape letters: B batch, T queries, S keys, H query heads, K key/value heads, D head dimension,
C hidden size, V vocabulary. All functions work on any device and dtype and under autograd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Rows of a weight matrix turned to fp32 at a time: 64 MiB for a hidden size of 4096.
_FP32_ROWS = 4096


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> torch.Tensor:
    """x / rms(x) * (offset + weight) over the last dimension, in fp32, returned as x.dtype.

    Zhang and Sennrich 2019 (arXiv:1910.07467, eq. 4). offset: 1.0 for Gemma, else 0.0.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * (weight.float() + offset)).to(x.dtype)


def rotary_tables(
    positions: torch.Tensor, frequencies: torch.Tensor, factor: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every (position, frequency), fp32 (..., T, R / 2).

    positions: integers (..., T). frequencies: fp32 (R / 2,), radians per position. factor
    multiplies both tables (YaRN's and LongRoPE's attention factor).
    """
    angles = positions[..., None].float() * frequencies
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn dimension pairs (i, i + R/2) of each head; dimensions from R on pass unchanged.

    x: (..., T, H, D). cos, sin: fp32 (..., T, R / 2). Computed in fp32, returned as x.dtype.
    Su et al. 2021 (arXiv:2104.09864, eq. 34), with the halves apart instead of interleaved.
    """
    half = cos.shape[-1]
    cos, sin = cos[..., None, :], sin[..., None, :]  # (..., T, 1, R/2)
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    turned = turned.to(x.dtype)
    rest = x[..., 2 * half :]
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def causal_mask(
    query_positions: torch.Tensor, key_positions: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """True where a query may look: at itself and before, at most `window` positions in all.

    query_positions: integers (..., T). key_positions: integers (..., S). Returns bool (..., T, S).
    """
    distance = query_positions[..., :, None] - key_positions[..., None, :]
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """softmax(q k^T * scale) v with scores and softmax in fp32. Returns (B, T, H, D) as q.dtype.

    q: (B, T, H, D). k, v: (B, S, K, D); head h of q reads head h // (H / K). mask: bool, broadcast
    to (B, T, S), True where allowed; every query must be allowed at least one key. softcap: scores
    become softcap * tanh(scores / softcap) before masking.
    """
    batch, queries, heads, dim = q.shape
    kv_heads = k.shape[2]
    grouped = q.float().view(batch, queries, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("btkgd,bskd->bkgts", grouped, k.float()) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    allowed = mask.expand(batch, queries, k.shape[1])[:, None, None]  # (B, 1, 1, T, S)
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    out = torch.einsum("bkgts,bskd->btkgd", weights, v.float())
    return out.reshape(batch, queries, heads, dim).to(q.dtype)


def fused_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """`attention` through torch's own fused kernel; mask None means causal with S == T.

    Same shapes as `attention`. Its kernels keep the softmax in fp32 whatever the dtype.
    """
    if mask is not None and q.shape[1] == 1:
        # Decoding: the query heads that share a key head become its queries, so that each key is
        # read once for all of them.
        batch, _, heads, dim = q.shape
        shared = q.reshape(batch, k.shape[2], -1, dim).transpose(1, 2)  # (B, H / K, K, D)
        if shared.shape[1] > 1:
            out = fused_attention(shared, k, v, mask, scale)
            return out.transpose(1, 2).reshape(batch, 1, heads, dim)
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or K, T or S, D)
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if mask is None else mask[..., None, :, :],
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def soft_cap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap * tanh(x / cap), or x itself where there is no cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


def linear_fp32(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight^T with products, sums and result in fp32. x: (..., C). weight: (V, C).

    A narrower weight is widened a slice at a time, so the whole of it never exists in fp32
    (under autograd it does: the slices are kept for the backward pass).
    """
    wide = x.float()
    if weight.dtype == torch.float32:
        return F.linear(wide, weight)
    slices = [F.linear(wide, rows.float()) for rows in weight.split(_FP32_ROWS)]
    return torch.cat(slices, dim=-1)


def paged_slots(block_tables: torch.Tensor, block_size: int) -> torch.Tensor:
    """Cache slots of consecutive positions: (N, W) block numbers -> int64 (N, W * block_size)."""
    inside = torch.arange(block_size, device=block_tables.device)
    return (block_tables[:, :, None].long() * block_size + inside).flatten(1)
