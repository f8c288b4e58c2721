"""Panels without zeros: the dense product's results, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.kernels.cpu.packing import pack_panels, padded
from apr.kernels.cpu.panels import HAS_SHUFFLE, thin_panels
from kernels.test_matmul import bf16_bits, product

pytestmark = pytest.mark.skipif(not HAS_SHUFFLE, reason="this processor shuffles no bytes")


def pruned(n: int, k: int, zeros: float, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=g)
    return weight.masked_fill(torch.rand(n, k, generator=g) < zeros, 0).to(torch.bfloat16)


@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 64, 64), (5, 192, 576), (33, 100, 130)])
def test_product_is_the_dense_one(rows: int, n: int, k: int, zeros: float) -> None:
    g = torch.Generator().manual_seed(rows)
    a = bf16_bits(torch.randn(rows, k, generator=g), padded(k))
    packed = pack_panels(pruned(n, k, zeros, seed=n))
    want = product(a, packed)
    for threads in (1, 2, 3):
        assert np.array_equal(product(a, thin_panels(packed), threads), want)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_bits_come_back(seed: int) -> None:
    """Minus zero, subnormal numbers and infinity are numbers; the identity shows each."""
    values = np.random.default_rng(seed).choice(
        np.array([0, 0x8000, 1, 0x8001, 0x7F80, 0x3F80, 0xFFFF], np.uint16), (64, 64)
    )
    weight = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    packed = pack_panels(weight)
    assert np.array_equal(widened(packed), packed.reshape(-1))


def widened(packed: np.ndarray) -> np.ndarray:
    """A panel from the form without zeros, by its definition."""
    thin, count = thin_panels(packed).memory[0], packed[0].size
    start, values = thin[:16].view(np.int64)
    kept = np.unpackbits(thin[start : start + count // 8], bitorder="little").astype(bool)
    out = np.zeros(count, np.uint16)
    out[kept] = thin[values:][: 2 * int(kept.sum())].view(np.uint16)
    return out


@pytest.mark.parametrize("zeros", [0.3, 0.5, 0.75])
def test_size(zeros: float) -> None:
    """The bytes are those of the numbers, a bit for each place, and rounding of panels."""
    packed = pack_panels(pruned(256, 1024, zeros, seed=1))
    density = np.count_nonzero(packed) / packed.size
    rounding = 2 * 64 * (packed.shape[0] + 2)  # and where the numbers of each 128 rows begin
    found = thin_panels(packed).nbytes
    assert 0 <= found - packed.nbytes * (density + 1 / 16) <= rounding
