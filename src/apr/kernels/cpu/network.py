"""One compiled call for a whole forward step: every thread runs `step`, meeting at barriers.

All threads execute the same code on their share of the rows, panels or tiles (SPMD), so a step of
30 layers costs one Python call per thread instead of hundreds of operator dispatches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import float32, njit

from apr.kernels.cpu.attention import attend
from apr.kernels.cpu.elementwise import (
    FAST,
    add_rows,
    gelu_product,
    panel_row,
    rms_norm_bf16,
    rms_norm_in_place,
    rotate,
    silu_product,
    store_bf16,
    store_key,
    store_value,
)
from apr.kernels.cpu.intrinsics import atomic_add, barrier, call_widener
from apr.kernels.cpu.matmul import CHUNK_PAIRS, linear, panel_rows, row_blocks
from apr.kernels.cpu.microkernel import PAIR_BYTES, PANEL
from apr.kernels.cpu.parallel import bits_at

# Columns of `Weights.matrices` and rows of `Weights.norms`.
QKV, OUTPUT, GATE_UP, DOWN = 0, 1, 2, 3
NORM_INPUT, NORM_ATTENTION_OUT, NORM_MLP, NORM_MLP_OUT = 0, 1, 2, 3


class Shape(NamedTuple):
    """Sizes and switches of a network. Padded sizes are multiples of 64."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int  # head_dim padded
    qkv_panels: int
    hidden_panels: int
    ffn_panels: int
    vocab_panels: int
    biased: int
    qk_norm: int
    sandwich: int
    gelu: int
    eps: float
    scale: float  # of attention scores
    embedding_scale: float


class Weights(NamedTuple):
    """panels: int64 (.., 4), all panels of all matrices (see `apr.kernels.cpu.panels`). matrices:
    int64 (L, 4), where the panels of a layer's QKV, OUTPUT, GATE_UP, DOWN begin in it. embedding,
    head: where these begin, the same when tied.

    GATE_UP alternates one gate panel with one up panel. norms: fp32 (L, 4, C); qk_norms: fp32
    (L, 2, D); bias: fp32 (L, 64 * qkv_panels); final_norm: fp32 (C,); windows: int64 (L,), 0 for
    full attention; ropes: int64 (L,), which rotary table.
    """

    panels: np.ndarray
    matrices: np.ndarray
    embedding: int
    head: int
    norms: np.ndarray
    qk_norms: np.ndarray
    bias: np.ndarray
    final_norm: np.ndarray
    windows: np.ndarray
    ropes: np.ndarray


