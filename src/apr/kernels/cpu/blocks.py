"""Quantized blocks of GGUF files as panels: kept packed, widened a piece at a time.

A panel holds 64 rows of a matrix, so 64 output columns. For each block along k it holds the same
byte of all 64 rows side by side, byte after byte of the block: as many bytes as in the file, in an
order in which sixteen rows are widened by one instruction each. `widener(kind)` is a function that
turns 64 k pairs of such a panel into the bf16 panel that the micro-kernel multiplies (see
`microkernel`), in a buffer that stays in the caches.

The numbers are those of the file's decoder (`apr.checkpoint.blocks`), rounded to bf16: the same
fp32 products and sums in the same order, so results are those of the widened matrix, bit by bit.
(A zero may have the other sign, which no sum shows.) Where the bytes of a block stand is written
down in `apr.checkpoint.block_formats`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic

from apr.checkpoint.block_formats import CODEBOOK
from apr.checkpoint.gguf_header import GGML_TYPES
from apr.kernels.cpu.intrinsics import HAS_BF16_DOT, target_features
from apr.kernels.cpu.microkernel import _BF16V, LANES, PAIR_BYTES, PANEL, _declare
from apr.kernels.cpu.packing import Zeros, aligned_zeros

# Bytes ahead that blocks are fetched from.
_AHEAD = 8192
WIDENER = types.void(types.int64, types.int64, types.int64, types.int64)
_HALF_CAST = "f16c" in target_features() or "avx512f" in target_features()
_HAS_PERMUTE = "avx512f" in target_features()

_I8, _I16, _I32, _I64, _F32 = (
    *(ir.IntType(bits) for bits in (8, 16, 32, 64)),
    ir.FloatType(),
)
_I8V, _I16V, _I32V, _F32V = (ir.VectorType(kind, LANES) for kind in (_I8, _I16, _I32, _F32))

Bits = tuple[int, int, int]  # byte of a block, shift, number of bits
Scales = tuple[Any, Any]  # fp32 factor and what is added (or None), of 16 rows


@dataclass(frozen=True)
class Kind:
    """How a type's numbers are read out of a block: scale * (q - offset) + addend.

    low: where the low bits of q(e) stand, e below `elements`. high: the bits above them. scales:
    emits those of a sub-block of `sub` elements. signed: q is an int8. codebook: q is looked up.
    """

    low: Callable[[int], Bits]
    scales: Callable[[_Rows, int], Scales]
    sub: int = 32
    high: Callable[[int], Bits] | None = None
    offset: int = 0
    signed: bool = False
    codebook: bool = False
    # Offsets of fp16 scales, which must be finite, and of one in fp32.
    halves: tuple[int, ...] = (0,)
    single: int | None = None


class _Rows:
    """Emits operations on the blocks of sixteen rows: byte i of all stands at base + 64 i."""

    def __init__(self, builder: ir.IRBuilder, base: ir.Value) -> None:
        self.b, self.base = builder, base
        self._seen: dict[tuple[int, bool], ir.Value] = {}

    def number(self, value: int) -> ir.Constant:
        return ir.Constant(_I32V, [value] * LANES)

    def floats(self, value: float) -> ir.Constant:
        return ir.Constant(_F32V, [value] * LANES)

    def byte(self, place: int, signed: bool = False) -> ir.Value:
        """i32 lanes; the last few are remembered."""
        key = place, signed
        if key not in self._seen:
            address = self.b.add(self.base, ir.Constant(_I64, PANEL * place))
            raw = self.b.load(self.b.inttoptr(address, _I8V.as_pointer()), align=16)
            wide = self.b.sext(raw, _I32V) if signed else self.b.zext(raw, _I32V)
            while len(self._seen) > 3:
                del self._seen[next(iter(self._seen))]
            self._seen[key] = wide
        return self._seen[key]

    def bits(self, where: Bits, to: int = 0) -> ir.Value:
        """The bits, shifted to bit `to` and up."""
        place, shift, count = where
        value = self.byte(place)
        if shift > to:
            value = self.b.lshr(value, self.number(shift - to))
        elif shift < to:
            value = self.b.shl(value, self.number(to - shift))
        if to or shift + count < 8:
            value = self.b.and_(value, self.number(((1 << count) - 1) << to))
        return value

    def joined(self, low: ir.Value, high: ir.Value, shift: int) -> ir.Value:
        return self.b.or_(low, self.b.shl(high, self.number(shift)))

    def half(self, place: int) -> ir.Value:
        """fp32 of the fp16 number at a byte of the blocks, finite."""
        b = self.b
        found = self.joined(self.byte(place), self.byte(place + 1), 8)
        if _HALF_CAST:
            narrow = b.bitcast(b.trunc(found, _I16V), ir.VectorType(ir.HalfType(), LANES))
            return b.fpext(narrow, _F32V)
        low = b.and_(found, self.number(0x7FFF))
        small = b.fmul(b.sitofp(low, _F32V), self.floats(2.0**-24))  # subnormal: a multiple of that
        bits = b.add(b.shl(low, self.number(13)), self.number(112 << 23))
        usual = b.icmp_signed(">=", low, self.number(0x400))
        size = b.select(usual, bits, b.bitcast(small, _I32V))
        sign = b.shl(b.and_(found, self.number(0x8000)), self.number(16))
        return b.bitcast(b.or_(size, sign), _F32V)

    def single(self, place: int) -> ir.Value:
        """The fp32 number at a byte of the blocks."""
        found = self.byte(place)
        for i in (1, 2, 3):
            found = self.joined(found, self.byte(place + i), 8 * i)
        return self.b.bitcast(found, _F32V)

    def times(self, number: ir.Value, integer: ir.Value) -> ir.Value:
        return self.b.fmul(number, self.b.sitofp(integer, _F32V))

    def value(self, kind: Kind, element: int, scales: Scales) -> ir.Value:
        """fp32 lanes of one element."""
        b, (scale, addend) = self.b, scales
        if kind.signed:
            q = self.byte(kind.low(element)[0], signed=True)
        else:
            q = self.bits(kind.low(element))
        if kind.high is not None:
            q = b.or_(q, self.bits(kind.high(element), kind.low(element)[2]))
        wide = self.level(q) if kind.codebook else b.sitofp(q, _F32V)
        if kind.offset:
            # (q - offset) * scale in one rounding: offset * scale is exact, being a power of two.
            fma = _declare(b.module, f"llvm.fma.v{LANES}f32", _F32V, [_F32V] * 3)
            return b.call(fma, [wide, scale, addend])
        product = b.fmul(wide, scale)
        return product if addend is None else b.fadd(product, addend)

    def level(self, q: ir.Value) -> ir.Value:
        b = self.b
        if _HAS_PERMUTE:
            permute = _declare(b.module, "llvm.x86.avx512.permvar.sf.512", _F32V, [_F32V, _I32V])
            return b.call(permute, [ir.Constant(_F32V, [float(x) for x in CODEBOOK]), q])
        choices = [self.floats(float(x)) for x in CODEBOOK]
        for bit in range(4):
            odd = b.icmp_signed("!=", b.and_(q, self.number(1 << bit)), self.number(0))
            pairs = zip(choices[::2], choices[1::2], strict=True)
            choices = [b.select(odd, second, first) for first, second in pairs]
        return choices[0]

    def pair(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """i32 lanes of two bf16 numbers, each rounded to nearest even."""
        b = self.b
        if HAS_BF16_DOT:
            narrow = _declare(
                b.module, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _BF16V, [_F32V, _F32V]
            )
            words = ir.VectorType(_I16, 2 * LANES)
            found = b.bitcast(b.call(narrow, [second, first]), words)
            order = [i // 2 + LANES * (i % 2) for i in range(2 * LANES)]
            mask = ir.Constant(ir.VectorType(_I32, 2 * LANES), order)
            return b.bitcast(b.shuffle_vector(found, ir.Constant(words, ir.Undefined), mask), _I32V)
        low, high = (self._rounded(b.bitcast(x, _I32V)) for x in (first, second))
        return b.or_(b.lshr(low, self.number(16)), b.and_(high, self.number(0xFFFF0000)))

    def _rounded(self, bits: ir.Value) -> ir.Value:
        b = self.b
        odd = b.and_(b.lshr(bits, self.number(16)), self.number(1))
        return b.add(b.add(bits, self.number(0x7FFF)), odd)


def _plain(offset: int = 0, minimum: bool = False) -> Callable[[_Rows, int], Scales]:
    def scales(rows: _Rows, sub: int) -> Scales:
        scale = rows.half(0)
        if offset:
            return scale, rows.b.fmul(scale, rows.floats(-float(offset)))
        return scale, rows.half(2) if minimum else None

    return scales


def _q2_k(rows: _Rows, sub: int) -> Scales:
    scale = rows.times(rows.half(80), rows.bits((sub, 0, 4)))
    return scale, rows.b.fneg(rows.times(rows.half(82), rows.bits((sub, 4, 4))))


def _q3_k(rows: _Rows, sub: int) -> Scales:
    low = rows.bits((96 + sub % 8, 4 * (sub // 8), 4))
    integer = rows.joined(low, rows.bits((104 + sub % 4, 2 * (sub // 4), 2)), 4)
    scale = rows.times(rows.half(108), rows.b.sub(integer, rows.number(32)))
    return scale, rows.b.fmul(scale, rows.floats(-4.0))


def _q4_k(rows: _Rows, sub: int) -> Scales:
    if sub < 4:
        scale, minimum = rows.bits((4 + sub, 0, 6)), rows.bits((8 + sub, 0, 6))
    else:
        scale = rows.joined(rows.bits((8 + sub, 0, 4)), rows.bits((sub, 6, 2)), 4)
        minimum = rows.joined(rows.bits((8 + sub, 4, 4)), rows.bits((4 + sub, 6, 2)), 4)
    addend = rows.b.fneg(rows.times(rows.half(2), minimum))
    return rows.times(rows.half(0), scale), addend


def _q6_k(rows: _Rows, sub: int) -> Scales:
    scale = rows.times(rows.half(208), rows.byte(192 + sub, signed=True))
    return scale, rows.b.fmul(scale, rows.floats(-32.0))


def _q8_k(rows: _Rows, sub: int) -> Scales:
    return rows.single(0), None


def _iq4_xs(rows: _Rows, sub: int) -> Scales:
    low = rows.bits((4 + sub // 2, 4 * (sub % 2), 4))
    integer = rows.joined(low, rows.bits((2 + sub // 4, 2 * (sub % 4), 2)), 4)
    return rows.times(rows.half(0), rows.b.sub(integer, rows.number(32))), None


def _nibbles(first: int) -> Callable[[int], Bits]:
    """32 elements in 16 bytes: low halves, then high halves."""
    return lambda e: (first + e % 16 + 16 * (e // 32), 4 * (e // 16 % 2), 4)


def _wide_nibbles(first: int) -> Callable[[int], Bits]:
    """64 elements in 32 bytes."""
    return lambda e: (first + e % 32 + 32 * (e // 64), 4 * (e // 32 % 2), 4)


def _quarters(first: int) -> Callable[[int], Bits]:
    """128 elements in 32 bytes, lowest bits first."""
    return lambda e: (first + e % 32 + 32 * (e // 128), 2 * (e // 32 % 4), 2)


def _single_bits(first: int) -> Callable[[int], Bits]:
    """256 elements in 32 bytes."""
    return lambda e: (first + e % 32, e // 32, 1)


KINDS = {
    "Q4_0": Kind(_nibbles(2), _plain(8), offset=8),
    "Q4_1": Kind(_nibbles(4), _plain(minimum=True), halves=(0, 2)),
    "Q5_0": Kind(_nibbles(6), _plain(16), high=lambda e: (2 + e // 8, e % 8, 1), offset=16),
    "Q5_1": Kind(
        _nibbles(8), _plain(minimum=True), high=lambda e: (4 + e // 8, e % 8, 1), halves=(0, 2)
    ),
    "Q8_0": Kind(lambda e: (2 + e, 0, 8), _plain(), signed=True),
    "IQ4_NL": Kind(_nibbles(2), _plain(), codebook=True),
    "Q2_K": Kind(_quarters(16), _q2_k, 16, halves=(80, 82)),
    "Q3_K": Kind(_quarters(32), _q3_k, 16, _single_bits(0), offset=4, halves=(108,)),
    "Q4_K": Kind(_wide_nibbles(16), _q4_k, halves=(0, 2)),
    "Q5_K": Kind(_wide_nibbles(48), _q4_k, high=_single_bits(16), halves=(0, 2)),
    "Q6_K": Kind(
        lambda e: (e % 64 + 64 * (e // 128), 4 * (e // 64 % 2), 4),
        _q6_k, 16, _quarters(128), offset=32, halves=(208,),
    ),
    "Q8_K": Kind(lambda e: (4 + e, 0, 8), _q8_k, signed=True, halves=(), single=0),
    "IQ4_XS": Kind(_nibbles(8), _iq4_xs, codebook=True),
}  # fmt: skip


def _emit(function: ir.Function, name: str, first: int, count: int) -> None:
    """widen(block, out): elements first .. first + count - 1 of the blocks of 64 rows."""
    kind, form = KINDS[name], GGML_TYPES[name]
    block, out = function.args
    entry = function.append_basic_block("entry")
    loop, done = function.append_basic_block("loop"), function.append_basic_block("done")
    b = ir.IRBuilder(entry)
    b.branch(loop)
    b.position_at_end(loop)
    lane = b.phi(_I64)
    lane.add_incoming(ir.Constant(_I64, 0), entry)
    rows = _Rows(b, b.add(block, lane))
    to = b.add(out, b.mul(lane, ir.Constant(_I64, 4)))
    # Each round of the loop asks for a part of what will be widened after this, into the
    # second-level cache: bytes are not read in their order here, which the processor would follow.
    lines = -(-form.block_bytes * count // form.block_elements // (PANEL // LANES))
    ahead = b.add(block, b.mul(lane, ir.Constant(_I64, lines * (PANEL // LANES))))
    ahead = b.add(ahead, ir.Constant(_I64, _AHEAD + first // count * lines * 4 * PANEL))
    pointer = _I8.as_pointer()
    prefetch = _declare(b.module, "llvm.prefetch.p0", ir.VoidType(), [pointer, _I32, _I32, _I32])
    for line in range(lines):
        far = b.inttoptr(b.add(ahead, ir.Constant(_I64, PANEL * line)), pointer)
        b.call(prefetch, [far, *(ir.Constant(_I32, value) for value in (0, 2, 1))])
    # Elements that share bytes follow one another; of a sub-block the scales are made once.
    order = sorted(range(first, first + count, 2), key=lambda e: (kind.low(e)[0], e))
    needed = sorted({e // kind.sub for e in order})
    scales = {sub: kind.scales(rows, sub) for sub in needed}
    for element in order:
        found = scales[element // kind.sub]
        pair = rows.pair(*(rows.value(kind, e, found) for e in (element, element + 1)))
        address = b.add(to, ir.Constant(_I64, (element - first) // 2 * PAIR_BYTES))
        b.store(pair, b.inttoptr(address, _I32V.as_pointer()), align=64)
    following = b.add(lane, ir.Constant(_I64, LANES))
    lane.add_incoming(following, loop)
    b.cbranch(b.icmp_signed("<", following, ir.Constant(_I64, PANEL)), loop, done)
    b.position_at_end(done)
    b.ret_void()


@intrinsic(prefer_literal=True)
def _widen(typingctx, kind, first, count, block, out):
    """Elements `first` .. of the blocks of 64 rows, as a piece of bf16 panel. block, out:
    addresses.
    """
    name, start, length = kind.literal_value, first.literal_value, count.literal_value
    signature = types.void(kind, first, count, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        label = f"apr_widen_{name}_{start}"
        function = builder.module.globals.get(label)
        if function is None:
            shape = ir.FunctionType(ir.VoidType(), [_I64] * 2)
            function = ir.Function(builder.module, shape, label)
            function.linkage = "internal"
            function.attributes.add("noinline")
            _emit(function, name, start, length)
        builder.call(function, args[3:])
        return context.get_dummy_value()

    return signature, codegen


@cache
def widener(kind: str) -> Any:
    """A C function (panel, first, pairs, out) of addresses and counts: k pairs `first` to
    first + pairs - 1 of a panel of these blocks as bf16 pairs at `out`. first: a multiple of 64.
    """
    size = GGML_TYPES[kind].block_bytes * PANEL
    if GGML_TYPES[kind].block_elements == 32:

        def widen(panel, first, pairs, out):
            block = panel + first // 16 * size
            for i in range(pairs // 16):
                _widen(kind, 0, 32, block + i * size, out + i * 16 * PAIR_BYTES)

    else:

        def widen(panel, first, pairs, out):
            block = panel + first // 128 * size
            if first % 128 == 0:
                _widen(kind, 0, 128, block, out)
            else:
                _widen(kind, 128, 128, block, out)

    return cfunc(WIDENER, cache=True)(widen)


def interleave(data: torch.Tensor, kind: str, zeros: Zeros = aligned_zeros) -> np.ndarray | None:
    """Rows of blocks, uint8 (N, bytes), as panels: uint8 (ceil(N / 64), blocks, bytes, 64).

    None where a scale is not finite: such blocks are not widened here.
    """
    size, form = GGML_TYPES[kind].block_bytes, KINDS[kind]
    blocks = data.reshape(len(data), -1, size)
    for place in form.halves:
        half = blocks[:, :, place : place + 2].contiguous().view(torch.float16)
        if not bool(half.isfinite().all()):
            return None
    if form.single is not None:
        place = form.single
        single = blocks[:, :, place : place + 4].contiguous().view(torch.float32)
        if not bool((single.isfinite() & ((single == 0) | (single.abs() > 1e-30))).all()):
            return None
    panels = -(-len(data) // PANEL)
    out = zeros((panels, blocks.shape[1], size, PANEL), np.uint8)
    whole = len(data) // PANEL
    target = torch.from_numpy(out)
    rows = blocks[: whole * PANEL].view(whole, PANEL, -1, size)
    target[:whole].copy_(rows.permute(0, 2, 3, 1))
    if whole < panels:
        rest = blocks[whole * PANEL :]
        target[whole, :, :, : len(rest)].copy_(rest.permute(1, 2, 0))
    return out
