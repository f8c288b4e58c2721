"""Weight arithmetic on raw memory: any mix of bf16, fp16 and fp32 in, fp32 inside, one type out.

Tensors are (address, kind) pairs, so that one compiled function serves every number and type of
inputs; the caller keeps them alive. Work goes tile by tile: inputs are widened into a tile that
stays in the first-level cache, so memory is read once and written once. Functions that read inputs
return the index of the first one that holds NaN or infinity, or -1.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import float32, int64, njit, types, uint32, uint64
from numba.extending import intrinsic

from apr.kernels.cpu.intrinsics import bits_float, float_bits, to_bf16

BF16, FP16, FP32 = 0, 1, 2
TILE = 2048
LANES = 16
# How a model's delta is thinned out before it is merged.
KEEP_ALL, KEEP_MAGNITUDE, KEEP_RANDOM = 0, 1, 2
# Whose deltas count at a position: everybody's, or those with the elected sign (TIES step 2).
NO_ELECTION, BY_SUM, BY_COUNT = 0, 1, 2
_I32 = ir.IntType(32)
FAST = {"contract", "reassoc", "nsz"}


def _loader(element, numba_type):
    """An intrinsic (address, index) -> the element there."""

    @intrinsic
    def load(typingctx, address, index):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], element.as_pointer())
            return builder.load(builder.gep(pointer, [args[1]]))

        return numba_type(types.int64, types.int64), codegen

    return load


load_u16 = _loader(ir.IntType(16), types.uint16)
load_u32 = _loader(ir.IntType(32), types.uint32)


@intrinsic
def half_float(typingctx, bits):
    """fp16 bits (uint16) -> float32, exact."""

    def codegen(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def float_half(typingctx, value):
    """float32 -> fp16 bits (uint16), round to nearest even."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@intrinsic
def _prefetch_line(typingctx, address):
    """Ask for the cache line at an address; never fails."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer.type,), kind)
        builder.call(function, [pointer, _I32(0), _I32(2), _I32(1)])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit(nogil=True, cache=True, inline="always")
def _prefetch(address, nbytes):
    """A tile is about a page, and processors do not look ahead across pages by themselves."""
    for line in range(0, nbytes, 64):
        _prefetch_line(address + line)


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def widen(address, kind, first, tile):
    """Elements first .. first + len(tile) as fp32. Returns whether all are finite."""
    n = tile.shape[0]
    size = 4 if kind == FP32 else 2
    _prefetch(address + (first + n) * size, n * size)
    if kind == BF16:
        for i in range(n):
            tile[i] = bits_float(uint32(load_u16(address, first + i)) << uint32(16))
    elif kind == FP16:
        for i in range(n):
            tile[i] = half_float(load_u16(address, first + i))
    else:
        for i in range(n):
            tile[i] = bits_float(load_u32(address, first + i))
    nothing = float32(0.0)  # 0 * x is 0 for every finite x and NaN for the others
    for i in range(n):
        nothing += tile[i] * float32(0.0)
    return nothing == float32(0.0)


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _subtract(tile, base):
    for i in range(tile.shape[0]):
        tile[i] -= base[i]


@njit(nogil=True, cache=True)
def narrow_bf16(tile, out):
    """fp32 -> bf16 bits."""
    for i in range(tile.shape[0]):
        out[i] = to_bf16(tile[i])


@njit(nogil=True, cache=True)
def narrow_fp16(tile, out):
    """fp32 -> fp16 bits; beyond 65504 becomes infinity."""
    for i in range(tile.shape[0]):
        out[i] = float_half(tile[i])


@njit(nogil=True, cache=True)
def _narrow(tile, first, out16, out32, kind):
    n = tile.shape[0]
    if kind == BF16:
        narrow_bf16(tile, out16[first : first + n])
    elif kind == FP16:
        narrow_fp16(tile, out16[first : first + n])
    else:
        out32[first : first + n] = tile


@njit(nogil=True, cache=True, fastmath=FAST)
def combine(addresses, kinds, coefficients, total, out16, out32, out_kind, count):
    """out = sum of coefficients[m] * x_m, for `total` the sum of the coefficients.

    Computed as total * x_0 + sum coefficients[m] * (x_m - x_0), so equal inputs with coefficients
    that sum to 1 come out unchanged.
    """
    first_tile, tile = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    result = np.empty(TILE, np.float32)
    for start in range(0, count, TILE):
        n = min(TILE, count - start)
        x0, x, acc = first_tile[:n], tile[:n], result[:n]
        if not widen(addresses[0], kinds[0], start, x0):
            return 0
        for i in range(n):
            acc[i] = total * x0[i]
        for m in range(1, addresses.shape[0]):
            if not widen(addresses[m], kinds[m], start, x):
                return m
            c = coefficients[m]
            for i in range(n):
                acc[i] += c * (x[i] - x0[i])
        _narrow(acc, start, out16, out32, out_kind)
    return -1


@njit(nogil=True, cache=True, fastmath=FAST)
def gram(addresses, kinds, base_address, base_kind, count, out):
    """Add the inner products of the inputs, less the base if its address is not 0, to out (M, M).

    Tiles in fp32, their sums in fp64.
    """
    models = addresses.shape[0]
    tiles, base = np.empty((models, TILE), np.float32), np.empty(TILE, np.float32)
    for start in range(0, count, TILE):
        n = min(TILE, count - start)
        if base_address != 0 and not widen(base_address, base_kind, start, base[:n]):
            return models
        for m in range(models):
            if not widen(addresses[m], kinds[m], start, tiles[m, :n]):
                return m
            if base_address != 0:
                _subtract(tiles[m, :n], base[:n])
            for j in range(m + 1):
                a, b = tiles[m], tiles[j]
                total = float32(0.0)
                for i in range(n):
                    total += a[i] * b[i]
                out[m, j] += total
                if j < m:
                    out[j, m] += total
    return -1


@intrinsic
def _inside(typingctx, values, first, low, high):
    """Bits 0 .. 15: which of 16 floats from values[first] on lie strictly between low and high."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        vector = ir.VectorType(ir.FloatType(), LANES)
        pointer = builder.bitcast(builder.gep(array.data, [args[1]]), vector.as_pointer())
        x = builder.load(pointer, align=4)

        def splat(value):
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
            zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
            return builder.shuffle_vector(single, single, zeros)

        above = builder.fcmp_ordered(">", x, splat(args[2]))
        below = builder.fcmp_ordered("<", x, splat(args[3]))
        bits = builder.bitcast(builder.and_(above, below), ir.IntType(LANES))
        return builder.zext(bits, _I32)

    return types.uint32(values, types.int64, types.float32, types.float32), codegen


