"""Tiled attention over the paged cache against a dense softmax in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apr.kernels.cpu.attention import TILE_ROWS, attend
from apr.kernels.cpu.elementwise import store_key, store_value
from apr.kernels.cpu.microkernel import PANEL
from apr.kernels.cpu.packing import aligned_zeros, padded


def bits(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("dim", [16, 64, 80, 128, 256])
@pytest.mark.parametrize("window", [0, 50, 64, 100])
@pytest.mark.parametrize(
    ("first", "tokens", "group"), [(0, 12, 3), (63, 2, 3), (130, 1, 7), (190, 8, 1)]
)
def test_attention_equals_dense_softmax(
    dim: int, window: int, first: int, tokens: int, group: int
) -> None:
    g = torch.Generator().manual_seed(dim + window + first)
    length = first + tokens
    k, v = (torch.randn(length, dim, generator=g).to(torch.bfloat16) for _ in "kv")
    q = torch.randn(tokens, group, dim, generator=g).to(torch.bfloat16)
    scale = dim**-0.5

    table = np.array([5, 2, 0, 3], np.int32)
    value_dim = padded(dim)
    keys = aligned_zeros((6, dim // 2, PANEL, 2), np.uint16)
    values = aligned_zeros((6, value_dim // PANEL, PANEL // 2, PANEL, 2), np.uint16)
    for position in range(length):
        block, lane = table[position // PANEL], position % PANEL
        store_key(k[position].float().numpy(), keys[block], lane)
        store_value(v[position].float().numpy(), values[block], lane)
    queries = aligned_zeros((tokens * group, dim), np.uint16)
    queries[:] = bits(q.reshape(-1, dim))
    out = np.zeros(tokens * group * dim, np.uint16)
    attend(
        queries.ctypes.data, group, dim, value_dim, first, tokens, window, np.float32(scale),
        table, keys.ctypes.data, values.ctypes.data, keys[0].nbytes, values[0].nbytes,
        aligned_zeros((TILE_ROWS, PANEL), np.float32), aligned_zeros((TILE_ROWS, PANEL), np.uint16),
        aligned_zeros((TILE_ROWS, value_dim), np.float32),
        aligned_zeros((TILE_ROWS, 1), np.float32), aligned_zeros((TILE_ROWS, 1), np.float32),
        out, group * dim,
    )  # fmt: skip

    scores = torch.einsum("tgd,sd->tgs", q.double(), k.double()) * scale
    position, seen = torch.arange(first, length)[:, None, None], torch.arange(length)
    allowed = seen <= position
    if window:
        allowed &= seen > position - window
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    want = torch.einsum("tgs,sd->tgd", weights, v.double()).reshape(-1)
    got = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16).double()
    # Probabilities and results are each rounded to bf16 (2^-9 relative to a sum of magnitudes).
    magnitude = torch.einsum("tgs,sd->tgd", weights, v.double().abs()).reshape(-1)
    assert torch.all((got - want).abs() <= magnitude * 2**-7)
