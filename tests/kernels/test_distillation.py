"""Divergences against autograd on whole logits in fp64, and at their limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apr.kernels.distillation import Target, distillation_loss
from apr.kernels.logprobs import cross_entropy

N, C, V = 11, 6, 19


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, C, generator=generator)
    weight = torch.randn(V, C, generator=generator)
    labels = torch.randint(V, (N,), generator=generator)
    return hidden, weight, labels, 2 * torch.randn(N, V, generator=generator)


def live(teacher: torch.Tensor, temperature: float) -> Target:
    return lambda part: ((teacher[part] / temperature).log_softmax(1), None)


def expected(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor,
    alpha: float, temperature: float, divergence: str, softcap: float | None,
) -> torch.Tensor:  # fmt: skip
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logq = (logits / temperature).log_softmax(1)
    logp = (teacher.double() / temperature).log_softmax(1)
    if divergence == "forward":
        apart = (logp.exp() * (logp - logq)).sum()
    elif divergence == "reverse":
        apart = (logq.exp() * (logq - logp)).sum()
    else:
        middle = (0.5 * (logp.exp() + logq.exp())).log()
        apart = 0.5 * (logp.exp() * (logp - middle) + logq.exp() * (logq - middle)).sum()
    hard = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    return alpha * temperature**2 * apart + (1 - alpha) * hard


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (2.5, None), (0.7, 3.0)])
def test_values_and_gradients(
    divergence: Any, alpha: float, temperature: float, softcap: float | None
) -> None:
    hidden, weight, labels, teacher = tensors()
    exact = [t.double().requires_grad_(True) for t in (hidden, weight)]
    how = (alpha, temperature, divergence, softcap)
    want = expected(*exact, labels, teacher, *how)
    want.backward()
    ours = [t.clone().requires_grad_(True) for t in (hidden, weight)]
    found, sums = distillation_loss(
        *ours, labels, live(teacher, temperature), alpha=alpha, temperature=temperature,
        divergence=divergence, softcap=softcap, chunk=4,
    )  # fmt: skip
    (2 * found).backward()
    assert float(found) == pytest.approx(float(want), rel=1e-5)
    for here, there in zip(ours, exact, strict=True):
        assert here.grad is not None and there.grad is not None
        assert torch.allclose(here.grad.double(), 2 * there.grad, atol=2e-5)
    total = alpha * temperature**2 * sums["divergence"] + (1 - alpha) * sums["nll"]
    assert total == pytest.approx(float(want), rel=1e-5)


def test_alpha_0_is_cross_entropy_and_a_teacher_of_oneself_is_nothing() -> None:
    hidden, weight, labels, teacher = tensors(1)
    hard, _ = distillation_loss(hidden, weight, labels, live(teacher, 2.0), alpha=0.0)
    assert float(hard) == pytest.approx(float(cross_entropy(hidden, weight, labels)), rel=1e-6)
    itself = live(hidden @ weight.T, 1.0)
    for divergence in ("forward", "reverse", "js"):
        ours = hidden.clone().requires_grad_(True)
        same, _ = distillation_loss(ours, weight, labels, itself, divergence=divergence)  # type: ignore[arg-type]
        same.backward()
        assert float(same) == pytest.approx(0.0, abs=1e-4)
        assert ours.grad is not None and float(ours.grad.abs().max()) < 1e-5


def test_great_temperatures_match_logits() -> None:
    """T -> infinity: the gradient becomes that of half the squared distance of centred logits over
    the size of the vocabulary (Hinton et al. 2015, eq. 4).
    """
    hidden, weight, labels, teacher = tensors(2)
    ours = hidden.clone().requires_grad_(True)
    found, _ = distillation_loss(ours, weight, labels, live(teacher, 1e3), temperature=1e3)
    found.backward()
    student = hidden @ weight.T
    apart = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert ours.grad is not None
    assert torch.allclose(ours.grad, apart @ weight / V, rtol=0.02, atol=2e-3)


def test_the_rest_of_a_short_list() -> None:
    """Against the formula with the rest as one more outcome."""
    hidden, weight, labels, teacher = tensors(3)
    p = teacher.softmax(1)
    kept = p.topk(4, 1).indices
    logp = torch.full_like(p, -torch.inf).scatter(1, kept, p.gather(1, kept).log())
    rest = 1 - p.gather(1, kept).sum(1)
    exact = hidden.double().requires_grad_(True)
    q = (exact @ weight.double().T).softmax(1).gather(1, kept)
    known = p.double().gather(1, kept)
    left, others = 1 - known.sum(1), 1 - q.sum(1)
    want = (known * (known / q).log()).sum() + (left * (left / others).log()).sum()
    want.backward()
    ours = hidden.clone().requires_grad_(True)
    found, _ = distillation_loss(
        ours, weight, labels, lambda part: (logp[part], rest[part]), chunk=5
    )
    found.backward()
    assert float(found) == pytest.approx(float(want), rel=1e-4)
    assert ours.grad is not None and exact.grad is not None
    assert torch.allclose(ours.grad.double(), exact.grad, atol=1e-5)


def test_sampled_teachers_give_the_gradient_on_average() -> None:
    """Random-sampling distillation (arXiv:2503.16870): a dozen ids a token, without bias."""
    hidden, weight, labels, teacher = tensors(4)

    def gradient(target: Target) -> torch.Tensor:
        ours = hidden.clone().requires_grad_(True)
        distillation_loss(ours, weight, labels, target)[0].backward()
        assert ours.grad is not None
        return ours.grad

    want = gradient(live(teacher, 1.0))
    generator = torch.Generator().manual_seed(5)
    draws, rounds = 12, 400
    total, square = torch.zeros_like(want), torch.zeros_like(want)
    for _ in range(rounds):
        drawn = torch.multinomial(teacher.softmax(1), draws, replacement=True, generator=generator)
        counts = torch.zeros(N, V).scatter_add_(1, drawn, torch.ones(N, draws))
        one = gradient(lambda part, counts=counts: ((counts[part] / draws).log(), None))
        total, square = total + one, square + one.square()
    mean = total / rounds
    error = ((square / rounds - mean.square()) / rounds).sqrt()
    # Of 66 numbers none is five standard errors off.
    assert ((mean - want).abs() < 5 * error + 1e-6).all()
    # The most likely ids alone are biased: far off by the same measure.
    best = teacher.softmax(1).topk(3, 1)
    alone = torch.zeros(N, V).scatter(1, best.indices, best.values)
    biased = gradient(lambda part: ((alone / alone.sum(1, keepdim=True))[part].log(), None))
    assert ((biased - want).abs() > 5 * error).any()
