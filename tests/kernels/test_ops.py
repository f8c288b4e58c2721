"""Products in bf16 that are taken in fp32, against fp64 products of the same numbers.

One rounding to bf16, whose numbers have eight bits, is at most 2^-8 of the result; fp32 sums add
little.
Every test runs as on a processor without bf16, whatever it runs on.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from apr.kernels import ops

ROUNDING = 2.0**-8 + 2.0**-14
# (n, k, m): each of them the longest, in one piece and in several with a rest, and thin ones.
SHAPES = [
    (300, 40, 70),
    (2100, 64, 96),
    (64, 2100, 96),
    (64, 96, 2100),
    (1500, 16, 1500),
    (16, 1030, 8),
    (1, 33, 5),
    (7, 1, 1),
]
TURNED = list(itertools.product((False, True), repeat=2))


@pytest.fixture(autouse=True)
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(ops, "multiplies_bf16", lambda device: False)


def drawn(rows: int, columns: int, turned: bool = False) -> torch.Tensor:
    x = torch.randn(columns, rows).T if turned else torch.randn(rows, columns)
    return x.to(torch.bfloat16)


def close(got: torch.Tensor, want: torch.Tensor, sums: torch.Tensor) -> bool:
    """sums: of the absolute values of what is added up, which bound the error of fp32 sums."""
    bound = ROUNDING * want.abs() + 2.0**-20 * sums
    return bool(((got.double() - want).abs() <= bound).all())


@pytest.mark.parametrize("turned", TURNED)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_rounded_once(shape: tuple[int, int, int], turned: tuple[bool, bool]) -> None:
    n, k, m = shape
    a, b = drawn(n, k, turned[0]), drawn(k, m, turned[1])
    want, sums = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    # What a result's memory holds before does not matter, even if it is no number.
    out = torch.full((n, m), float("nan"), dtype=torch.bfloat16)
    assert ops.matmul(a, b, out=out) is out
    assert close(out, want, sums)
    assert torch.equal(ops.matmul(a, b), out)
    y = drawn(n, m)
    want, sums = y.double() + 0.5 * want, y.double().abs() + sums
    assert ops.add_product(y, a, b, 0.5) is y
    assert close(y, want, sums)


@pytest.mark.parametrize("trained", TURNED)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_and_its_gradients(bias: bool, trained: tuple[bool, bool]) -> None:
    """As torch's in fp64; the bias learns along with the weight."""
    inputs = [drawn(3 * 700, 48).view(3, 700, 48), drawn(80, 48)]
    if bias:
        inputs.append(drawn(1, 80)[0])
    wanted = [*trained, trained[1]][: len(inputs)]
    wide = [x.double().requires_grad_(w) for x, w in zip(inputs, wanted, strict=True)]
    narrow = [x.requires_grad_(w) for x, w in zip(inputs, wanted, strict=True)]
    y, want = ops.linear(*narrow), F.linear(*wide)
    assert y.dtype == torch.bfloat16
    assert (y - want).abs().max() < ROUNDING * want.abs().max()
    if not any(trained):
        assert not y.requires_grad
        return
    slope = drawn(3 * 700, 80).view(3, 700, 80)
    learned = [x for x in narrow if x.requires_grad]
    got = torch.autograd.grad(y, learned, slope)
    expected = torch.autograd.grad(want, [x for x in wide if x.requires_grad], slope.double())
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).abs().max() < ROUNDING * theirs.abs().max()


def test_a_result_can_be_added_to_in_place() -> None:
    """As adapters do; a view of other memory could not."""
    x = drawn(600, 1024).requires_grad_()
    y = ops.linear(x, drawn(512, 1024))
    y += 1
    y.float().sum().backward()
    assert x.grad is not None


def test_without_gradients_nothing_is_kept_for_them() -> None:
    """The input of a frozen layer is not needed once its product is taken."""
    x = drawn(64, 32).requires_grad_()
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.linear(x, drawn(16, 32))
    assert [tensor.shape for tensor in kept] == [(16, 32)]


def test_other_types_are_multiplied_as_torch_does() -> None:
    x, weight, bias = torch.randn(9, 7, 33), torch.randn(21, 33), torch.randn(21)
    for some in (None, bias):
        with torch.no_grad():
            want = F.linear(x, weight, some)
        torch.testing.assert_close(ops.linear(x.requires_grad_(), weight, some), want)


def test_memory_of_activations() -> None:
    """Aligned for vectors, contiguous, no view, and of its own."""
    large = ops.empty((3, 500, 700), torch.float32, torch.device("cpu"))
    assert large.shape == (3, 500, 700) and large.is_contiguous() and not large._is_view()
    assert large.data_ptr() % 64 == 0 and large.storage_offset() == 0
    assert large.untyped_storage().nbytes() == 4 * large.numel()
    other = ops.empty_like(large.mT)
    assert other.shape == (3, 700, 500) and other.is_contiguous()
    large.fill_(1)
    other.fill_(2)
    assert float(large.sum()) == large.numel()
    small = ops.empty((3, 5), torch.bfloat16, torch.device("cpu"))
    assert small.shape == (3, 5) and small.dtype == torch.bfloat16