@intrinsic
def _lowest_bit(typingctx, word):
    """Index of the lowest bit that is set in a uint32 that is not 0."""

    def codegen(context, builder, signature, args):
        return builder.zext(builder.cttz(args[0], ir.Constant(ir.IntType(1), 1)), ir.IntType(64))

    return types.int64(types.uint32), codegen


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _collect(x, low, high, found, kept):
    """Append what lies strictly between low and high. The new length, or -1 when full."""
    n = x.shape[0]
    if kept + n > found.shape[0]:
        return -1
    whole = n - n % LANES
    for first in range(0, whole, LANES):
        bits = _inside(x, first, low, high)
        while bits != 0:
            found[kept] = x[first + _lowest_bit(bits)]
            kept += 1
            bits = uint32(bits & uint32(bits - uint32(1)))
    for i in range(whole, n):
        if x[i] > low and x[i] < high:
            found[kept] = x[i]
            kept += 1
    return kept


@njit(nogil=True, cache=True, fastmath=FAST)
def bracket(addresses, kinds, base_address, base_kind, count, low, high, found, counts):
    """Per model, the magnitudes |x - base| strictly between low and high, in order.

    low, high: (M,). found: (M, room). counts: (M, 4), to which are added the numbers above high,
    equal to high and equal to low, and of magnitudes put into `found`. Returns what `check` takes,
    or -2 when found has no room.
    """
    models = addresses.shape[0]
    x_tile, base_tile = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(0, count, TILE):
        n = min(TILE, count - start)
        x, base = x_tile[:n], base_tile[:n]
        if not widen(base_address, base_kind, start, base):
            return models
        for m in range(models):
            if not widen(addresses[m], kinds[m], start, x):
                return m
            least, most = low[m], high[m]
            # Counted in fp32, which is exact for a tile and as wide as what is counted.
            above, at_high, at_low = float32(0.0), float32(0.0), float32(0.0)
            for i in range(n):
                size = abs(x[i] - base[i])
                above += float32(1.0) if size > most else float32(0.0)
                at_high += float32(1.0) if size == most else float32(0.0)
                at_low += float32(1.0) if size == least else float32(0.0)
                x[i] = size
            counts[m, 0] += int64(above)
            counts[m, 1] += int64(at_high)
            counts[m, 2] += int64(at_low)
            kept = _collect(x, least, most, found[m], counts[m, 3])
            if kept < 0:
                return -2
            counts[m, 3] = kept
    return -1


