"""The small steps of a compiled forward pass against torch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from apr.kernels.cpu import elementwise as e
from apr.kernels.cpu.intrinsics import from_bf16, to_bf16


def as_bf16(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def test_exp_is_accurate_over_its_range() -> None:
    x = np.linspace(-86, 88, 20001, dtype=np.float32)
    got = np.array([e.exp(v) for v in x], dtype=np.float64)
    want = np.exp(x.astype(np.float64))
    # Half an ulp of fp32 for the polynomial plus the error of the reduced argument.
    assert np.max(np.abs(got - want) / want) < 5e-7


def test_bf16_rounding_equals_torch() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5000, generator=g) * torch.logspace(-30, 30, 5000)
    ties = torch.tensor([1.00390625, 1.01171875, -1.00390625, 0.0, -0.0, 3.3895314e38])
    x = torch.cat([x, ties])
    got = np.array([to_bf16(np.float32(v)) for v in x.numpy()], dtype=np.uint16)
    want = x.to(torch.bfloat16)
    assert torch.equal(as_bf16(got), want)
    back = np.array([from_bf16(bits) for bits in got], dtype=np.float32)
    assert np.array_equal(back, want.float().numpy())


def test_rms_norm_and_rotation_equal_torch() -> None:
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(577, generator=g), torch.rand(577, generator=g)
    out = np.zeros(577, np.uint16)
    e.rms_norm_bf16(x.numpy(), w.numpy(), np.float32(1e-5), out)
    want = F.rms_norm(x, (577,), w, 1e-5)
    # One bf16 rounding: 2^-8 relative.
    assert torch.all((as_bf16(out).float() - want).abs() <= want.abs() * 2**-8)

    head, angles = torch.randn(64, generator=g), torch.rand(24, generator=g) * 6
    low, high, rest = head[:24], head[24:48], head[48:]
    want = torch.cat(
        [
            low * angles.cos() - high * angles.sin(),
            high * angles.cos() + low * angles.sin(),
            rest,  # partial rotary: these dimensions stay
        ]
    )
    got = head.numpy().copy()
    e.rotate(got, angles.cos().numpy(), angles.sin().numpy())
    assert np.allclose(got, want.numpy(), atol=1e-6)


def test_gated_activations_equal_torch() -> None:
    g = torch.Generator().manual_seed(2)
    gate, up = torch.randn(300, generator=g) * 4, torch.randn(300, generator=g)
    gate[:4] = torch.tensor([-200.0, 200.0, 0.0, -1e-4])
    for kernel, act in (
        (e.silu_product, F.silu),
        (e.gelu_product, lambda t: F.gelu(t, approximate="tanh")),
    ):
        out = np.zeros(300, np.uint16)
        kernel(gate.numpy(), up.numpy(), out)
        want = act(gate.double()) * up.double()
        # One bf16 rounding, plus fp32 cancellation near the activation's zero.
        assert torch.all((as_bf16(out).double() - want).abs() <= want.abs() * 2**-8 + 1e-6)
