"""The small steps of training in bf16 or fp32, forward and backward, each reading memory once.

Bodies for `parallel.run_chunks`; `apr.kernels.differentiable` calls them. All sums are fp32.
Each body is there twice, for tensors that are bf16 and fp32; `kind` is a number of that type.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, float32, njit, types
from numba.extending import overload

from apr.kernels.cpu.elementwise import FAST, exp
from apr.kernels.cpu.intrinsics import from_bf16, to_bf16
from apr.kernels.cpu.parallel import (
    BODY,
    WORDS,
    as_float,
    bits_at,
    floats_at,
    longs_at,
    next_chunk,
)

ROWS = 16  # of a chunk
ELEMENTS = 1 << 14  # of a chunk
BF16, FP32 = np.uint16(0), np.float32(0)  # of the type that numbers are stored in


def number(value):
    """An element as fp32; for compiled code."""
    raise NotImplementedError


def put(array, i, value):
    """array[i] = value in the array's type; for compiled code."""
    raise NotImplementedError


def numbers_at(address, count, kind):
    """The array (count,) at an address, of the type of kind; for compiled code."""
    raise NotImplementedError


@overload(number, jit_options={"forceinline": True})
def _number(value):
    if value == types.uint16:
        return lambda value: from_bf16(value)
    return lambda value: value


@overload(put, jit_options={"forceinline": True})
def _put(array, i, value):
    if array.dtype == types.uint16:

        def store(array, i, value):
            array[i] = to_bf16(value)
    else:

        def store(array, i, value):
            array[i] = value

    return store


