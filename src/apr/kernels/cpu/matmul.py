"""Matrix products over packed panels, cut into units that threads share.

A unit is one block of at most MAX_ROWS rows times one panel of 64 columns. Units are numbered
panel by panel, each thread takes a contiguous range, so a panel is read from memory by one thread
and used for all its row blocks while it lies in that core's cache.
"""

from __future__ import annotations

from numba import njit

from apr.kernels.cpu.microkernel import (
    PANEL,
    micro_1,
    micro_2,
    micro_3,
    micro_4,
    micro_5,
    micro_6,
)
from apr.kernels.cpu.target import MAX_ROWS, vectors_for

# Bytes between two k pairs of a panel, and of them those that one micro-kernel call covers.
PAIR_BYTES = 4 * PANEL
_SPLIT_1, _SPLIT_2, _SPLIT_MORE = (64 * vectors_for(rows) for rows in (1, 2, 3))
# A panel slice of this many k stays in a core's second-level cache (64 x 2048 x 2 bytes).
K_CHUNK = 2048


@njit(nogil=True, cache=True)
def block_product(rows, a, lda, panel, pairs, c, ldc, accumulate, prefetch):
    """C[rows, 64] (+)= A[rows, 2 * pairs] @ panel; fp32 C, bf16 A, addresses and byte strides."""
    step = _SPLIT_1 if rows == 1 else _SPLIT_2 if rows == 2 else _SPLIT_MORE
    for split in range(0, PAIR_BYTES, step):
        b = panel + split
        out = c + split
        if rows == 6:
            micro_6(a, lda, b, pairs, out, ldc, accumulate, prefetch)
        elif rows == 5:
            micro_5(a, lda, b, pairs, out, ldc, accumulate, prefetch)
        elif rows == 4:
            micro_4(a, lda, b, pairs, out, ldc, accumulate, prefetch)
        elif rows == 3:
            micro_3(a, lda, b, pairs, out, ldc, accumulate, prefetch)
        elif rows == 2:
            micro_2(a, lda, b, pairs, out, ldc, accumulate, prefetch)
        else:
            micro_1(a, lda, b, pairs, out, ldc, accumulate, prefetch)


@njit(nogil=True, cache=True)
def panel_product(rows, a, lda, panel, pairs, c, ldc, accumulate, block, following):
    """One unit; row block 0 to 3 each fetch a quarter of the panel that comes next."""
    quarter = block if block < 4 else 0
    ahead = following + quarter * pairs * 64
    block_product(rows, a, lda, panel, pairs, c, ldc, accumulate, ahead)


@njit(nogil=True, cache=True)
def row_blocks(rows):
    """How many row blocks `rows` rows make; block i spans rows i*rows//n to (i+1)*rows//n."""
    return (rows + MAX_ROWS - 1) // MAX_ROWS


@njit(nogil=True, cache=True)
def linear(tid, threads, a, lda, rows, weight, panels, k, c, ldc):
    """This thread's share of C[rows, 64 * panels] = A[rows, k] @ weight; no barrier."""
    if rows == 0:
        return
    blocks = row_blocks(rows)
    units = panels * blocks
    first, last = tid * units // threads, (tid + 1) * units // threads
    panel_bytes = (k // 2) * PAIR_BYTES
    unit = first
    while unit < last:
        panel, block = unit // blocks, unit % blocks
        until = min(blocks, block + last - unit)
        for k0 in range(0, k, K_CHUNK):
            depth = min(K_CHUNK, k - k0)
            base = weight + panel * panel_bytes + (k0 // 2) * PAIR_BYTES
            following = base + (depth // 2) * PAIR_BYTES
            if k0 + depth == k and panel + 1 == panels:
                following = base
            for i in range(block, until):
                r0, r1 = i * rows // blocks, (i + 1) * rows // blocks
                panel_product(
                    r1 - r0, a + r0 * lda + k0 * 2, lda, base, depth // 2,
                    c + r0 * ldc + panel * 4 * PANEL, ldc, k0, i, following,
                )  # fmt: skip
        unit += until - block
