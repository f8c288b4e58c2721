"""Packed matrix products against torch in fp32, and their row independence bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apr.kernels.cpu.matmul import WIDE, linear
from apr.kernels.cpu.microkernel import PANEL
from apr.kernels.cpu.packing import aligned_zeros, pack_panels, padded
from apr.kernels.cpu.panels import Panels, dense_panels


def bf16_bits(x: torch.Tensor, width: int) -> np.ndarray:
    out = aligned_zeros((x.shape[0], width), np.uint16)
    out[:, : x.shape[1]] = x.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return out


def product(a: np.ndarray, packed: np.ndarray | Panels, threads: int = 1) -> np.ndarray:
    panels = packed if isinstance(packed, Panels) else dense_panels(packed)
    count = len(panels.table)
    c = aligned_zeros((a.shape[0], count * PANEL), np.float32)
    wide = aligned_zeros((WIDE,), np.uint16)
    for tid in range(threads):
        linear(
            tid, threads, a.ctypes.data, a.strides[0], a.shape[0], panels.table, 0, count,
            c.ctypes.data, c.strides[0], wide.ctypes.data,
        )  # fmt: skip
    return c


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 8, 12, 13, 31, 32, 33, 100])
@pytest.mark.parametrize(("n", "k"), [(64, 64), (192, 576), (100, 130), (64, 2048), (70, 4224)])
def test_product_equals_torch(rows: int, n: int, k: int) -> None:
    # The products of bf16 numbers are exact in fp32, so only the order of fp32 sums differs:
    # at most k roundings of 2^-24 relative to the sum of magnitudes.
    g = torch.Generator().manual_seed(rows * 1000 + n)
    x = torch.randn(rows, k, generator=g).to(torch.bfloat16)
    w = torch.randn(n, k, generator=g).to(torch.bfloat16)
    got = product(bf16_bits(x, padded(k)), pack_panels(w))
    want = (x.double() @ w.double().T).numpy()
    bound = (x.double().abs() @ w.double().abs().T).numpy() * k * 2.0**-24
    assert np.all(np.abs(got[:, :n] - want) <= bound)
    assert np.all(got[:, n:] == 0)


@pytest.mark.parametrize("k", [576, 4224])
def test_a_row_does_not_depend_on_the_other_rows_or_on_threads(k: int) -> None:
    g = torch.Generator().manual_seed(3)
    a = bf16_bits(torch.randn(40, k, generator=g), padded(k))
    packed = pack_panels(torch.randn(320, k, generator=g))
    whole = product(a, packed)
    for threads in (2, 3, 7):
        assert np.array_equal(product(a, packed, threads), whole)
    for first, last in ((0, 1), (5, 7), (11, 16), (20, 40)):
        part = a[first:last].copy() if last - first > 1 else a[first : first + 1]
        assert np.array_equal(product(part, packed), whole[first:last])


def test_packing_is_the_documented_layout() -> None:
    weight = torch.arange(128 * 64, dtype=torch.float32).reshape(128, 64) % 251
    packed = pack_panels(weight)
    bits = weight.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    for n, k in ((0, 0), (1, 0), (0, 1), (63, 62), (64, 3), (127, 63)):
        assert packed.reshape(2, -1)[n // 64, ((k // 2) * 64 + n % 64) * 2 + k % 2] == bits[n, k]
    assert packed.ctypes.data % 64 == 0
