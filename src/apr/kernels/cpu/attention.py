"""Causal attention over the paged cache, one tile of query rows at a time.

Online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022, algorithm 1) over
blocks of 64 positions. The blocks lie at fixed positions of the sequence, so the sums of a query
run in one order whether its prompt is read whole, in chunks, or token by token.
"""

from __future__ import annotations

from numba import float32, njit

from apr.kernels.cpu.elementwise import FAST, exp
from apr.kernels.cpu.intrinsics import MAX_ROWS, to_bf16
from apr.kernels.cpu.matmul import block_product
from apr.kernels.cpu.microkernel import PANEL

# Rows of one tile: query heads that share a key head, times tokens. Scratch is laid out for it.
TILE_ROWS = 48
LOWEST = float32(-1e30)


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def softmax_block(scores, probabilities, top, norm, total, first, last, scale):
    """Fold one block of scores (64,) into a row's running softmax; columns first..last-1 count.

    top, norm: running maximum and sum (one-element arrays); total: the row's fp32 sums so far.
    """
    highest = LOWEST
    for i in range(first, last):
        highest = max(highest, scores[i] * scale)
    if highest > top[0]:
        shrink = exp(top[0] - highest)
        top[0] = highest
        norm[0] *= shrink
        for i in range(total.shape[0]):
            total[i] *= shrink
    base = top[0]
    added = float32(0.0)
    if first > 0 or last < PANEL:
        for i in range(PANEL):
            probabilities[i] = 0
        for i in range(first, last):
            p = exp(scores[i] * scale - base)
            probabilities[i] = to_bf16(p)
            added += p
    else:
        for i in range(PANEL):
            p = exp(scores[i] * scale - base)
            probabilities[i] = to_bf16(p)
            added += p
    norm[0] += added


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def attend(
    queries, group, head_dim, value_dim, first_position, tokens, window, scale,
    table, keys, values, block_stride_k, block_stride_v,
    scores, probabilities, totals, tops, norms, out, out_stride,
):  # fmt: skip
    """Attention of `tokens` consecutive tokens' `group` query heads over one key head.

    queries: address of bf16 (tokens * group, head_dim), contiguous rows.
    first_position: position of the first token; window: 0, or how many positions a token sees.
    table: int32 (W,) block numbers; keys, values: addresses of this layer's and head's part of
        block 0, block_stride_* bytes from block to block.
    scores (TILE_ROWS, 64) fp32, probabilities (TILE_ROWS, 64) bf16 bits, totals
        (TILE_ROWS, value_dim) fp32, tops and norms (TILE_ROWS, 1) fp32: scratch of this thread.
    out: bf16 bits (tokens, group * head_dim), row stride out_stride elements, flat view.
    """
    rows = tokens * group
    for r in range(rows):
        tops[r, 0] = LOWEST
        norms[r, 0] = float32(0.0)
        for i in range(value_dim):
            totals[r, i] = float32(0.0)
    start = 0
    if window > 0:
        start = max(0, first_position - window + 1) // PANEL
    end = (first_position + tokens - 1) // PANEL + 1
    score_address, total_address = scores.ctypes.data, totals.ctypes.data
    probability_address = probabilities.ctypes.data
    for b in range(start, end):
        key = keys + table[b] * block_stride_k
        value = values + table[b] * block_stride_v
        for r0 in range(0, rows, MAX_ROWS):
            count = min(MAX_ROWS, rows - r0)
            block_product(
                count, queries + r0 * head_dim * 2, head_dim * 2, key, head_dim // 2,
                score_address + r0 * 4 * PANEL, 4 * PANEL, 0, value,
            )  # fmt: skip
        for r in range(rows):
            position = first_position + r // group
            last = min(PANEL, position + 1 - b * PANEL)
            first = 0
            if window > 0:
                first = max(0, position - window + 1 - b * PANEL)
            if last <= first:
                for i in range(PANEL):
                    probabilities[r, i] = 0
                continue
            softmax_block(
                scores[r], probabilities[r], tops[r], norms[r], totals[r], first, last, scale
            )
        for r0 in range(0, rows, MAX_ROWS):
            count = min(MAX_ROWS, rows - r0)
            for part in range(value_dim // PANEL):
                block_product(
                    count, probability_address + r0 * 2 * PANEL, 2 * PANEL,
                    value + part * (PANEL // 2) * 4 * PANEL, PANEL // 2,
                    total_address + (r0 * value_dim + part * PANEL) * 4, 4 * value_dim, 1, key,
                )  # fmt: skip
    for r in range(rows):
        inverse = float32(1.0) / norms[r, 0]
        offset = (r // group) * out_stride + (r % group) * head_dim
        for i in range(head_dim):
            out[offset + i] = to_bf16(totals[r, i] * inverse)
