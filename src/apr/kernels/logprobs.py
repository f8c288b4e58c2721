"""Log-probabilities of tokens, with their gradients, from logits that never exist all at once.

What any training objective is made of: cross-entropy is their sum, preference losses compare sums
of them, and each token's gradient may weigh differently. Logits (tokens, vocabulary) exist for
`chunk` tokens at a time, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch

from apr.kernels.differentiable import entropy_in_place
from apr.kernels.ops import matmul

# Positions whose logits exist at one time: with a vocabulary of 150k in bf16, 77 MB.
CHUNK = 256


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """log softmax(hidden W^T)[label] of each row, in nats: fp32 (N,).

    hidden: (N, C), weight: (V, C) of the same dtype, labels: integers (N,). softcap: logits become
    softcap * tanh(logits / softcap). Products are taken in the dtype of hidden, the softmax in
    fp32. Nothing but the arguments is kept for the backward pass, which computes the logits of
    each chunk once more, for the gradients to hidden and to the weight that are asked for.
    """
    return _TokenLogprobs.apply(hidden, weight, labels, softcap, chunk)


def cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """-token_logprobs(...).sum(), an fp32 scalar, for less work.

    All tokens weigh the same, which is known in advance: the gradients are computed along with the
    values, so that logits are computed once.
    """
    return _CrossEntropy.apply(hidden, weight, labels, softcap, chunk)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        softcap: float | None,
        chunk: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, labels)
        ctx.softcap, ctx.chunk = softcap, chunk
        losses, _, _ = _by_chunk(hidden, weight, labels, softcap, chunk, None, (False, False))
        return losses.neg_()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, labels = ctx.saved_tensors
        scales = gradients[0].float().neg()
        wanted = ctx.needs_input_grad[:2]
        how = ctx.softcap, ctx.chunk, scales, wanted
        _, dhidden, dweight = _by_chunk(hidden, weight, labels, *how)
        if dweight is not None:
            dweight = dweight.to(weight.dtype)
        return dhidden, dweight, None, None, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        softcap: float | None,
        chunk: int,
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[:2]
        ones = torch.ones(len(hidden), device=hidden.device) if any(wanted) else None
        losses, *slopes = _by_chunk(hidden, weight, labels, softcap, chunk, ones, wanted)
        ctx.save_for_backward(*slopes)
        ctx.weight_dtype = weight.dtype
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for part in losses.split(chunk):
            total += part.double().sum()
        return total.float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = gradients
        dhidden, dweight = ctx.saved_tensors
        if dhidden is not None:
            dhidden = dhidden * scale.to(dhidden.dtype)
        if dweight is not None:
            dweight = (dweight * scale).to(ctx.weight_dtype)
        return dhidden, dweight, None, None, None


def _by_chunk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    softcap: float | None,
    chunk: int,
    scales: torch.Tensor | None,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(fp32 (N,) -log-probabilities, gradients to hidden and to the weight of their sum).

    scales: fp32 (N,), what each row counts in that sum; None: no gradients. wanted: which of the
    two. The weight's gradient is fp32.
    """
    losses = torch.empty(len(hidden), device=hidden.device)
    dhidden = torch.empty_like(hidden) if wanted[0] else None
    dweight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    # One piece of memory for all chunks of all calls' sizes: allocators keep the holes that large
    # tensors of ever new sizes leave.
    room = torch.empty(chunk, len(weight), dtype=hidden.dtype, device=hidden.device)
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        rows = hidden[part]
        logits = matmul(rows, weight.T, out=room[: len(rows)])  # (n, V)
        some = None if scales is None else scales[part]
        losses[part] = _losses_in_place(logits, labels[part], softcap, some)
        if dhidden is not None:
            matmul(logits, weight, out=dhidden[part])
        if dweight is not None:
            dweight += matmul(logits.T, rows)
    return losses, dhidden, dweight


def _losses_in_place(
    logits: torch.Tensor, labels: torch.Tensor, softcap: float | None, scales: torch.Tensor | None
) -> torch.Tensor:
    """As `entropy_in_place`, of logits (n, V) before their softcap."""
    if softcap is None:
        return entropy_in_place(logits, labels, scales)
    capped = torch.tanh(logits.float() / softcap)
    slope = 1 - capped.square()
    wide = softcap * capped
    losses = entropy_in_place(wide, labels, scales)
    if scales is not None:
        logits.copy_(wide * slope)
    return losses