@njit(nogil=True, cache=True, fastmath=FAST)
def nth_equal(address, kind, base_address, base_kind, count, value, wanted):
    """Index just behind the `wanted`-th element with |x - base| == value; count if there is none"""
    x_tile, base_tile = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    seen = 0
    for start in range(0, count, TILE):
        n = min(TILE, count - start)
        x, base = x_tile[:n], base_tile[:n]
        widen(base_address, base_kind, start, base)
        widen(address, kind, start, x)
        here = float32(0.0)
        for i in range(n):
            x[i] = abs(x[i] - base[i])
            here += float32(1.0) if x[i] == value else float32(0.0)
        if seen + int64(here) < wanted:
            seen += int64(here)
            continue
        for i in range(n):
            seen += int64(x[i] == value)
            if seen == wanted:
                return start + i + 1
    return count


@njit(nogil=True, cache=True, inline="always")
def _mixed(word):
    """A bijection of 32-bit words whose output bits each depend on all input bits."""
    word = uint32(word ^ (word >> uint32(16)))
    word = uint32(word * uint32(0x7FEB352D))
    word = uint32(word ^ (word >> uint32(15)))
    word = uint32(word * uint32(0x846CA68B))
    return uint32(word ^ (word >> uint32(16)))


@njit(nogil=True, cache=True)
def random_words(key, first, out):
    """32 random bits for each of the counters first, first + 1, ...; the same key, the same bits.

    key: uint64. A counter-based generator: word i does not depend on how the work is cut.
    """
    for start in range(0, out.shape[0], TILE):
        n = min(TILE, out.shape[0] - start)
        _random_tile(key, first + start, out[start : start + n])


@njit(nogil=True, cache=True)
def _random_tile(key, first, out):
    """random_words for less than 2**32 counters."""
    same_upper_half = min(out.shape[0], 4294967296 - (first & 0xFFFFFFFF))
    _random_run(key, first, out[:same_upper_half])
    if same_upper_half < out.shape[0]:
        _random_run(key, first + same_upper_half, out[same_upper_half:])


@njit(nogil=True, cache=True)
def _random_run(key, first, out):
    """random_words for counters with the same upper half."""
    low = uint32(key & uint64(0xFFFFFFFF))
    high = _mixed(uint32(uint32(key >> uint64(32)) ^ uint32(uint64(first) >> uint64(32))))
    begin = uint32(uint64(first) & uint64(0xFFFFFFFF))
    for i in range(out.shape[0]):
        out[i] = _mixed(uint32(_mixed(uint32(uint32(begin + uint32(i)) ^ low)) + high))


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _thin(d, start, mode, rule, key, words):
    """Set the deltas of a tile to zero that are not kept, and scale the others, in place.

    rule: scale, then for KEEP_MAGNITUDE the least magnitude kept and the index before which an
    equal one is kept, the same for magnitudes that are too large; for KEEP_RANDOM the number out
    of 2**32 that are kept and the index of the first element.
    """
    n = d.shape[0]
    scale = float32(rule[0])
    if mode == KEEP_MAGNITUDE:
        tie = min(max(int64(rule[2]) - start, 0), n)
        tie_most = min(max(int64(rule[4]) - start, 0), n)
        # Between these cuts the rule is the same for all: one closed interval of magnitudes.
        first, second = min(tie, tie_most), max(tie, tie_most)
        for part in range(3):
            begin = 0 if part == 0 else (first if part == 1 else second)
            end = first if part == 0 else (second if part == 1 else n)
            least, most = float32(rule[1]), float32(rule[3])
            if begin >= tie:  # the next float: magnitudes are not negative
                least = bits_float(uint32(float_bits(least) + uint32(1)))
            if begin < tie_most:
                most = bits_float(uint32(float_bits(most) - uint32(1)))
            piece = d[begin:end]  # counted from 0: numba then knows that no index is negative
            for i in range(piece.shape[0]):
                size = abs(piece[i])
                keep = (size >= least) & (size <= most)
                piece[i] = piece[i] * scale if keep else float32(0.0)
    elif mode == KEEP_RANDOM and rule[1] < 4294967296.0:
        _random_tile(key, int64(rule[2]) + start, words[:n])
        limit = uint32(rule[1])
        for i in range(n):
            d[i] = d[i] * scale if words[i] < limit else float32(0.0)


