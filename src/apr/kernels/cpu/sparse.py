"""Panels without their zeros: less to read where a pruned model's speed is that of memory.

A panel (see `microkernel`) is cut into groups of eight numbers. Each group has a byte whose bits
say which of them are not zero, and only these are stored. So 64 columns and k rows take
k * 64 * (2 * density + 1 / 8) bytes: 9/16 of a dense panel at 50 %, whatever the pattern.

A product widens 64 k pairs at a time into a buffer that stays in the first-level cache, by one byte
shuffle a group (x86, SSSE3), and hands them to the micro-kernel of dense panels. The sums are the
same in the same order: results are those of the dense product, bit by bit.

In memory: int64 offsets of the panels from the start, one more for the end, then each panel at a
cache line: the bytes of all its groups, and its numbers one after another.
"""

from __future__ import annotations

import math
import time
from functools import cache

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from apr.kernels.cpu.intrinsics import load_int64
from apr.kernels.cpu.matmul import PAIR_BYTES, block_product, linear, row_blocks
from apr.kernels.cpu.microkernel import PANEL
from apr.kernels.cpu.packing import ALIGNMENT, aligned_zeros
from apr.kernels.cpu.target import target_features
from apr.kernels.cpu.threads import Team

HAS_SHUFFLE = "ssse3" in target_features() or "avx2" in target_features()
# k pairs widened at a time.
CHUNK_PAIRS = 64
WIDE = CHUNK_PAIRS * 2 * PANEL  # numbers in a thread's buffer
GROUP = 8
_GROUPS = 2 * PANEL // GROUP  # of a k pair
# A group is read in full where it ends, and so may what follows the last one.
_SLACK = 2 * GROUP
# Bytes ahead that numbers are fetched into the second-level cache: while one piece is multiplied,
# nothing else would ask for the next.
_AHEAD = 8192
# Of `gains`.
_TRIAL_BYTES, _TRIALS, _LEAST_GAIN = 96 << 20, 7, 1.1

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_I8V = ir.VectorType(_I8, 2 * GROUP)


def _shuffles() -> np.ndarray:
    """uint8 (256, 16): where the bytes of a group come from; 128 gives zero."""
    found = np.full((256, GROUP, 2), 0x80, np.uint8)
    for mask in range(256):
        places = [i for i in range(GROUP) if mask >> i & 1]
        for rank, place in enumerate(places):
            found[mask, place] = 2 * rank, 2 * rank + 1
    return found.reshape(256, 2 * GROUP)


def _table() -> np.ndarray:
    found = aligned_zeros((256, 2 * GROUP), np.uint8)
    found[:] = _shuffles()
    return found


SHUFFLES = _table()


