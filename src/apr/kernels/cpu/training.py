"""The small steps of training in bf16, forward and backward, each reading memory once.

Bodies for `parallel.run_chunks`; `apr.kernels.differentiable` calls them. All sums are fp32.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, float32, njit

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


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _norm_row(x, weight, eps, y):
    total = float32(0.0)
    for i in range(x.shape[0]):
        value = from_bf16(x[i])
        total += value * value
    scale = float32(1.0) / np.sqrt(total / float32(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        y[i] = to_bf16(from_bf16(x[i]) * scale * weight[i])
    return scale


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def _norm_gradient_row(x, weight, scale, dy, dx):
    """dx = s (w dy - x s^2 mean(w dy x)), s = 1 / rms(x)."""
    total = float32(0.0)
    for i in range(x.shape[0]):
        total += from_bf16(dy[i]) * weight[i] * from_bf16(x[i])
    shared = total * scale * scale * scale / float32(x.shape[0])
    for i in range(x.shape[0]):
        value = from_bf16(dy[i]) * weight[i] * scale - from_bf16(x[i]) * shared
        dx[i] = to_bf16(value)


@cfunc(BODY, cache=True)
def rms_norm(pointer):
    """x, weight (fp32), y, scales (fp32), rows, width, eps."""
    a = carray(pointer, (WORDS,))
    rows, width = a[6], a[7]
    x, y = bits_at(a[2], rows * width), bits_at(a[4], rows * width)
    weight, scales = floats_at(a[3], width), floats_at(a[5], rows)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        for r in range(chunk * ROWS, min(rows, (chunk + 1) * ROWS)):
            at = r * width
            scales[r] = _norm_row(x[at : at + width], weight, as_float(a[8]), y[at : at + width])


@cfunc(BODY, cache=True)
def rms_norm_gradient(pointer):
    """x, weight (fp32), scales (fp32), dy, dx, rows, width."""
    a = carray(pointer, (WORDS,))
    rows, width = a[7], a[8]
    x, dy, dx = (
        bits_at(a[2], rows * width),
        bits_at(a[5], rows * width),
        bits_at(a[6], rows * width),
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
        first, second = from_bf16(x[i]), from_bf16(x[i + half])
        y[i] = to_bf16(first * cos[i] - sign * second * sin[i])
        y[i + half] = to_bf16(second * cos[i] + sign * first * sin[i])
    for i in range(2 * half, x.shape[0]):
        y[i] = x[i]


@cfunc(BODY, cache=True)
def rotate(pointer):
    """x, cos, sin (fp32), y, rows, heads, head_dim, half of what turns, sign of the angle."""
    a = carray(pointer, (WORDS,))
    rows, heads, dim, half = a[6], a[7], a[8], a[9]
    x, y = bits_at(a[2], rows * heads * dim), bits_at(a[5], rows * heads * dim)
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
        g = from_bf16(gate[i])
        y[i] = to_bf16(g / (float32(1.0) + exp(-g)) * from_bf16(up[i]))


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", forceinline=True)
def _gelu_part(gate, up, y):
    """gelu's tanh form, as x sigmoid(2u)."""
    for i in range(y.shape[0]):
        g = from_bf16(gate[i])
        u = float32(1.5957691216057308) * (g + float32(0.044715) * g * g * g)
        y[i] = to_bf16(g / (float32(1.0) + exp(-u)) * from_bf16(up[i]))


# Two loops a gradient, one for each output: LLVM gives up on vectors where more pointers than that
# may overlap.


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", forceinline=True)
def _silu_gradient_part(gate, up, dy, dgate, dup):
    for i in range(dy.shape[0]):
        g = from_bf16(gate[i])
        open_ = float32(1.0) / (float32(1.0) + exp(-g))
        slope = open_ * (float32(1.0) + g * (float32(1.0) - open_))
        dgate[i] = to_bf16(from_bf16(dy[i]) * from_bf16(up[i]) * slope)
    _silu_part(gate, dy, dup)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", forceinline=True)
def _gelu_gradient_part(gate, up, dy, dgate, dup):
    for i in range(dy.shape[0]):
        g = from_bf16(gate[i])
        u = float32(1.5957691216057308) * (g + float32(0.044715) * g * g * g)
        du = float32(1.5957691216057308) * (float32(1.0) + float32(0.134145) * g * g)
        open_ = float32(1.0) / (float32(1.0) + exp(-u))
        slope = open_ * (float32(1.0) + g * (float32(1.0) - open_) * du)
        dgate[i] = to_bf16(from_bf16(dy[i]) * from_bf16(up[i]) * slope)
    _gelu_part(gate, dy, dup)


@cfunc(BODY, cache=True)
def gated(pointer):
    """gate, up, y, count, whether gelu."""
    a = carray(pointer, (WORDS,))
    n = a[5]
    gate, up, y = bits_at(a[2], n), bits_at(a[3], n), bits_at(a[4], n)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        i, j = chunk * ELEMENTS, min(n, (chunk + 1) * ELEMENTS)
        if a[6]:
            _gelu_part(gate[i:j], up[i:j], y[i:j])
        else:
            _silu_part(gate[i:j], up[i:j], y[i:j])


@cfunc(BODY, cache=True)
def gated_gradient(pointer):
    """gate, up, dy, dgate, dup, count, whether gelu."""
    a = carray(pointer, (WORDS,))
    n = a[7]
    gate, up, dy = bits_at(a[2], n), bits_at(a[3], n), bits_at(a[4], n)
    dgate, dup = bits_at(a[5], n), bits_at(a[6], n)
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
def _entropy_row(logits, label, slope):
    """-log softmax(logits)[label]; with slope, logits become the gradient of it."""
    top = float32(-3.0e38)
    for i in range(logits.shape[0]):
        top = max(top, from_bf16(logits[i]))
    total = float32(0.0)
    for i in range(logits.shape[0]):
        total += exp(from_bf16(logits[i]) - top)
    shift = top + np.log(total)
    wanted = from_bf16(logits[label])
    if slope:
        for i in range(logits.shape[0]):
            logits[i] = to_bf16(exp(from_bf16(logits[i]) - shift))
        logits[label] = to_bf16(exp(wanted - shift) - float32(1.0))
    return shift - wanted


@cfunc(BODY, cache=True)
def cross_entropy(pointer):
    """logits (in, and their gradient out), labels (int64), losses (fp32), rows, vocabulary, whether
    the gradient is wanted.
    """
    a = carray(pointer, (WORDS,))
    rows, width = a[5], a[6]
    logits, labels, losses = (
        bits_at(a[2], rows * width),
        longs_at(a[3], rows),
        floats_at(a[4], rows),
    )
    while True:
        r = next_chunk(a)
        if r >= a[1]:
            break
        row = logits[r * width : (r + 1) * width]
        losses[r] = _entropy_row(row, labels[r], a[7] != 0)