class Inputs(NamedTuple):
    """One step. token_ids, positions, sequences: int32 (T,); contexts: int32 (N,); tables:
    int32 (N, W); tiles: int32 (U, 3) with (sequence, first row, tokens); cos, sin: fp32
    (tables, T, rotary/2); logit_rows: int32 (R,), ascending.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    sequences: np.ndarray
    tables: np.ndarray
    tiles: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    logit_rows: np.ndarray


class Cache(NamedTuple):
    """keys: uint16 (L, blocks, K, D/2, 64, 2); values: uint16 (L, blocks, K, D'/64, 32, 64, 2)."""

    keys: np.ndarray
    values: np.ndarray


class Scratch(NamedTuple):
    """Buffers shared by the threads, and (first axis) one of each for every thread."""

    stream: np.ndarray  # fp32 (T, C), the residual stream
    normed: np.ndarray  # bf16 bits (T, 64 * hidden_panels)
    qkv: np.ndarray  # fp32 (T, 64 * qkv_panels)
    queries: np.ndarray  # bf16 bits, flat (K, T, H/K, D)
    attended: np.ndarray  # bf16 bits (T, H * D padded)
    inner: np.ndarray  # bf16 bits (T, 64 * ffn_panels)
    update: np.ndarray  # fp32 (T, 64 * hidden_panels)
    logits: np.ndarray  # fp32 (R, 64 * vocab_panels)
    gates: np.ndarray  # fp32 (threads, 2, 6, 64); T rows where a panel is widened
    wide: np.ndarray  # bf16 bits (threads, matmul.WIDE)
    scores: np.ndarray  # fp32 (threads, TILE_ROWS, 64)
    probabilities: np.ndarray  # bf16 bits (threads, TILE_ROWS, 64)
    totals: np.ndarray  # fp32 (threads, TILE_ROWS, D')
    tops: np.ndarray  # fp32 (threads, TILE_ROWS, 1)
    norms: np.ndarray  # fp32 (threads, TILE_ROWS, 1)
    sync: np.ndarray  # int64: barrier in [0:3], from 8 on one tile counter a layer, 8 apart


@njit(nogil=True, cache=True, forceinline=True)
def _embed(tid, threads, shape, weights, inputs, stream, wide):
    rows = inputs.token_ids.shape[0]
    scale = float32(shape.embedding_scale)
    buffer = wide.ctypes.data
    for r in range(tid * rows // threads, (tid + 1) * rows // threads):
        token = inputs.token_ids[r]
        panel = weights.panels[weights.embedding + token // PANEL]
        address, widen, pairs = panel[0], panel[1], panel[2]
        for first in range(0, pairs, CHUNK_PAIRS):
            depth = min(CHUNK_PAIRS, pairs - first)
            piece = address + first * PAIR_BYTES
            if widen != 0:
                call_widener(widen, address, first, depth, buffer)
                piece = buffer
            panel_row(
                bits_at(piece, depth * 2 * PANEL), token % PANEL, scale, stream[r, 2 * first :]
            )


@njit(nogil=True, cache=True, forceinline=True)
def _norm(tid, threads, rows, stream, weight, eps, normed):
    for r in range(tid * rows // threads, (tid + 1) * rows // threads):
        rms_norm_bf16(stream[r], weight, eps, normed[r])


@njit(nogil=True, cache=True, forceinline=True)
def _add_update(tid, threads, rows, shape, after, stream, update):
    """stream += update, normalised first in sandwich-norm networks (Gemma)."""
    for r in range(tid * rows // threads, (tid + 1) * rows // threads):
        delta = update[r, : shape.hidden]
        if shape.sandwich:
            rms_norm_in_place(delta, after, float32(shape.eps))
        add_rows(stream[r], delta)


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _place_heads(tid, threads, layer, shape, weights, inputs, cache, scratch):
    """Bias, query/key norm and rotation; queries to their buffer, keys and values to the cache."""
    rows = inputs.token_ids.shape[0]
    dim, heads, kv_heads = shape.head_dim, shape.heads, shape.kv_heads
    group = heads // kv_heads
    per_row = heads + 2 * kv_heads
    units = rows * per_row
    table = weights.ropes[layer]
    for unit in range(tid * units // threads, (tid + 1) * units // threads):
        r, slot = unit // per_row, unit % per_row
        head = scratch.qkv[r, slot * dim : (slot + 1) * dim]
        if shape.biased:
            add_rows(head, weights.bias[layer, slot * dim : (slot + 1) * dim])
        if slot < heads + kv_heads:
            if shape.qk_norm:
                which = 0 if slot < heads else 1
                rms_norm_in_place(head, weights.qk_norms[layer, which], float32(shape.eps))
            rotate(head, inputs.cos[table, r], inputs.sin[table, r])
        if slot < heads:
            at = (((slot // group) * rows + r) * group + slot % group) * dim
            store_bf16(head, scratch.queries[at : at + dim])
            continue
        position = inputs.positions[r]
        block = inputs.tables[inputs.sequences[r], position // PANEL]
        lane = position % PANEL
        if slot < heads + kv_heads:
            store_key(head, cache.keys[layer, block, slot - heads], lane)
        else:
            store_value(head, cache.values[layer, block, slot - heads - kv_heads], lane)


@njit(nogil=True, cache=True, forceinline=True)
def _attention(tid, layer, shape, weights, inputs, cache, scratch):
    """Tiles are handed out by a shared counter: their cost differs with the cached length."""
    rows = inputs.token_ids.shape[0]
    dim, kv_heads = shape.head_dim, shape.kv_heads
    group = shape.heads // kv_heads
    counter = scratch.sync.ctypes.data + 8 * (8 + 8 * layer)
    units = inputs.tiles.shape[0] * kv_heads
    out, width = scratch.attended.reshape(-1), scratch.attended.shape[1]
    keys, values = cache.keys[layer, 0], cache.values[layer, 0]
    stride_k, stride_v = 2 * keys.size, 2 * values.size
    while True:
        # Last tiles first: in a long prompt they are the dearest.
        unit = units - 1 - atomic_add(counter, 1)
        if unit < 0:
            break
        tile, head = unit // kv_heads, unit % kv_heads
        sequence, first, tokens = (
            inputs.tiles[tile, 0],
            inputs.tiles[tile, 1],
            inputs.tiles[tile, 2],
        )
        queries = scratch.queries.ctypes.data + 2 * ((head * rows + first) * group) * dim
        attend(
            queries, group, dim, shape.value_dim, inputs.positions[first], tokens,
            weights.windows[layer], float32(shape.scale), inputs.tables[sequence],
            keys[head].ctypes.data, values[head].ctypes.data, stride_k, stride_v,
            scratch.scores[tid], scratch.probabilities[tid], scratch.totals[tid],
            scratch.tops[tid], scratch.norms[tid],
            out[first * width + head * group * dim :], width,
        )  # fmt: skip


@njit(nogil=True, cache=True, forceinline=True)
def _activate(shape, gate, up, out):
    if shape.gelu:
        gelu_product(gate, up, out)
    else:
        silu_product(gate, up, out)


@njit(nogil=True, cache=True, forceinline=True)
def _gate_up(tid, threads, rows, shape, panels, start, normed, gates, inner, wide):
    """inner = act(normed @ gate) * (normed @ up), one panel of both at a time: of one block of
    rows, or, where panels are widened, of all row blocks of a thread.
    """
    blocks = row_blocks(rows)
    units = shape.ffn_panels * blocks
    first, last = tid * units // threads, (tid + 1) * units // threads
    a, lda = normed.ctypes.data, normed.strides[0]
    gate, up = gates[0], gates[1]
    unit = first
    while unit < last:
        panel, block = unit // blocks, unit % blocks
        p = start + 2 * panel
        until = block + 1
        if panels[p, 1] != 0 or panels[p + 1, 1] != 0:
            until = min(blocks, block + last - unit)
        r0 = block * rows // blocks
        after = p + 2 if panel + 1 < shape.ffn_panels else p
        for which in range(2):
            panel_rows(
                rows, block, until, a, lda, panels, p + which,
                gates[which].ctypes.data - r0 * PAIR_BYTES, PAIR_BYTES, wide,
                panels[after + which, 0],
            )  # fmt: skip
        for r in range(r0, until * rows // blocks):
            out = inner[r, panel * PANEL : (panel + 1) * PANEL]
            _activate(shape, gate[r - r0], up[r - r0], out)
        unit += until - block


@njit(nogil=True, cache=True, forceinline=True)
def _keep_logit_rows(logit_rows, stream, attended):
    """Move the rows whose logits are wanted to the front; nothing needs the others any more."""
    for i in range(logit_rows.shape[0]):
        r = logit_rows[i]
        if r != i:
            stream[i] = stream[r]
            attended[i] = attended[r]


@njit(nogil=True, cache=True)
def step(tid, threads, shape, weights, inputs, cache, scratch):
    """One thread's part of a forward step; logits end in scratch.logits[: len(logit_rows)]."""
    sync = scratch.sync.ctypes.data
    rows = inputs.token_ids.shape[0]
    stream, normed, update = scratch.stream, scratch.normed, scratch.update
    eps = float32(shape.eps)
    hidden_bytes = normed.strides[0]
    panels, wide = weights.panels, scratch.wide[tid].ctypes.data
    _embed(tid, threads, shape, weights, inputs, stream, scratch.wide[tid])
    for layer in range(shape.layers):
        norms, matrices = weights.norms[layer], weights.matrices[layer]
        # The same split of rows as in the step before, so no barrier is needed in between.
        _norm(tid, threads, rows, stream, norms[NORM_INPUT], eps, normed)
        barrier(sync, threads)
        linear(
            tid, threads, normed.ctypes.data, hidden_bytes, rows, panels, matrices[QKV],
            shape.qkv_panels, scratch.qkv.ctypes.data, scratch.qkv.strides[0], wide,
        )  # fmt: skip
        barrier(sync, threads)
        _place_heads(tid, threads, layer, shape, weights, inputs, cache, scratch)
        barrier(sync, threads)
        last = layer + 1 == shape.layers
        if last and inputs.logit_rows.shape[0] == 0:
            return
        _attention(tid, layer, shape, weights, inputs, cache, scratch)
        barrier(sync, threads)
        if last:
            if tid == 0:
                _keep_logit_rows(inputs.logit_rows, stream, scratch.attended)
            rows = inputs.logit_rows.shape[0]
            barrier(sync, threads)
        linear(
            tid, threads, scratch.attended.ctypes.data, scratch.attended.strides[0], rows, panels,
            matrices[OUTPUT], shape.hidden_panels, update.ctypes.data, update.strides[0], wide,
        )  # fmt: skip
        barrier(sync, threads)
        _add_update(tid, threads, rows, shape, norms[NORM_ATTENTION_OUT], stream, update)
        _norm(tid, threads, rows, stream, norms[NORM_MLP], eps, normed)
        barrier(sync, threads)
        _gate_up(
            tid, threads, rows, shape, panels, matrices[GATE_UP], normed, scratch.gates[tid],
            scratch.inner, wide,
        )  # fmt: skip
        barrier(sync, threads)
        linear(
            tid, threads, scratch.inner.ctypes.data, scratch.inner.strides[0], rows, panels,
            matrices[DOWN], shape.hidden_panels, update.ctypes.data, update.strides[0], wide,
        )  # fmt: skip
        barrier(sync, threads)
        _add_update(tid, threads, rows, shape, norms[NORM_MLP_OUT], stream, update)
    _norm(tid, threads, rows, stream, weights.final_norm, eps, normed)
    barrier(sync, threads)
    linear(
        tid, threads, normed.ctypes.data, hidden_bytes, rows, panels, weights.head,
        shape.vocab_panels, scratch.logits.ctypes.data, scratch.logits.strides[0], wide,
    )  # fmt: skip