def _emit_widen(function: ir.Function) -> None:
    """widen(masks, values, pairs, shuffles, out) -> where the numbers go on."""
    masks, values, pairs, shuffles, out = function.args
    entry = function.append_basic_block("entry")
    loop, done = function.append_basic_block("loop"), function.append_basic_block("done")
    b = ir.IRBuilder(entry)
    module = function.module

    def declare(name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
        return module.globals.get(name) or ir.Function(
            module, ir.FunctionType(result, arguments), name
        )

    shuffle = declare("llvm.x86.ssse3.pshuf.b.128", _I8V, [_I8V, _I8V])
    count = declare("llvm.ctpop.i64", _I64, [_I64])
    pointer = _I8.as_pointer()
    prefetch = declare("llvm.prefetch.p0", ir.VoidType(), [pointer, _I32, _I32, _I32])
    one, four = ir.Constant(_I64, 1), ir.Constant(_I64, 4)
    b.branch(loop)
    b.position_at_end(loop)
    pair, at, here = b.phi(_I64), b.phi(_I64), b.phi(_I64)
    for phi, first in ((pair, ir.Constant(_I64, 0)), (at, values), (here, out)):
        phi.add_incoming(first, entry)

    def load(address: ir.Value, kind: ir.Type, align: int) -> ir.Value:
        return b.load(b.inttoptr(address, kind.as_pointer()), align=align)

    def plus(value: ir.Value, amount: int) -> ir.Value:
        return b.add(value, ir.Constant(_I64, amount))

    row = b.add(masks, b.mul(pair, ir.Constant(_I64, _GROUPS)))
    for line in range(2):  # a pair at half density takes two
        far = b.inttoptr(plus(at, _AHEAD + 64 * line), pointer)
        b.call(prefetch, [far, *(ir.Constant(_I32, value) for value in (0, 2, 1))])
    start = at
    for half in range(2):
        word = load(plus(row, 8 * half), _I64, 8)
        for i in range(8):
            # A group's byte, times the 16 bytes of a line of the table.
            moved = b.lshr(word, ir.Constant(_I64, 8 * i - 4)) if i else b.shl(word, four)
            by = load(b.add(shuffles, b.and_(moved, ir.Constant(_I64, 255 << 4))), _I8V, 16)
            # Where its numbers stand follows from the bits before it; no group waits for another.
            before = b.call(count, [b.shl(word, ir.Constant(_I64, 64 - 8 * i))]) if i else None
            here_from = b.add(start, b.shl(before, one)) if before else start
            wide = b.call(shuffle, [load(here_from, _I8V, 1), by])
            target = plus(here, 16 * (8 * half + i))
            b.store(wide, b.inttoptr(target, _I8V.as_pointer()), align=16)
        start = b.add(start, b.shl(b.call(count, [word]), one))
    next_at = start
    next_pair = plus(pair, 1)
    for phi, value in ((pair, next_pair), (at, next_at), (here, plus(here, PAIR_BYTES))):
        phi.add_incoming(value, loop)
    b.cbranch(b.icmp_signed("<", next_pair, pairs), loop, done)
    b.position_at_end(done)
    b.ret(next_at)


@intrinsic
def _widen(typingctx, masks, values, pairs, shuffles, out):
    """Groups of `pairs` k pairs into a dense piece of panel; all arguments are addresses but
    pairs. Returns the address behind the last number read.
    """
    signature = types.int64(*[types.int64] * 5)

    def codegen(context, builder, signature, args):
        if not HAS_SHUFFLE:  # compiled with the rest, never called
            return args[1]
        name = "apr_widen"
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(_I64, [_I64] * 5)
            function = ir.Function(builder.module, kind, name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            _emit_widen(function)
        return builder.call(function, args)

    return signature, codegen


@njit(nogil=True, cache=True)
def sparse_panel(rows, first, last, a, lda, masks, pairs, c, ldc, shuffles, wide):
    """C[rows, 64] = A @ panel for row blocks `first` to `last` of all rows.

    masks: address of the panel. c: of its columns in row 0. wide: of a buffer for CHUNK_PAIRS.
    """
    blocks = row_blocks(rows)
    values = masks + pairs * _GROUPS
    for p0 in range(0, pairs, CHUNK_PAIRS):
        depth = min(CHUNK_PAIRS, pairs - p0)
        values = _widen(masks + p0 * _GROUPS, values, depth, shuffles, wide)
        for i in range(first, last):
            r0, r1 = i * rows // blocks, (i + 1) * rows // blocks
            block_product(
                r1 - r0, a + r0 * lda + p0 * 4, lda, wide, depth, c + r0 * ldc, ldc, p0, wide
            )


@njit(nogil=True, cache=True)
def sparse_linear(tid, threads, a, lda, rows, weight, panels, k, c, ldc, shuffles, wide):
    """As `matmul.linear`, of a matrix without its zeros at address `weight`; no barrier."""
    if rows == 0:
        return
    blocks = row_blocks(rows)
    units = panels * blocks
    first, last = tid * units // threads, (tid + 1) * units // threads
    unit = first
    while unit < last:
        panel, block = unit // blocks, unit % blocks
        until = min(blocks, block + last - unit)
        sparse_panel(
            rows, block, until, a, lda, panel_address(weight, panel), k // 2,
            c + panel * 4 * PANEL, ldc, shuffles, wide,
        )  # fmt: skip
        unit += until - block


@njit(nogil=True, cache=True)
def panel_address(weight, panel):
    """Where a panel of a matrix without its zeros stands."""
    return weight + load_int64(weight + 8 * panel)


def without_zeros(packed: np.ndarray) -> np.ndarray:
    """Panels uint16 (panels, k / 2, 64, 2) as uint8 of the form above, at a cache line."""
    panels, pairs = packed.shape[:2]
    flat = packed.reshape(panels, -1)
    kept, masks = count_kept(flat), pairs * _GROUPS
    first = _lines(8 * (panels + 1))
    offsets = np.concatenate([[first], first + np.cumsum(_lines(masks + 2 * kept))])
    out = aligned_zeros((int(offsets[-1]) + _SLACK,), np.uint8)
    out[: 8 * (panels + 1)] = offsets.astype(np.int64).view(np.uint8)
    for panel, start in zip(flat, offsets, strict=False):
        values = start + masks
        _keep(panel, out[start:values], out[values:].view(np.uint16))
    return out


def _lines(sizes):
    """Bytes rounded up to whole cache lines."""
    return -(-sizes // ALIGNMENT) * ALIGNMENT


@njit(nogil=True, cache=True)
def count_kept(panels):
    """How many numbers of each row are not zero, int64."""
    found = np.zeros(panels.shape[0], np.int64)
    for row in range(panels.shape[0]):
        count = 0
        for i in range(panels.shape[1]):
            count += panels[row, i] != 0
        found[row] = count
    return found


@njit(nogil=True, cache=True)
def _keep(panel, masks, values):
    # Every number is written and the next one takes its place if it is zero: no branch.
    at = 0
    for group in range(masks.shape[0]):
        mask = 0
        for i in range(GROUP):
            value = panel[group * GROUP + i]
            kept = int(value != 0)
            values[at] = value
            mask |= kept << i
            at += kept
        masks[group] = mask


@cache
def gains(threads: int) -> bool:
    """Whether products without zeros are faster on this machine, and right.

    One row at half density, timed in turn with the dense product on more memory than caches hold.
    What is chosen changes no result.
    """
    if not HAS_SHUFFLE:
        return False
    pairs, team = 256, Team(threads)
    panels = _TRIAL_BYTES // (pairs * PAIR_BYTES)
    generator = np.random.default_rng(0)
    # Numbers between 1 and 2, or zero.
    one = generator.integers(0x3F80, 0x4000, (1, pairs, PANEL, 2), np.uint16)
    one *= generator.integers(0, 2, one.shape, np.uint16)
    dense = aligned_zeros((panels, *one.shape[1:]), np.uint16)
    dense[:] = one
    sparse = without_zeros(dense)
    row = aligned_zeros((1, 2 * pairs), np.uint16)
    row[:] = 0x3F80
    outs = [aligned_zeros((1, panels * PANEL), np.float32) for _ in range(2)]
    wide = aligned_zeros((threads, WIDE), np.uint16)
    a, lda = row.ctypes.data, row.strides[0]

    def with_zeros(tid: int, count: int) -> None:
        linear(
            tid, count, a, lda, 1, dense.ctypes.data, panels, 2 * pairs, outs[0].ctypes.data, 0
        )  # fmt: skip

    def without(tid: int, count: int) -> None:
        sparse_linear(
            tid, count, a, lda, 1, sparse.ctypes.data, panels, 2 * pairs, outs[1].ctypes.data, 0,
            SHUFFLES.ctypes.data, wide[tid].ctypes.data,
        )  # fmt: skip

    best = [math.inf, math.inf]
    for _ in range(_TRIALS):
        for i, way in enumerate((with_zeros, without)):
            begin = time.perf_counter()
            team.run(way)
            best[i] = min(best[i], time.perf_counter() - begin)
    team.close()
    return np.array_equal(outs[0], outs[1]) and best[0] > _LEAST_GAIN * best[1]
