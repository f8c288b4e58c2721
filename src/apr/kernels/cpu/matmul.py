"""Matrix products over packed panels, cut into units that threads share.

A unit is one block of at most MAX_ROWS rows times one panel of 64 columns. Units are numbered
panel by panel, each thread takes a contiguous range, so a panel is read from memory by one thread
and used for all its row blocks while it lies in that core's cache.
"""

from __future__ import annotations

from numba import njit

from apr.kernels.cpu.intrinsics import MAX_ROWS, call_widener, vectors_for
from apr.kernels.cpu.microkernel import (
    PAIR_BYTES,
    PANEL,
    micro_1,
    micro_2,
    micro_3,
    micro_4,
    micro_5,
    micro_6,
)

# Bytes of a k pair that one micro-kernel call covers.
_SPLIT_1, _SPLIT_2, _SPLIT_MORE = (64 * vectors_for(rows) for rows in (1, 2, 3))
# A panel slice of this many k stays in a core's second-level cache (64 x 2048 x 2 bytes).
K_CHUNK = 2048
# k pairs widened at a time where a panel is not bf16 as it lies in memory, and the numbers of the
# buffer they are widened into, which stays in the first-level cache.
CHUNK_PAIRS = 64
WIDE = CHUNK_PAIRS * 2 * PANEL


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
def panel_rows(rows, first, last, a, lda, panels, p, c, ldc, wide, following):
    """C[:, 64] = A @ panel p, for row blocks `first` to `last` of all rows.

    panels: int64 (.., 4), see `apr.kernels.cpu.panels`. c: address of the panel's columns in row 0.
    wide: of a buffer for CHUNK_PAIRS. following: of the dense panel that comes next.
    """
    blocks = row_blocks(rows)
    address, widen, pairs, stride = panels[p, 0], panels[p, 1], panels[p, 2], panels[p, 3]
    if widen == 0:
        for p0 in range(0, pairs, K_CHUNK // 2):
            depth = min(K_CHUNK // 2, pairs - p0)
            base = address + p0 * PAIR_BYTES
            ahead = base + depth * PAIR_BYTES if p0 + depth < pairs else following
            for i in range(first, last):
                r0, r1 = i * rows // blocks, (i + 1) * rows // blocks
                panel_product(
                    r1 - r0, a + r0 * lda + p0 * 4, lda, base, depth, c + r0 * ldc, ldc, p0, i,
                    ahead,
                )  # fmt: skip
        return
    for p0 in range(0, pairs, CHUNK_PAIRS):
        depth = min(CHUNK_PAIRS, pairs - p0)
        call_widener(widen, address, p0, depth, wide)
        ahead = address + (p0 // CHUNK_PAIRS + 2) * stride if stride else wide
        for i in range(first, last):
            r0, r1 = i * rows // blocks, (i + 1) * rows // blocks
            block_product(
                r1 - r0, a + r0 * lda + p0 * 4, lda, wide, depth, c + r0 * ldc, ldc, p0, ahead
            )


@njit(nogil=True, cache=True)
def linear(tid, threads, a, lda, rows, panels, start, count, c, ldc, wide):
    """This thread's share of C[rows, 64 * count] = A @ panels `start` and on; no barrier.

    panels, wide: see `panel_rows`. A is as wide as the panels are deep.
    """
    if rows == 0:
        return
    blocks = row_blocks(rows)
    units = count * blocks
    first, last = tid * units // threads, (tid + 1) * units // threads
    unit = first
    while unit < last:
        panel, block = unit // blocks, unit % blocks
        until = min(blocks, block + last - unit)
        p = start + panel
        following = panels[p + 1, 0] if panel + 1 < count else panels[p, 0]
        panel_rows(
            rows, block, until, a, lda, panels, p, c + panel * PAIR_BYTES, ldc, wide, following
        )
        unit += until - block