@overload(numbers_at, jit_options={"forceinline": True})
def _numbers_at(address, count, kind):
    if kind == types.uint16:
        return lambda address, count, kind: bits_at(address, count)
    return lambda address, count, kind: floats_at(address, count)


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _norm_row(x, weight, eps, y):
    total = float32(0.0)
    for i in range(x.shape[0]):
        value = number(x[i])
        total += value * value
    scale = float32(1.0) / np.sqrt(total / float32(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        put(y, i, number(x[i]) * scale * weight[i])
    return scale


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _norm_gradient_row(x, weight, scale, dy, dx):
    """dx = s (w dy - x s^2 mean(w dy x)), s = 1 / rms(x)."""
    total = float32(0.0)
    for i in range(x.shape[0]):
        total += number(dy[i]) * weight[i] * number(x[i])
    shared = total * scale * scale * scale / float32(x.shape[0])
    for i in range(x.shape[0]):
        value = number(dy[i]) * weight[i] * scale - number(x[i]) * shared
        put(dx, i, value)


@njit(nogil=True, cache=True, forceinline=True)
def _rms_norm(a, kind):
    """x, weight (fp32), y, scales (fp32), rows, width, eps."""
    rows, width = a[6], a[7]
    x, y = numbers_at(a[2], rows * width, kind), numbers_at(a[4], rows * width, kind)
    weight, scales = floats_at(a[3], width), floats_at(a[5], rows)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        for r in range(chunk * ROWS, min(rows, (chunk + 1) * ROWS)):
            at = r * width
            scales[r] = _norm_row(x[at : at + width], weight, as_float(a[8]), y[at : at + width])


@njit(nogil=True, cache=True, forceinline=True)
def _rms_norm_gradient(a, kind):
    """x, weight (fp32), scales (fp32), dy, dx, rows, width."""
    rows, width = a[7], a[8]
    x, dy, dx = (
        numbers_at(a[2], rows * width, kind),
        numbers_at(a[5], rows * width, kind),
        numbers_at(a[6], rows * width, kind),
    )
    weight, scales = floats_at(a[3], width), floats_at(a[4], rows)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        for r in range(chunk * ROWS, min(rows, (chunk + 1) * ROWS)):
            at = r * width
            end = at + width
            _norm_gradient_row(x[at:end], weight, scales[r], dy[at:end], dx[at:end])


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _rotate_head(x, cos, sin, sign, y):
    half = cos.shape[0]
    for i in range(half):
        first, second = number(x[i]), number(x[i + half])
        put(y, i, first * cos[i] - sign * second * sin[i])
        put(y, i + half, second * cos[i] + sign * first * sin[i])
    for i in range(2 * half, x.shape[0]):
        y[i] = x[i]


@njit(nogil=True, cache=True, forceinline=True)
def _rotate(a, kind):
    """x, cos, sin (fp32), y, rows, heads, head_dim, half of what turns, sign of the angle."""
    rows, heads, dim, half = a[6], a[7], a[8], a[9]
    x, y = numbers_at(a[2], rows * heads * dim, kind), numbers_at(a[5], rows * heads * dim, kind)
    cos, sin = floats_at(a[3], rows * half), floats_at(a[4], rows * half)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        for r in range(chunk * ROWS, min(rows, (chunk + 1) * ROWS)):
            c, s = cos[r * half : (r + 1) * half], sin[r * half : (r + 1) * half]
            for h in range(heads):
                at = (r * heads + h) * dim
                _rotate_head(x[at : at + dim], c, s, as_float(a[10]), y[at : at + dim])


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", forceinline=True)
def _silu_part(gate, up, y):
    for i in range(y.shape[0]):
        g = number(gate[i])
        put(y, i, g / (float32(1.0) + exp(-g)) * number(up[i]))


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", forceinline=True)
def _gelu_part(gate, up, y):
    """gelu's tanh form, as x sigmoid(2u)."""
    for i in range(y.shape[0]):
        g = number(gate[i])
        u = float32(1.5957691216057308) * (g + float32(0.044715) * g * g * g)
        put(y, i, g / (float32(1.0) + exp(-u)) * number(up[i]))


# Two loops a gradient, one for each output: LLVM gives up on vectors where more pointers than that
# may overlap.


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", forceinline=True)
def _silu_gradient_part(gate, up, dy, dgate, dup):
    for i in range(dy.shape[0]):
        g = number(gate[i])
        open_ = float32(1.0) / (float32(1.0) + exp(-g))
        slope = open_ * (float32(1.0) + g * (float32(1.0) - open_))
        put(dgate, i, number(dy[i]) * number(up[i]) * slope)
    _silu_part(gate, dy, dup)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", forceinline=True)
def _gelu_gradient_part(gate, up, dy, dgate, dup):
    for i in range(dy.shape[0]):
        g = number(gate[i])
        u = float32(1.5957691216057308) * (g + float32(0.044715) * g * g * g)
        du = float32(1.5957691216057308) * (float32(1.0) + float32(0.134145) * g * g)
        open_ = float32(1.0) / (float32(1.0) + exp(-u))
        slope = open_ * (float32(1.0) + g * (float32(1.0) - open_) * du)
        put(dgate, i, number(dy[i]) * number(up[i]) * slope)
    _gelu_part(gate, dy, dup)


@njit(nogil=True, cache=True, forceinline=True)
def _gated(a, kind):
    """gate, up, y, count, whether gelu."""
    n = a[5]
    gate, up, y = numbers_at(a[2], n, kind), numbers_at(a[3], n, kind), numbers_at(a[4], n, kind)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        i, j = chunk * ELEMENTS, min(n, (chunk + 1) * ELEMENTS)
        if a[6]:
            _gelu_part(gate[i:j], up[i:j], y[i:j])
        else:
            _silu_part(gate[i:j], up[i:j], y[i:j])


@njit(nogil=True, cache=True, forceinline=True)
def _gated_gradient(a, kind):
    """gate, up, dy, dgate, dup, count, whether gelu."""
    n = a[7]
    gate, up, dy = numbers_at(a[2], n, kind), numbers_at(a[3], n, kind), numbers_at(a[4], n, kind)
    dgate, dup = numbers_at(a[5], n, kind), numbers_at(a[6], n, kind)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        i, j = chunk * ELEMENTS, min(n, (chunk + 1) * ELEMENTS)
        if a[8]:
            _gelu_gradient_part(gate[i:j], up[i:j], dy[i:j], dgate[i:j], dup[i:j])
        else:
            _silu_gradient_part(gate[i:j], up[i:j], dy[i:j], dgate[i:j], dup[i:j])


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _entropy_row(logits, label, slope, scale):
    """-log softmax(logits)[label]; with slope, logits become the gradient of scale times that."""
    top = float32(-3.0e38)
    for i in range(logits.shape[0]):
        top = max(top, number(logits[i]))
    total = float32(0.0)
    for i in range(logits.shape[0]):
        total += exp(number(logits[i]) - top)
    shift = top + np.log(total)
    wanted = number(logits[label])
    if slope:
        for i in range(logits.shape[0]):
            put(logits, i, exp(number(logits[i]) - shift) * scale)
        put(logits, label, (exp(wanted - shift) - float32(1.0)) * scale)
    return shift - wanted


@njit(nogil=True, cache=True, forceinline=True)
def _cross_entropy(a, kind):
    """logits (in, and their gradient out), labels (int64), losses (fp32), what the gradient of each
    is multiplied by (fp32; 0 for no gradients), rows, vocabulary.
    """
    rows, width, slope = a[6], a[7], a[5] != 0
    logits, labels, losses, scales = (
        numbers_at(a[2], rows * width, kind),
        longs_at(a[3], rows),
        floats_at(a[4], rows),
        floats_at(a[5] if slope else a[4], rows),
    )
    while True:
        r = next_chunk(a)
        if r >= a[1]:
            break
        row = logits[r * width : (r + 1) * width]
        losses[r] = _entropy_row(row, labels[r], slope, scales[r] if slope else float32(0.0))


@cfunc(BODY, cache=True)
def rms_norm(pointer):
    _rms_norm(carray(pointer, (WORDS,)), BF16)


@cfunc(BODY, cache=True)
def rms_norm_fp32(pointer):
    _rms_norm(carray(pointer, (WORDS,)), FP32)


@cfunc(BODY, cache=True)
def rms_norm_gradient(pointer):
    _rms_norm_gradient(carray(pointer, (WORDS,)), BF16)


@cfunc(BODY, cache=True)
def rms_norm_gradient_fp32(pointer):
    _rms_norm_gradient(carray(pointer, (WORDS,)), FP32)


@cfunc(BODY, cache=True)
def rotate(pointer):
    _rotate(carray(pointer, (WORDS,)), BF16)


@cfunc(BODY, cache=True)
def rotate_fp32(pointer):
    _rotate(carray(pointer, (WORDS,)), FP32)


@cfunc(BODY, cache=True)
def gated(pointer):
    _gated(carray(pointer, (WORDS,)), BF16)


@cfunc(BODY, cache=True)
def gated_fp32(pointer):
    _gated(carray(pointer, (WORDS,)), FP32)


@cfunc(BODY, cache=True)
def gated_gradient(pointer):
    _gated_gradient(carray(pointer, (WORDS,)), BF16)


@cfunc(BODY, cache=True)
def gated_gradient_fp32(pointer):
    _gated_gradient(carray(pointer, (WORDS,)), FP32)


@cfunc(BODY, cache=True)
def cross_entropy(pointer):
    _cross_entropy(carray(pointer, (WORDS,)), BF16)


@cfunc(BODY, cache=True)
def cross_entropy_fp32(pointer):
    _cross_entropy(carray(pointer, (WORDS,)), FP32)
