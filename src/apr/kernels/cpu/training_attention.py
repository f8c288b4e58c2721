"""Causal attention inside documents, forward and backward, in bf16 with fp32 softmax and sums.

One chunk is one document's one key head with the query heads that share it. Scores never exist
beyond a tile (FlashAttention-2, Dao 2023, arXiv:2307.08691, algorithms 1 and 2). The backward pass
works on transposed tiles (keys by queries), so that what is exponentiated along the queries is at
once the left factor of the products for keys and values.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, float32, njit

from apr.kernels.cpu.attention import TILE_ROWS, attend
from apr.kernels.cpu.elementwise import FAST, exp
from apr.kernels.cpu.intrinsics import MAX_ROWS, atomic_add, from_bf16, to_bf16
from apr.kernels.cpu.matmul import block_product
from apr.kernels.cpu.microkernel import PANEL
from apr.kernels.cpu.parallel import (
    BODY,
    WORDS,
    as_float,
    bits_at,
    floats_at,
    longs_at,
    next_chunk,
)

_TILE = PANEL * PANEL


def forward_scratch(longest: int, dim: int) -> int:
    """Bytes of one worker: packed keys and values of a document, and a tile's softmax."""
    blocks = -(-longest // PANEL)
    packed = 2 * blocks * PANEL * dim * 2
    tile = TILE_ROWS * (4 * PANEL + 2 * PANEL + 4 * dim + 8 + 2 * dim)
    return packed + tile + 8 * blocks + 1024


def backward_scratch(longest: int, dim: int) -> int:
    blocks = -(-longest // PANEL)
    document = blocks * PANEL * dim * (2 + 4 + 4)  # keys turned, gradients of keys and values
    tile = 4 * PANEL * dim * 2 + 4 * PANEL * dim + _TILE * (4 + 4 + 2 + 2 + 2) + 8 * PANEL
    return document + tile + 1024


@njit(nogil=True, cache=True)
def _take(place, nbytes):
    """Cut aligned bytes off the front of scratch memory; place: int64 (1,), where it goes on."""
    at = (place[0] + 63) // 64 * 64
    place[0] = at + nbytes
    return at


@njit(nogil=True, cache=True)
def _rows_product(rows, a, lda, panel, pairs, c, ldc, accumulate):
    for r in range(0, rows, MAX_ROWS):
        count = min(MAX_ROWS, rows - r)
        block_product(count, a + r * lda, lda, panel, pairs, c + r * ldc, ldc, accumulate, panel)


@njit(nogil=True, cache=True)
def _pack_document(x, stride, length, dim, keys, values):
    """Key blocks (as in `store_key`) of x if keys, else value blocks, rows beyond length zero."""
    out = keys if keys.shape[0] else values
    size = PANEL * dim
    for b in range((length + PANEL - 1) // PANEL):
        block = out[b * size : (b + 1) * size]
        block[:] = 0
        for lane in range(min(PANEL, length - b * PANEL)):
            at = (b * PANEL + lane) * stride
            row = x[at : at + dim]
            if keys.shape[0]:
                pack_key_row(row, block, lane)
            else:
                pack_value_row(row, block, lane)


@njit(nogil=True, cache=True)
def pack_key_row(row, block, lane):
    """A row as column `lane` of a panel, pairs along the row. block: (dim / 2, 64, 2), flat."""
    for i in range(row.shape[0] // 2):
        at = (i * PANEL + lane) * 2
        block[at] = row[2 * i]
        block[at + 1] = row[2 * i + 1]


@njit(nogil=True, cache=True)
def pack_value_row(row, block, lane):
    """A row as part of a pair of rows. block: (dim / 64, 32, 64, 2), flat."""
    for part in range(row.shape[0] // PANEL):
        at = part * PANEL * PANEL + (lane // 2) * 2 * PANEL + lane % 2
        for i in range(PANEL):
            block[at + 2 * i] = row[part * PANEL + i]


@cfunc(BODY, cache=True)
def attention(pointer):
    """q, k, v, out, lse (fp32 (T, H)), starts (int64), tokens, heads, kv_heads, dim, window, scale,
    scratch, bytes of it a worker, counter of workers (int64).
    """
    a = carray(pointer, (WORDS,))
    tokens, heads, kv_heads, dim, window = a[8], a[9], a[10], a[11], a[12]
    scale = as_float(a[13])
    group = heads // kv_heads
    q, out = bits_at(a[2], tokens * heads * dim), bits_at(a[5], tokens * heads * dim)
    k, v = bits_at(a[3], tokens * kv_heads * dim), bits_at(a[4], tokens * kv_heads * dim)
    lse = floats_at(a[6], tokens * heads)
    starts = longs_at(a[7], a[1] // kv_heads + 1)
    own = a[14] + atomic_add(a[16], 1) * a[15]
    place = np.empty(1, np.int64)
    none = bits_at(own, 0)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        document, head = chunk // kv_heads, chunk % kv_heads
        first = starts[document]
        length = starts[document + 1] - first
        blocks = (length + PANEL - 1) // PANEL
        size = PANEL * dim
        place[0] = own
        keys = bits_at(_take(place, blocks * size * 2), blocks * size)
        values = bits_at(_take(place, blocks * size * 2), blocks * size)
        scores = floats_at(_take(place, TILE_ROWS * PANEL * 4), TILE_ROWS * PANEL).reshape(
            (TILE_ROWS, PANEL)
        )
        weights = bits_at(_take(place, TILE_ROWS * PANEL * 2), TILE_ROWS * PANEL).reshape(
            (TILE_ROWS, PANEL)
        )
        totals = floats_at(_take(place, TILE_ROWS * dim * 4), TILE_ROWS * dim).reshape(
            (TILE_ROWS, dim)
        )
        tops = floats_at(_take(place, TILE_ROWS * 4), TILE_ROWS).reshape((TILE_ROWS, 1))
        norms = floats_at(_take(place, TILE_ROWS * 4), TILE_ROWS).reshape((TILE_ROWS, 1))
        rows = bits_at(_take(place, TILE_ROWS * dim * 2), TILE_ROWS * dim)
        table = longs_at(_take(place, blocks * 8), blocks)
        for b in range(blocks):
            table[b] = b
        at = (first * kv_heads + head) * dim
        _pack_document(k[at:], kv_heads * dim, length, dim, keys, none)
        _pack_document(v[at:], kv_heads * dim, length, dim, none, values)
        step = TILE_ROWS // group
        for t in range(0, length, step):
            count = min(step, length - t)
            for i in range(count):
                source = ((first + t + i) * heads + head * group) * dim
                for j in range(group * dim):
                    rows[i * group * dim + j] = q[source + j]
            target = ((first + t) * heads + head * group) * dim
            attend(
                rows.ctypes.data, group, dim, dim, t, count, window, scale, table,
                keys.ctypes.data, values.ctypes.data, size * 2, size * 2,
                scores, weights, totals, tops, norms, out[target:], heads * dim,
            )  # fmt: skip
            for r in range(count * group):
                row = (first + t + r // group) * heads + head * group + r % group
                lse[row] = tops[r, 0] + np.log(norms[r, 0])


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _gradient_row(s, dp, scale, lse, delta, p, ds):
    # One output a loop, or LLVM would find too many pointers that may overlap to use vectors.
    for r in range(s.shape[0]):
        s[r] = exp(s[r] * scale - lse[r])
    for r in range(s.shape[0]):
        p[r] = to_bf16(s[r])
    for r in range(s.shape[0]):
        ds[r] = to_bf16(s[r] * (dp[r] - delta[r]) * scale)


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _gradient_tile(s, dp, keys, from_query, offset, window, scale, lse, delta, p, ds, pairs):
    """Weights and gradients of scores of one tile, keys by queries.

    s, dp: fp32 (64, 64), scores and gradients of weights. p, ds: bf16 bits (64, 64); pairs: ds
    once more as a panel with the queries as columns. keys: rows that count. Key j is seen by
    queries j + offset .. of `from_query` (one row less than j + offset + window).
    """
    for j in range(PANEL):
        first, last = PANEL, PANEL
        if j < keys:
            first = min(PANEL, max(0, j + offset))
            last = min(PANEL, j + offset + window) if window > 0 else PANEL
        last = max(first, last)
        row = j * PANEL
        for r in range(first):
            p[row + r] = 0
            ds[row + r] = 0
        for r in range(last, PANEL):
            p[row + r] = 0
            ds[row + r] = 0
        _gradient_row(
            s[row + first : row + last], dp[row + first : row + last], scale, lse[first:last],
            delta[first:last], p[row + first : row + last], ds[row + first : row + last],
        )  # fmt: skip
    for j in range(0, PANEL, 2):
        row = j * PANEL
        for r in range(PANEL):
            pairs[row + 2 * r] = ds[row + r]
            pairs[row + 2 * r + 1] = ds[row + PANEL + r]


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _row_product(x, y):
    total = float32(0.0)
    for i in range(x.shape[0]):
        total += from_bf16(x[i]) * from_bf16(y[i])
    return total


@cfunc(BODY, cache=True)
def attention_gradient(pointer):
    """q, k, v, out, lse, dout, dq, dk, dv, starts, tokens, heads, kv_heads, dim, window, scale,
    scratch, bytes of it a worker, counter of workers.
    """
    a = carray(pointer, (WORDS,))
    tokens, heads, kv_heads, dim, window = a[12], a[13], a[14], a[15], a[16]
    scale = as_float(a[17])
    group = heads // kv_heads
    wide, narrow = tokens * heads * dim, tokens * kv_heads * dim
    q, out = bits_at(a[2], wide), bits_at(a[5], wide)
    dout, dq = bits_at(a[7], wide), bits_at(a[8], wide)
    k, dk, dv = bits_at(a[3], narrow), bits_at(a[9], narrow), bits_at(a[10], narrow)
    lse = floats_at(a[6], tokens * heads)
    starts = longs_at(a[11], a[1] // kv_heads + 1)
    own = a[18] + atomic_add(a[20], 1) * a[19]
    place = np.empty(1, np.int64)
    size = PANEL * dim
    kv_stride = kv_heads * dim
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        document, head = chunk // kv_heads, chunk % kv_heads
        first = starts[document]
        length = starts[document + 1] - first
        blocks = (length + PANEL - 1) // PANEL
        padded = blocks * PANEL
        place[0] = own
        turned = bits_at(_take(place, blocks * size * 2), blocks * size)
        key_sums = floats_at(_take(place, blocks * size * 4), blocks * size)
        value_sums = floats_at(_take(place, blocks * size * 4), blocks * size)
        q_columns = bits_at(_take(place, size * 2), size)
        q_pairs = bits_at(_take(place, size * 2), size)
        d_columns = bits_at(_take(place, size * 2), size)
        d_pairs = bits_at(_take(place, size * 2), size)
        query_sums = floats_at(_take(place, size * 4), size)
        s = floats_at(_take(place, _TILE * 4), _TILE)
        dp = floats_at(_take(place, _TILE * 4), _TILE)
        p = bits_at(_take(place, _TILE * 2), _TILE)
        ds = bits_at(_take(place, _TILE * 2), _TILE)
        pairs = bits_at(_take(place, _TILE * 2), _TILE)
        tile_lse = floats_at(_take(place, PANEL * 4), PANEL)
        delta = floats_at(_take(place, PANEL * 4), PANEL)
        base = (first * kv_heads + head) * dim
        turned[:] = 0
        key_sums[:] = 0
        value_sums[:] = 0
        for t in range(length):
            for i in range(dim):
                turned[i * padded + t] = k[base + t * kv_stride + i]
        for h in range(head * group, (head + 1) * group):
            for tile in range(blocks):
                t0 = tile * PANEL
                count = min(PANEL, length - t0)
                if count < PANEL:
                    q_columns[:] = 0
                    q_pairs[:] = 0
                    d_columns[:] = 0
                    d_pairs[:] = 0
                    tile_lse[:] = 0
                    delta[:] = 0
                for r in range(count):
                    at = ((first + t0 + r) * heads + h) * dim
                    pack_key_row(q[at : at + dim], q_columns, r)
                    pack_value_row(q[at : at + dim], q_pairs, r)
                    pack_key_row(dout[at : at + dim], d_columns, r)
                    pack_value_row(dout[at : at + dim], d_pairs, r)
                    tile_lse[r] = lse[(first + t0 + r) * heads + h]
                    delta[r] = _row_product(out[at : at + dim], dout[at : at + dim])
                begin = 0
                if window > 0:
                    begin = max(0, t0 - window + 1) // PANEL
                for b in range(begin, tile + 1):
                    keys = min(PANEL, length - b * PANEL)
                    source = (base + b * PANEL * kv_stride) * 2
                    _rows_product(
                        keys, a[3] + source, kv_stride * 2, q_columns.ctypes.data, dim // 2,
                        s.ctypes.data, 4 * PANEL, 0,
                    )  # fmt: skip
                    _rows_product(
                        keys, a[4] + source, kv_stride * 2, d_columns.ctypes.data, dim // 2,
                        dp.ctypes.data, 4 * PANEL, 0,
                    )  # fmt: skip
                    _gradient_tile(
                        s, dp, keys, t0, (b - tile) * PANEL, window, scale, tile_lse, delta,
                        p, ds, pairs,
                    )  # fmt: skip
                    for part in range(dim // PANEL):
                        panel = part * PANEL * PANEL * 2
                        to = (b * PANEL * dim + part * PANEL) * 4
                        _rows_product(
                            keys, p.ctypes.data, 2 * PANEL, d_pairs.ctypes.data + panel,
                            PANEL // 2, value_sums.ctypes.data + to, 4 * dim, 1,
                        )  # fmt: skip
                        _rows_product(
                            keys, ds.ctypes.data, 2 * PANEL, q_pairs.ctypes.data + panel,
                            PANEL // 2, key_sums.ctypes.data + to, 4 * dim, 1,
                        )  # fmt: skip
                    _rows_product(
                        dim, turned.ctypes.data + b * PANEL * 2, 2 * padded, pairs.ctypes.data,
                        PANEL // 2, query_sums.ctypes.data, 4 * PANEL, b - begin,
                    )  # fmt: skip
                for r in range(count):
                    at = ((first + t0 + r) * heads + h) * dim
                    for i in range(dim):
                        dq[at + i] = to_bf16(query_sums[i * PANEL + r])
        for t in range(length):
            at = base + t * kv_stride
            for i in range(dim):
                dk[at + i] = to_bf16(key_sums[t * dim + i])
                dv[at + i] = to_bf16(value_sums[t * dim + i])
