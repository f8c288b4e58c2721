"""Compiled training kernels (bf16) against the reference and torch's autograd in fp32.

Inputs are bf16 numbers in both, so what differs is the rounding of results: half a unit in the
eighth bit, and of the weights and score gradients that attention multiplies in bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from apr.kernels import differentiable, reference

ROUNDING = 2.0**-8
ATTENTION = 2.0**-7


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.detach().float() - want.detach()).abs().max() / want.detach().abs().max())


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(torch.bfloat16).requires_grad_()


def check(
    compiled: Callable[..., torch.Tensor],
    wanted: Callable[..., torch.Tensor],
    inputs: list[torch.Tensor],
    tolerance: float = ROUNDING,
) -> None:
    """Values and the gradients to all inputs, for a random gradient of the result."""
    wide = [x.detach().float().requires_grad_() for x in inputs]
    ours, theirs = compiled(*inputs), wanted(*wide)
    assert ours.dtype == torch.bfloat16 and error(ours, theirs) < tolerance
    slope = torch.randn(ours.shape).to(torch.bfloat16)
    gradients = torch.autograd.grad(ours, inputs, slope)
    expected = torch.autograd.grad(theirs, wide, slope.float())
    for got, want in zip(gradients, expected, strict=True):
        assert got.dtype == torch.bfloat16 and error(got, want) < tolerance


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_and_its_weight(offset: float) -> None:
    inputs = [drawn(37, 5, 96), drawn(96)]
    check(
        lambda x, w: differentiable.rms_norm(x, w, 1e-5, offset),
        lambda x, w: reference.rms_norm(x, w, 1e-5, offset),
        inputs,
    )


@pytest.mark.parametrize("half", [32, 20], ids=["whole", "partial"])
def test_rotate(half: int) -> None:
    cos, sin = reference.rotary_tables(torch.arange(41) * 3, 0.9 ** torch.arange(float(half)), 1.1)
    check(
        lambda x: differentiable.rotate(x, cos, sin),
        lambda x: reference.rotate(x, cos, sin),
        [drawn(41, 3, 64)],
    )


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated(activation: str) -> None:
    """More elements than a chunk has; gates from -40 to 40, where exp reaches its ends."""
    gate = (40 * torch.linspace(-1, 1, 17 * 1100)).view(17, 1100).to(torch.bfloat16)
    plain = differentiable.F.silu if activation == "silu" else lambda x: differentiable.F.gelu(
        x, approximate="tanh"
    )  # fmt: skip
    check(
        lambda g, u: differentiable.gated(g, u, activation),
        lambda g, u: plain(g) * u,
        [gate.requires_grad_(), drawn(17, 1100)],
    )


def reference_attention(
    starts: tuple[int, ...], window: int | None, scale: float
) -> Callable[..., torch.Tensor]:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = []
        for start, end in pairwise(starts):
            index = torch.arange(end - start)
            mask = reference.causal_mask(index, index, window)[None]
            one = (x[None, start:end] for x in (q, k, v))
            parts.append(reference.attention(*one, mask, scale)[0])
        return torch.cat(parts)

    return attention


@pytest.mark.parametrize(
    ("starts", "heads", "kv_heads", "dim", "window"),
    [
        ((0, 64), 1, 1, 64, None),
        ((0, 70, 71, 200), 6, 2, 64, None),
        ((0, 130), 4, 4, 128, None),
        ((0, 5, 200), 3, 1, 64, 50),
        ((0, 300), 2, 1, 64, 65),
        ((0, 150), 2, 2, 256, 2),
    ],
)
def test_document_attention(
    starts: tuple[int, ...], heads: int, kv_heads: int, dim: int, window: int | None
) -> None:
    tokens, scale = starts[-1], dim**-0.5
    inputs = [drawn(tokens, heads, dim), drawn(tokens, kv_heads, dim), drawn(tokens, kv_heads, dim)]
    assert differentiable.fits_document_attention(inputs[0], inputs[1])
    check(
        lambda q, k, v: differentiable.document_attention(q, k, v, starts, window, scale),
        reference_attention(starts, window, scale),
        inputs,
        ATTENTION,
    )


def test_sharp_attention() -> None:
    """Scores of some hundreds: all weight on one key, no overflow."""
    q, k, v = drawn(100, 2, 64), drawn(100, 2, 64), drawn(100, 2, 64)
    check(
        lambda q, k, v: differentiable.document_attention(q, k, v, (0, 100), None, 20.0),
        reference_attention((0, 100), None, 20.0),
        [q, k, v],
        0.05,  # weights of nearly equal scores in the hundreds hang on the last bits of both
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_with_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    q, k, v = drawn(300, 4, 64), drawn(300, 2, 64), drawn(300, 2, 64)
    starts = (0, 120, 300)

    def run() -> list[torch.Tensor]:
        out = differentiable.document_attention(q, k, v, starts, None, 0.125)
        return [out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))]

    try:
        torch.set_num_threads(threads)
        ours = run()
        torch.set_num_threads(3)
        for one, other in zip(ours, run(), strict=True):
            assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_in_place(dtype: torch.dtype) -> None:
    logits = (6 * torch.randn(40, 501)).to(dtype)
    labels = torch.randint(0, 501, (40,))
    wide = logits.float().clone().requires_grad_()
    want = torch.nn.functional.cross_entropy(wide, labels, reduction="none")
    scales = torch.randn(40)
    (slope,) = torch.autograd.grad((scales * want).sum(), wide)
    alone = differentiable.entropy_in_place(logits.clone(), labels, None)
    losses = differentiable.entropy_in_place(logits, labels, scales)
    torch.testing.assert_close(losses, want.detach(), rtol=2e-6, atol=2e-6)
    assert torch.equal(alone, losses)
    assert error(logits, slope) < (1e-6 if dtype == torch.float32 else ROUNDING)


def test_nan_is_not_hidden() -> None:
    logits = torch.zeros(2, 300, dtype=torch.bfloat16)
    logits[0] = float("nan")
    losses = differentiable.entropy_in_place(logits, torch.tensor([3, 3]), torch.ones(2))
    assert losses.isnan().tolist() == [True, False]
    x = torch.full((1, 64), float("nan"), dtype=torch.bfloat16, requires_grad=True)
    assert differentiable.rms_norm(x, torch.ones(64), 1e-5).isnan().all()
