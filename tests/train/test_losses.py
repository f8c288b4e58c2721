"""Chunked cross-entropy against torch's over full logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from apr.train.losses import chunked_cross_entropy
from model.zoo import relative_error


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_loss_and_gradients(softcap: float | None, chunk: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(23, 16, requires_grad=True)
    weight = (2 * torch.randn(57, 16)).requires_grad_()
    labels = torch.randint(0, 57, (23,))
    ours = chunked_cross_entropy(hidden, weight, labels, softcap, chunk) / 23
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    theirs = F.cross_entropy(logits, labels)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for got, want in zip(
        torch.autograd.grad(ours, (hidden, weight)),
        torch.autograd.grad(theirs, (hidden, weight)),
        strict=True,
    ):
        assert relative_error(got, want) < 1e-5


def test_bf16_differs_by_the_rounding_of_logits() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(40, 64).to(torch.bfloat16).requires_grad_()
    weight = (torch.randn(300, 64) / 4).to(torch.bfloat16)
    labels = torch.randint(0, 300, (40,))
    ours = chunked_cross_entropy(hidden, weight, labels, None, 16)
    wide = hidden.detach().float().requires_grad_()
    theirs = F.cross_entropy(wide @ weight.float().T, labels, reduction="sum")
    assert ours.item() == pytest.approx(theirs.item(), rel=2e-3)
    (got,), (want,) = torch.autograd.grad(ours, hidden), torch.autograd.grad(theirs, wide)
    assert relative_error(got.float(), want) < 2e-2


def test_without_a_gradient_the_loss_is_the_same() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 16), torch.randn(31, 16)
    labels = torch.randint(0, 31, (9,))
    with torch.no_grad():
        alone = chunked_cross_entropy(hidden, weight, labels)
    asked = chunked_cross_entropy(hidden.requires_grad_(), weight, labels)
    assert torch.equal(alone, asked.detach())


def test_no_tensor_as_large_as_all_logits_exists() -> None:
    """What autograd and torch allocate is watched: the largest tensor is one chunk's logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, torch.Tensor):
                    self.largest = max(self.largest, x.numel())
            return out

    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(1000, 8)
    labels = torch.randint(0, 1000, (64,))
    with Watch() as watch:
        chunked_cross_entropy(hidden, weight, labels, None, 4).backward()
    assert watch.largest <= 8 * 1000  # the weight, twice a chunk's logits
