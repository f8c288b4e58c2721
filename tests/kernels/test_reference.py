"""The reference kernels against torch's own operations and written-out formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from apr.kernels import reference


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(offset: float) -> None:
    x, weight = rand(3, 5, 16), rand(16, seed=1)
    want = F.rms_norm(x, (16,), weight + offset, eps=1e-3)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-3, offset), want)


def test_rms_norm_rounds_once() -> None:
    x, weight = rand(4, 64, dtype=torch.bfloat16), rand(64, seed=1, dtype=torch.bfloat16)
    want = F.rms_norm(x.double(), (64,), weight.double(), eps=1e-6).to(torch.bfloat16)
    assert torch.equal(reference.rms_norm(x, weight, 1e-6), want)


def test_rotation_is_a_complex_product() -> None:
    """Pairs (i, i + R/2) as complex numbers, times exp(i * position * frequency)."""
    x, positions = rand(2, 7, 3, 12), torch.tensor([[0, 1, 5, 2, 9, 4, 100], [3] * 7])
    frequencies = torch.tensor([1.0, 0.3, 0.05, 0.001])  # 8 of 12 dimensions turn
    got = reference.rotate(x, *reference.rotary_tables(positions, frequencies, factor=1.5))
    angles = positions[..., None, None].double() * frequencies.double()
    pairs = torch.complex(x[..., :4].double(), x[..., 4:8].double())
    turned = pairs * torch.polar(torch.full_like(angles, 1.5), angles)
    want = torch.cat([turned.real, turned.imag, x[..., 8:].double()], dim=-1)
    torch.testing.assert_close(got, want.float(), atol=1e-5, rtol=1e-5)


def test_causal_mask() -> None:
    got = reference.causal_mask(torch.tensor([2, 3]), torch.arange(5), window=2)
    assert got.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    whole = reference.causal_mask(torch.arange(6), torch.arange(6))
    assert torch.equal(whole, torch.ones(6, 6).tril().bool())


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("window", [None, 3])
def test_both_attentions_equal_the_formula(kv_heads: int, window: int | None) -> None:
    q, k, v = rand(2, 5, 6, 8), rand(2, 9, kv_heads, 8, seed=1), rand(2, 9, kv_heads, 8, seed=2)
    mask = reference.causal_mask(torch.arange(4, 9), torch.arange(9), window)[None]
    want = torch.empty_like(q)
    for b in range(2):
        for h in range(6):
            keys, values = k[b, :, h * kv_heads // 6], v[b, :, h * kv_heads // 6]
            scores = (q[b, :, h] @ keys.T * 0.4).masked_fill(~mask[0], -torch.inf)
            want[b, :, h] = scores.softmax(-1) @ values
    torch.testing.assert_close(reference.attention(q, k, v, mask, 0.4), want)
    torch.testing.assert_close(reference.fused_attention(q, k, v, mask, 0.4), want)


def test_fused_attention_without_a_mask_is_causal() -> None:
    q, k, v = rand(2, 5, 4, 8), rand(2, 5, 2, 8, seed=1), rand(2, 5, 2, 8, seed=2)
    mask = reference.causal_mask(torch.arange(5), torch.arange(5))[None]
    want = reference.attention(q, k, v, mask, 0.3)
    torch.testing.assert_close(reference.fused_attention(q, k, v, None, 0.3), want)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_fused_attention_of_one_query(kv_heads: int) -> None:
    q, k, v = rand(3, 1, 6, 8), rand(3, 9, kv_heads, 8, seed=1), rand(3, 9, kv_heads, 8, seed=2)
    mask = reference.causal_mask(torch.tensor([[2], [8], [5]]), torch.arange(9), window=4)
    want = reference.attention(q, k, v, mask, 0.3)
    torch.testing.assert_close(reference.fused_attention(q, k, v, mask, 0.3), want)


def test_attention_softcap() -> None:
    q, k, v = 5 * rand(1, 3, 1, 4), 5 * rand(1, 3, 1, 4, seed=1), rand(1, 3, 1, 4, seed=2)
    scores = 2.0 * torch.tanh((q[0, :, 0] @ k[0, :, 0].T) * 0.5 / 2.0)
    mask = torch.ones(3, 3).tril().bool()
    want = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[0, :, 0]
    got = reference.attention(q, k, v, mask[None], 0.5, softcap=2.0)
    torch.testing.assert_close(got[0, :, 0], want)
    assert not torch.allclose(got, reference.attention(q, k, v, mask[None], 0.5))


def test_linear_fp32_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_FP32_ROWS", 7)
    x, weight = rand(3, 40, dtype=torch.bfloat16), rand(20, 40, seed=1, dtype=torch.bfloat16)
    want = x.double() @ weight.double().T
    got = reference.linear_fp32(x, weight)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want.float(), atol=1e-5, rtol=1e-5)


def test_soft_cap() -> None:
    x = torch.tensor([-100.0, 0.0, 0.1, 100.0])
    assert reference.soft_cap(x, None) is x
    torch.testing.assert_close(reference.soft_cap(x, 3.0), 3.0 * torch.tanh(x / 3.0))
