"""NF4 codes to numbers. Bodies for `parallel.run_chunks`; `apr.kernels.nf4` calls them."""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, float32, njit, uint64

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
def _block_to_bfloat16(codes, scale, levels, near, y):
    # Sixteen roundings for a block's 64 numbers.
    for i in range(16):
        near[i] = to_bf16(levels[i] * scale)
    for i in range(y.shape[0] // 2):
        code = uint64(codes[i])  # unsigned: no index from the end is looked for
        y[2 * i] = near[code >> uint64(4)]
        y[2 * i + 1] = near[code & uint64(15)]
    if y.shape[0] % 2:
        y[y.shape[0] - 1] = near[uint64(codes[y.shape[0] // 2]) >> uint64(4)]


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
    near = np.empty(16, dtype=np.uint16)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        for b in range(chunk * BLOCKS, min(blocks, (chunk + 1) * BLOCKS)):
            at, end = b * BLOCK, min(count, (b + 1) * BLOCK)
            part = codes[at // 2 : (end + 1) // 2]
            _block_to_bfloat16(part, absmax[b], levels, near, out[at:end])


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


@njit(nogil=True, cache=True, forceinline=True)
def _quantize_block(x, bounds, near, codes):
    """Returns absmax. near: uint8 (64,), scratch."""
    absmax = float32(0.0)
    for i in range(BLOCK):
        absmax = max(absmax, abs(x[i]))
    scale = float32(1.0) / max(absmax, float32(1e-38))
    for i in range(BLOCK):
        scaled = x[i] * scale
        count = np.uint8(0)
        for j in range(15):
            count += np.uint8(scaled > bounds[j])
        near[i] = count
    for i in range(BLOCK // 2):
        codes[i] = (near[2 * i] << 4) | near[2 * i + 1]
    return absmax


@cfunc(BODY, cache=True)
def quantize(pointer):
    """numbers (fp32), bounds between levels (fp32), codes, absmax (fp32), blocks (whole)."""
    a = carray(pointer, (WORDS,))
    blocks = a[6]
    x, bounds = floats_at(a[2], blocks * BLOCK), floats_at(a[3], 15)
    codes, absmax = bytes_at(a[4], blocks * BLOCK // 2), floats_at(a[5], blocks)
    near = np.empty(BLOCK, dtype=np.uint8)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        for b in range(chunk * BLOCKS, min(blocks, (chunk + 1) * BLOCKS)):
            at = b * BLOCK
            absmax[b] = _quantize_block(
                x[at : at + BLOCK], bounds, near, codes[at // 2 : at // 2 + BLOCK // 2]
            )