@njit(nogil=True, cache=True, fastmath=FAST)
def delta_norms(addresses, kinds, base_address, base_kind, count, modes, rules, keys, out):
    """Add each model's sum of |delta|, before and after thinning without scale, to out (M, 2)."""
    x_tile, base_tile = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    words = np.empty(TILE, np.uint32)
    for start in range(0, count, TILE):
        n = min(TILE, count - start)
        x, base = x_tile[:n], base_tile[:n]
        if not widen(base_address, base_kind, start, base):
            return addresses.shape[0]
        for m in range(addresses.shape[0]):
            if not widen(addresses[m], kinds[m], start, x):
                return m
            _subtract(x, base)
            before, after = float32(0.0), float32(0.0)
            for i in range(n):
                before += abs(x[i])
            _thin(x, start, modes[m], rules[m], keys[m], words)
            for i in range(n):
                after += abs(x[i])
            out[m, 0] += before
            out[m, 1] += after
    return -1


@njit(nogil=True, cache=True, fastmath=FAST)
def merge_deltas(
    addresses,
    kinds,
    base_address,
    base_kind,
    weights,
    modes,
    rules,
    keys,
    election,
    normalize,
    scale,
    out16,
    out32,
    out_kind,
    count,
):
    """out = base + scale * (merged deltas of the models); see `apr.merge.methods.task_vectors`."""
    models = addresses.shape[0]
    deltas = np.empty((models, TILE), np.float32)
    base_tile, elected = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    total, divisor = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    words = np.empty(TILE, np.uint32)
    weight_sum, size = float32(0.0), float32(0.0)
    for m in range(models):
        weight_sum += weights[m]
        size += abs(weights[m])
    # Weights that cancel leave a sum of rounding errors, by which nothing is divided.
    rounding = float32(1e-6) * size
    if abs(weight_sum) < max(rounding, float32(1e-8)):
        weight_sum = float32(1.0)
    for start in range(0, count, TILE):
        n = min(TILE, count - start)
        base, acc, div, vote = base_tile[:n], total[:n], divisor[:n], elected[:n]
        if not widen(base_address, base_kind, start, base):
            return models
        for i in range(n):
            acc[i] = float32(0.0)
            div[i] = float32(0.0)
            vote[i] = float32(0.0)
        for m in range(models):
            d = deltas[m, :n]
            if not widen(addresses[m], kinds[m], start, d):
                return m
            _subtract(d, base)
            _thin(d, start, modes[m], rules[m], keys[m], words)
            w = weights[m]
            if election == NO_ELECTION:
                for i in range(n):
                    acc[i] += d[i] * w
            elif election == BY_SUM:
                for i in range(n):
                    d[i] *= w
                    vote[i] += d[i]
            else:
                for i in range(n):
                    d[i] *= w
                    vote[i] += float32(d[i] > 0) - float32(d[i] < 0)
        if election == NO_ELECTION:
            if normalize:
                for i in range(n):
                    acc[i] /= weight_sum
        else:
            for i in range(n):
                vote[i] = float32(1.0) if vote[i] >= 0 else float32(-1.0)
            for m in range(models):
                d, w = deltas[m, :n], weights[m]
                for i in range(n):
                    toward = d[i] * vote[i]  # what a delta adds in the elected direction
                    acc[i] += max(toward, float32(0.0))
                    div[i] += w if toward > 0 else float32(0.0)
            for i in range(n):
                acc[i] *= vote[i]
            if normalize:
                for i in range(n):
                    acc[i] /= div[i] if abs(div[i]) > rounding else float32(1.0)
        for i in range(n):
            acc[i] = base[i] + scale * acc[i]
        _narrow(acc, start, out16, out32, out_kind)
    return -1


@njit(nogil=True, cache=True)
def count_bits(values, shift, prefix, prefix_shift, counts):
    """Histogram of (bits of each value >> shift) & (len(counts) - 1), values being >= 0 fp32.

    Only values whose bits >> prefix_shift equal prefix count (all, for prefix_shift 32).
    """
    mask = uint32(counts.shape[0] - 1)
    for i in range(values.shape[0]):
        bits = float_bits(values[i])
        if prefix_shift >= 32 or (bits >> uint32(prefix_shift)) == uint32(prefix):
            counts[(bits >> uint32(shift)) & mask] += 1
