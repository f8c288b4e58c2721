"""Weights in panels of 64 output columns (see `microkernel`): packed once, when a model is loaded.

A matrix is a table of its panels, int64 (panels, 4): the address of each; the function that widens
a piece of it, or 0 where it is bf16 already; its k pairs; and the bytes of 64 of them where these
are always as many. So the parts of a fused product, and the panels of one part, can be of different
kinds: bf16, quantized blocks of a GGUF file (`blocks`), or bf16 without its zeros.

**Without zeros** there is less to read where a pruned model's speed is that of memory. A panel is
cut into groups of eight numbers. Each group has a byte whose bits say which of them are not zero,
and only these are stored. So 64 columns and k rows take k * 64 * (2 * density + 1 / 8) bytes: 9/16
of a dense panel at 50 %, whatever the pattern. Groups are widened by one byte shuffle each (x86,
SSSE3). In memory: int64 offsets from the panel's start of its groups' bytes, and of the numbers of
each 64 k pairs; the bytes of all groups; the numbers one after another.

What is widened has the same bits and is summed in the same order as a dense panel: results are
equal, bit by bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from apr.checkpoint.gguf_header import GGML_TYPES
from apr.kernels.cpu.blocks import WIDENER, interleave, widener
from apr.kernels.cpu.intrinsics import load_int64, target_features
from apr.kernels.cpu.matmul import CHUNK_PAIRS, WIDE, linear
from apr.kernels.cpu.microkernel import PAIR_BYTES, PANEL
from apr.kernels.cpu.packing import ALIGNMENT, Zeros, aligned_zeros
from apr.kernels.cpu.threads import Team

HAS_SHUFFLE = "ssse3" in target_features() or "avx2" in target_features()
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


def _emit_widen(function: ir.Function) -> None:
    """widen(masks, values, pairs, out)."""
    masks, values, pairs, out = function.args
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
    kind = ir.ArrayType(_I8, 256 * 2 * GROUP)
    table = ir.GlobalVariable(module, kind, "apr_shuffles")
    table.linkage, table.global_constant, table.align = "internal", True, 64
    table.initializer = ir.Constant(kind, _shuffles().reshape(-1).tolist())
    shuffles = b.ptrtoint(table, _I64)
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
    b.ret_void()


@intrinsic
def _widen(typingctx, masks, values, pairs, out):
    """Groups of `pairs` k pairs into a dense piece of panel; all arguments are addresses but
    pairs.
    """

    def codegen(context, builder, signature, args):
        function = ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [_I64] * 4), "apr_widen_groups"
        )
        function.linkage = "internal"
        function.attributes.add("noinline")
        _emit_widen(function)
        builder.call(function, args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@cache
def thin_widener() -> Any:
    """As `blocks.widener`, for panels without zeros."""

    def widen(panel, first, pairs, out):
        masks = panel + load_int64(panel) + first * _GROUPS
        values = panel + load_int64(panel + 8 * (1 + first // CHUNK_PAIRS))
        _widen(masks, values, pairs, out)

    return cfunc(WIDENER, cache=True)(widen)


@dataclass(frozen=True)
class Panels:
    """A matrix, or part of one. table: int64 (panels, 4), as above. memory: what it points to."""

    table: np.ndarray
    memory: tuple[np.ndarray, ...]
    nbytes: int


def joined(*parts: Panels, alternate: bool = False) -> Panels:
    """Matrices below one another, or with their panels in turn."""
    tables = [part.table for part in parts]
    table = np.stack(tables, axis=1).reshape(-1, 4) if alternate else np.concatenate(tables)
    memory = tuple(array for part in parts for array in part.memory)
    return Panels(table, memory, sum(part.nbytes for part in parts))


def dense_panels(packed: np.ndarray) -> Panels:
    """Panels uint16 (panels, k / 2, 64, 2) as they are."""
    panels, pairs = packed.shape[:2]
    return Panels(
        _table(packed.ctypes.data + 2 * packed[0].size * np.arange(panels), 0, pairs, 0),
        (packed,),
        packed.nbytes,
    )


def block_panels(data: torch.Tensor, kind: str, zeros: Zeros = aligned_zeros) -> Panels | None:
    """Quantized blocks, uint8 (N, bytes of a row); None where a scale is not finite."""
    packed = interleave(data, kind, zeros)
    if packed is None:
        return None
    elements = GGML_TYPES[kind].block_elements
    pairs = packed.shape[1] * elements // 2
    addresses = packed.ctypes.data + packed[0].size * np.arange(len(packed))
    stride = packed[0, 0].size * 2 * CHUNK_PAIRS // elements
    return Panels(_table(addresses, widener(kind).address, pairs, stride), (packed,), packed.nbytes)


def thin_panels(packed: np.ndarray, zeros: Zeros = aligned_zeros) -> Panels:
    """Panels uint16 (panels, k / 2, 64, 2) without their zeros."""
    panels, pairs = packed.shape[:2]
    pieces = -(-pairs // CHUNK_PAIRS)
    flat = packed.reshape(panels, -1)
    kept = np.stack(
        [_count_kept(flat[:, at : at + WIDE]) for at in range(0, flat.shape[1], WIDE)], axis=1
    )
    head, masks = int(_lines(8 * (1 + pieces))), pairs * _GROUPS
    sizes = _lines(head + masks + 2 * kept.sum(axis=1))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    out = zeros((int(starts[-1]) + _SLACK,), np.uint8)
    for panel, start, counts in zip(flat, starts, kept, strict=False):
        own = out[start:]
        values = head + masks
        offsets = [head, *(values + 2 * (np.cumsum(counts) - counts))]
        own[: 8 * len(offsets)] = np.array(offsets, np.int64).view(np.uint8)
        _keep(panel, own[head:values], own[values:].view(np.uint16))
    table = _table(out.ctypes.data + starts[:-1], thin_widener().address, pairs, 0)
    return Panels(table, (out,), out.nbytes)


def _table(addresses: np.ndarray, widen: int, pairs: int, stride: int) -> np.ndarray:
    table = np.empty((len(addresses), 4), np.int64)
    table[:, 0], table[:, 1:] = addresses, (widen, pairs, stride)
    return table


def _lines(sizes):
    """Bytes rounded up to whole cache lines."""
    return -(-sizes // ALIGNMENT) * ALIGNMENT


def _count_kept(panels: np.ndarray) -> np.ndarray:
    """How many numbers of each row are not zero."""
    return np.count_nonzero(panels, axis=1)


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
    ways = (dense_panels(dense), thin_panels(dense))
    row = aligned_zeros((1, 2 * pairs), np.uint16)
    row[:] = 0x3F80
    outs = [aligned_zeros((1, panels * PANEL), np.float32) for _ in ways]
    wide = aligned_zeros((threads, WIDE), np.uint16)

    def product(tid: int, count: int, table: np.ndarray, out: np.ndarray) -> None:
        linear(
            tid, count, row.ctypes.data, row.strides[0], 1, table, 0, panels, out.ctypes.data, 0,
            wide[tid].ctypes.data,
        )  # fmt: skip

    best = [math.inf, math.inf]
    for _ in range(_TRIALS):
        for i, way in enumerate(ways):
            begin = time.perf_counter()
            team.run(product, way.table, outs[i])
            best[i] = min(best[i], time.perf_counter() - begin)
    team.close()
    return np.array_equal(outs[0], outs[1]) and best[0] > _LEAST_GAIN * best[1]
