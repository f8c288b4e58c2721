"""Divergence of a student's next-token distributions from a teacher's, with gradients, from logits
that never exist all at once (Hinton et al. 2015, arXiv:1503.02531).

The teacher's distributions come a chunk at a time, too, from its own hidden states or from a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from apr.kernels.ops import matmul

# Positions whose logits exist at one time: here twice, student's and teacher's, and in fp32.
CHUNK = 128
Divergence = Literal["forward", "reverse", "js"]
# Rows [start, stop) -> the teacher's log-probabilities of them, fp32 (n, V), at the temperature
# they were asked for; with a second tensor (n,), what is left besides the ids that are not -inf.
Target = Callable[[slice], tuple[torch.Tensor, torch.Tensor | None]]


def distillation_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    target: Target,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    divergence: Divergence = "forward",
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> tuple[torch.Tensor, dict[str, float]]:
    """(alpha T^2 D + (1 - alpha) CE, summed over rows, an fp32 scalar; the sums of D and of CE).

    hidden: (N, C), weight: (V, C), whose product is the student's logits. D: KL(teacher ‖ student)
    ("forward"), KL(student ‖ teacher) ("reverse") or the Jensen-Shannon divergence ("js"), of both
    distributions at the temperature T, in nats. CE: cross-entropy of labels (N,) at temperature 1.
    """
    how = (alpha, temperature, divergence, softcap, chunk)
    loss, apart, entropy = _Distillation.apply(hidden, weight, labels, target, how)
    return loss, {"divergence": float(apart), "nll": float(entropy)}


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        target: Target,
        how: tuple[float, float, Divergence, float | None, int],
    ) -> tuple[torch.Tensor, ...]:
        alpha, temperature, divergence, softcap, chunk = how
        wanted = ctx.needs_input_grad[:2]
        dhidden = torch.empty_like(hidden) if wanted[0] else None
        dweight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        apart = torch.zeros((), dtype=torch.float64, device=hidden.device)
        entropy = torch.zeros_like(apart)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = matmul(hidden[part], weight.T).float()  # (n, V)
            slope = None
            if softcap is not None:
                logits = torch.tanh(logits / softcap)
                slope = 1 - logits.square()
                logits *= softcap
            value, gradient = _divergence(logits / temperature, *target(part), divergence)
            apart += value.double().sum()
            gradient *= alpha * temperature
            logq = logits.log_softmax(1)
            picked = labels[part][:, None]
            entropy -= logq.gather(1, picked).double().sum()
            if alpha < 1:
                hard = logq.exp_()
                hard.scatter_add_(1, picked, torch.full_like(picked, -1.0, dtype=torch.float32))
                gradient.add_(hard, alpha=1 - alpha)
            if slope is not None:
                gradient *= slope
            narrow = gradient.to(hidden.dtype)
            if dhidden is not None:
                matmul(narrow, weight, out=dhidden[part])
            if dweight is not None:
                dweight += matmul(narrow.T, hidden[part])
        ctx.save_for_backward(dhidden, dweight)
        ctx.weight_dtype = weight.dtype
        loss = alpha * temperature**2 * apart + (1 - alpha) * entropy
        ctx.mark_non_differentiable(apart, entropy)
        return loss.float(), apart, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = gradients[0]
        dhidden, dweight = ctx.saved_tensors
        if dhidden is not None:
            dhidden = dhidden * scale.to(dhidden.dtype)
        if dweight is not None:
            dweight = (dweight * scale).to(ctx.weight_dtype)
        return dhidden, dweight, None, None, None


def _divergence(
    logits: torch.Tensor, logp: torch.Tensor, rest: torch.Tensor | None, kind: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """(values (n,), gradient to the logits (n, V)) of the student's logits, fp32.

    rest: what the teacher gives to all ids of which logp says nothing (-inf), together. It is put
    on them as the student would: then they neither gain nor lose among themselves.
    """
    logq = logits.log_softmax(1)
    q = logq.exp()
    if rest is not None:
        unknown = logp == -torch.inf
        theirs = q.masked_fill(~unknown, 0).sum(1, keepdim=True).clamp(min=1e-30)
        share = (rest[:, None] / theirs).log()
        logp = torch.where(unknown, logq + share, logp)
    if kind == "forward":
        p = logp.exp()
        return torch.special.xlogy(p, p).sum(1) - _dot(p, logq), q.sub_(p)
    if kind == "reverse":
        distance = logq - logp
        value = _dot(q, distance)
        return value, q.mul_(distance.sub_(value[:, None]))
    p = logp.exp()
    logm = torch.logaddexp(logp, logq) - _LN2
    ours = logq - logm
    of_student = _dot(q, ours)
    value = 0.5 * (of_student + torch.special.xlogy(p, p).sum(1) - _dot(p, logm))
    return value, q.mul_(ours.sub_(of_student[:, None])).mul_(0.5)


_LN2 = 0.6931471805599453


def _dot(p: torch.Tensor, log: torch.Tensor) -> torch.Tensor:
    """Sums of p log, where 0 times -inf is 0."""
    return torch.where(p > 0, p * log, 0).sum(1)
