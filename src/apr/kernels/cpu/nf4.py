"""NF4 codes to numbers. Bodies for `parallel.run_chunks`; `apr.kernels.nf4` calls them."""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, njit

from apr.kernels.cpu.intrinsics import to_bf16
from apr.kernels.cpu.parallel import (
    BODY,
    WORDS,
    bits_at,
    bytes_at,
    floats_at,
    next_chunk,
)

BLOCK = 64
BLOCKS = 256  # of a chunk


@njit(nogil=True, cache=True, forceinline=True)
def _block_to_bfloat16(codes, scale, levels, y):
    # Sixteen roundings for a block's 64 numbers.
    near = np.empty(16, dtype=np.uint32)
    for i in range(16):
        near[i] = to_bf16(levels[i] * scale)
    for i in range(y.shape[0] // 2):
        y[2 * i] = near[codes[i] >> 4]
        y[2 * i + 1] = near[codes[i] & 15]
    if y.shape[0] % 2:
        y[y.shape[0] - 1] = near[codes[y.shape[0] // 2] >> 4]


@njit(nogil=True, cache=True, forceinline=True)
def _block_to_float32(codes, scale, levels, y):
    for i in range(y.shape[0] // 2):
        y[2 * i] = levels[codes[i] >> 4] * scale
        y[2 * i + 1] = levels[codes[i] & 15] * scale
    if y.shape[0] % 2:
        y[y.shape[0] - 1] = levels[codes[y.shape[0] // 2] >> 4] * scale


@cfunc(BODY, cache=True)
def to_bfloat16(pointer):
    """codes, absmax (fp32), levels (fp32), out (bf16), numbers, blocks."""
    a = carray(pointer, (WORDS,))
    count, blocks = a[6], a[7]
    codes, absmax = bytes_at(a[2], (count + 1) // 2), floats_at(a[3], blocks)
    levels, out = floats_at(a[4], 16), bits_at(a[5], count)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        for b in range(chunk * BLOCKS, min(blocks, (chunk + 1) * BLOCKS)):
            at, end = b * BLOCK, min(count, (b + 1) * BLOCK)
            _block_to_bfloat16(codes[at // 2 : (end + 1) // 2], absmax[b], levels, out[at:end])


@cfunc(BODY, cache=True)
def to_float32(pointer):
    """As `to_bfloat16`, out fp32."""
    a = carray(pointer, (WORDS,))
    count, blocks = a[6], a[7]
    codes, absmax = bytes_at(a[2], (count + 1) // 2), floats_at(a[3], blocks)
    levels, out = floats_at(a[4], 16), floats_at(a[5], count)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        for b in range(chunk * BLOCKS, min(blocks, (chunk + 1) * BLOCKS)):
            at, end = b * BLOCK, min(count, (b + 1) * BLOCK)
            _block_to_float32(codes[at // 2 : (end + 1) // 2], absmax[b], levels, out[at:end])
