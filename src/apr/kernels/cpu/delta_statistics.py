"""How the deltas of several models relate: one pass over their blocks."""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit

from apr.kernels.cpu.merging import FAST, TILE, widen


@njit(nogil=True, cache=True, fastmath=FAST)
def delta_statistics(addresses, kinds, base_address, base_kind, count, models_out, pairs_out):
    """Add to models_out (M + 1, 2) and pairs_out (M (M - 1) / 2, 4), fp64.

    models_out: numbers of zero deltas and sums of squares; the last row has the base's own.
    pairs_out: number of elements where both deltas are not zero and differ in sign; sum of
    min(|d_i|, |d_j|) over these, and over all elements; inner product.
    Returns the index of an input that is not finite (the base's is M), or -1.
    """
    models = addresses.shape[0]
    deltas, base_tile = np.empty((models, TILE), np.float32), np.empty(TILE, np.float32)
    for start in range(0, count, TILE):
        n = min(TILE, count - start)
        base = base_tile[:n]
        if not widen(base_address, base_kind, start, base):
            return models
        total = float32(0.0)
        for i in range(n):
            total += base[i] * base[i]
        models_out[models, 1] += total
        for m in range(models):
            d = deltas[m, :n]
            if not widen(addresses[m], kinds[m], start, d):
                return m
            zeros, squares = float32(0.0), float32(0.0)
            for i in range(n):
                d[i] -= base[i]
                zeros += float32(1.0) if d[i] == 0 else float32(0.0)
                squares += d[i] * d[i]
            models_out[m, 0] += int64(zeros)
            models_out[m, 1] += squares
        pair = 0
        for a in range(models):
            for b in range(a + 1, models):
                _pair(deltas[a, :n], deltas[b, :n], pairs_out[pair])
                pair += 1
    return -1


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _pair(x, y, out):
    conflicts, product = float32(0.0), float32(0.0)
    conflict_size, total_size = float32(0.0), float32(0.0)
    for i in range(x.shape[0]):
        a, b = x[i], y[i]
        against = ((a > 0) & (b < 0)) | ((a < 0) & (b > 0))
        size = min(abs(a), abs(b))
        total_size += size
        conflicts += float32(1.0) if against else float32(0.0)
        conflict_size += size if against else float32(0.0)
        product += a * b
    out[0] += conflicts
    out[1] += conflict_size
    out[2] += total_size
    out[3] += product
