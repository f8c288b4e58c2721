"""Log-probabilities by chunks, and their gradients, against torch's over full logits in fp64."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from apr.kernels.logprobs import cross_entropy, token_logprobs
from model.zoo import relative_error


def full_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(1).gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_every_token_may_weigh_differently(softcap: float | None, chunk: int) -> None:
    """Random upstream gradients of both signs, a zero among them; fp32, 1e-5 relative."""
    torch.manual_seed(0)
    hidden = torch.randn(23, 16, requires_grad=True)
    weight = (2 * torch.randn(57, 16)).requires_grad_()
    labels, upstream = torch.randint(0, 57, (23,)), torch.randn(23)
    upstream[3] = 0
    ours = token_logprobs(hidden, weight, labels, softcap, chunk)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    theirs = full_logprobs(*wide, labels, softcap)
    assert ours.shape == (23,) and relative_error(ours.detach(), theirs.detach()) < 1e-6
    found = torch.autograd.grad(ours, (hidden, weight), upstream)
    wanted = torch.autograd.grad(theirs, wide, upstream.double())
    for got, want in zip(found, wanted, strict=True):
        assert relative_error(got, want) < 1e-5
    assert not found[0][3].any()


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 16), torch.randn(31, 16)
    labels, upstream = torch.randint(0, 31, (9,)), torch.randn(9)
    both = token_logprobs(hidden.requires_grad_(), weight.requires_grad_(), labels, None, 4)
    wanted = torch.autograd.grad(both, (hidden, weight), upstream)
    for kept, of in ((0, hidden), (1, weight)):
        frozen = [hidden, weight]
        frozen[1 - kept] = frozen[1 - kept].detach()
        alone = token_logprobs(frozen[0], frozen[1], labels, None, 4)
        assert torch.equal(torch.autograd.grad(alone, of, upstream)[0], wanted[kept])
    with torch.no_grad():
        assert torch.equal(token_logprobs(hidden, weight, labels, None, 4), both.detach())


def test_finite_differences_with_a_matrix_that_is_embedding_and_output_layer() -> None:
    """Central differences of a loss that is no sum over tokens; 1e-3 relative in fp32."""
    torch.manual_seed(0)
    matrix = torch.randn(6, 4, requires_grad=True)
    ids, labels = torch.tensor([0, 3, 5, 3, 1]), torch.tensor([3, 5, 3, 1, 2])

    def loss(matrix: torch.Tensor) -> torch.Tensor:
        logprobs = token_logprobs(torch.tanh(matrix[ids]), matrix, labels, None, 2)
        return F.logsigmoid(logprobs[:2].sum() - logprobs[2:].sum())

    (found,) = torch.autograd.grad(loss(matrix), matrix)
    step = 1e-2
    with torch.no_grad():
        for place in range(matrix.numel()):
            moved = torch.zeros_like(matrix)
            moved.view(-1)[place] = step
            slope = (loss(matrix + moved) - loss(matrix - moved)) / (2 * step)
            assert found.flatten()[place].item() == pytest.approx(slope.item(), rel=1e-3, abs=2e-4)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_cross_entropy(softcap: float | None, chunk: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(23, 16, requires_grad=True)
    weight = (2 * torch.randn(57, 16)).requires_grad_()
    labels = torch.randint(0, 57, (23,))
    ours = cross_entropy(hidden, weight, labels, softcap, chunk) / 23
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    theirs = -full_logprobs(*wide, labels, softcap).mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    found = torch.autograd.grad(ours, (hidden, weight))
    for got, want in zip(found, torch.autograd.grad(theirs, wide), strict=True):
        assert relative_error(got, want) < 1e-5


def test_bf16_differs_by_the_rounding_of_logits() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(40, 64).to(torch.bfloat16).requires_grad_()
    weight = (torch.randn(300, 64) / 4).to(torch.bfloat16).requires_grad_()
    labels = torch.randint(0, 300, (40,))
    wide = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    theirs = full_logprobs(*wide, labels, None)
    for ours in (
        cross_entropy(hidden, weight, labels, None, 16),
        -token_logprobs(hidden, weight, labels, None, 16).sum(),
    ):
        assert ours.item() == pytest.approx(-theirs.sum().item(), rel=2e-3)
        found = torch.autograd.grad(ours, (hidden, weight))
        wanted = torch.autograd.grad(-theirs.sum(), wide, retain_graph=True)
        for got, want in zip(found, wanted, strict=True):
            assert got.dtype == torch.bfloat16 and relative_error(got.float(), want) < 2e-2


def test_without_a_gradient_the_loss_is_the_same() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 16), torch.randn(31, 16)
    labels = torch.randint(0, 31, (9,))
    with torch.no_grad():
        alone = cross_entropy(hidden, weight, labels)
    asked = cross_entropy(hidden.requires_grad_(), weight, labels)
    assert torch.equal(alone, asked.detach())


class Watch(TorchDispatchMode):
    """Numbers in the largest tensor that operations under it make."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize("of", [cross_entropy, token_logprobs])
def test_no_tensor_as_large_as_all_logits_exists(of: Any) -> None:
    """What autograd and torch allocate is watched: the largest tensor is one chunk's logits."""
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(1000, 8)
    labels = torch.randint(0, 1000, (64,))
    with Watch() as watch:
        of(hidden, weight, labels, None, 4).sum().backward()
    assert watch.largest <= 8 * 1000  # the weight, twice a chunk's logits


def test_peak_memory_does_not_grow_with_tokens_times_vocabulary() -> None:
    """The peak of a process: logits of all tokens would be 537 MB in fp32, those of a chunk are
    17 MB.
    """
    code = """
import resource, torch
from apr.kernels.logprobs import cross_entropy, token_logprobs
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def run(of, tokens):
    hidden = torch.randn(tokens, 8, requires_grad=True)
    weight = torch.randn(16384, 8, requires_grad=True)
    of(hidden, weight, torch.zeros(tokens, dtype=torch.int64)).sum().backward()
for of in (cross_entropy, token_logprobs):
    run(of, 256)
before = peak()
for of in (cross_entropy, token_logprobs):
    run(of, 8192)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    assert int(done.stdout) * unit < 60e6
