"""The small steps between matrix products: norms, rotary embedding, activations, cache writes."""

from __future__ import annotations

import numpy as np
from numba import float32, int32, njit, uint32

from apr.kernels.cpu.intrinsics import bits_float, from_bf16, to_bf16
from apr.kernels.cpu.microkernel import PANEL

FAST = {"contract", "reassoc", "nsz", "arcp"}


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def exp(x):
    """e**x in fp32, |relative error| < 2e-7 (range reduction, degree-6 polynomial); vectorises."""
    x = min(max(x, float32(-87.0)), float32(88.0))
    n = np.floor(x * float32(1.4426950408889634) + float32(0.5))
    r = x - n * float32(0.693359375)
    r = r - n * float32(-2.12194440e-4)
    p = float32(1.0 / 720.0)
    p = p * r + float32(1.0 / 120.0)
    p = p * r + float32(1.0 / 24.0)
    p = p * r + float32(1.0 / 6.0)
    p = p * r + float32(0.5)
    p = p * r + float32(1.0)
    p = p * r + float32(1.0)
    return p * bits_float(uint32((int32(n) + int32(127)) << int32(23)))


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def rms_scale(row, eps):
    """1 / sqrt(mean(row**2) + eps) (Zhang & Sennrich 2019, eq. 4)."""
    total = float32(0.0)
    for i in range(row.shape[0]):
        total += row[i] * row[i]
    return float32(1.0) / np.sqrt(total / float32(row.shape[0]) + eps)


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def rms_norm_bf16(row, weight, eps, out):
    """out (bf16 bits) = row * rms_scale * weight."""
    scale = rms_scale(row, eps)
    for i in range(row.shape[0]):
        out[i] = to_bf16(row[i] * scale * weight[i])


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def rms_norm_in_place(row, weight, eps):
    scale = rms_scale(row, eps)
    for i in range(row.shape[0]):
        row[i] = row[i] * scale * weight[i]


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def add_rows(row, other):
    for i in range(row.shape[0]):
        row[i] += other[i]


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def rotate(head, cos, sin):
    """Rotary embedding in place (Su et al. 2021), halves convention: i pairs with i + n."""
    n = cos.shape[0]
    for i in range(n):
        low, high = head[i], head[i + n]
        head[i] = low * cos[i] - high * sin[i]
        head[i + n] = high * cos[i] + low * sin[i]


@njit(nogil=True, cache=True)
def store_bf16(row, out):
    for i in range(row.shape[0]):
        out[i] = to_bf16(row[i])


@njit(nogil=True, cache=True)
def store_key(row, block, lane):
    """Put a key into its cache block: a panel with the keys as columns. block: (D/2, 64, 2)."""
    for i in range(row.shape[0] // 2):
        block[i, lane, 0] = to_bf16(row[2 * i])
        block[i, lane, 1] = to_bf16(row[2 * i + 1])


@njit(nogil=True, cache=True)
def store_value(row, block, lane):
    """Put a value into its cache block: panels with the keys along k. block: (D/64, 32, 64, 2)."""
    for i in range(row.shape[0]):
        block[i // PANEL, lane // 2, i % PANEL, lane % 2] = to_bf16(row[i])


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def silu_product(gate, up, out):
    """out (bf16 bits) = silu(gate) * up (Shazeer 2020, SwiGLU)."""
    for i in range(gate.shape[0]):
        g = gate[i]
        out[i] = to_bf16(g / (float32(1.0) + exp(-g)) * up[i])


@njit(nogil=True, cache=True, fastmath=FAST, forceinline=True)
def gelu_product(gate, up, out):
    """out (bf16 bits) = gelu_tanh(gate) * up (Shazeer 2020, GeGLU); x * sigmoid(2u) form."""
    for i in range(gate.shape[0]):
        g = gate[i]
        u = float32(1.5957691216057308) * (g + float32(0.044715) * g * g * g)
        out[i] = to_bf16(g / (float32(1.0) + exp(-u)) * up[i])


@njit(nogil=True, cache=True)
def panel_row(piece, lane, scale, out):
    """Read a column of a piece of panel (an embedding's row) into fp32, as far as out reaches.

    piece: bf16 bits of a panel, flat.
    """
    for i in range(min(piece.shape[0] // (2 * PANEL), out.shape[0] // 2)):
        at = (i * PANEL + lane) * 2
        out[2 * i] = from_bf16(piece[at]) * scale
        out[2 * i + 1] = from_bf16(piece[at + 1]) * scale
